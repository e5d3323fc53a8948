"""Chapter 8, modern models."""

from ch08_modern_models.guards import check_llama_config  # noqa: F401
from ch08_modern_models.modern_models import *  # noqa: F401,F403
from ch08_modern_models.smollm2 import *  # noqa: F401,F403
