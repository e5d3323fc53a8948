"""Chapter 9, rewards and preferences."""

from ch09_rewards.asked_words import draw_requests  # noqa: F401
from ch09_rewards.rewards import *  # noqa: F401,F403
