"""Chapter 4, the GPT model."""

from ch04_gpt_model.gpt_model import *  # noqa: F401,F403
from ch04_gpt_model.guards import GPTConfig, check_config, check_prompt  # noqa: F401
