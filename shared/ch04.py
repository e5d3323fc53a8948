"""Chapter 4, the GPT model."""

from ch04_gpt_model.gpt_model import *  # noqa: F401,F403
