"""Chapter 6, classification."""

from ch06_classification.classification import *  # noqa: F401,F403
from ch06_classification.sms import *  # noqa: F401,F403
