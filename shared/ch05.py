"""Chapter 5, pretraining."""

from ch05_pretraining.pretraining import *  # noqa: F401,F403
