"""Chapter 6, classification."""

from ch06_classification.classification import *  # noqa: F401,F403
