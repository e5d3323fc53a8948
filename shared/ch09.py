"""Chapter 9, rewards and preferences."""

from ch09_rewards.orders import draw_orders  # noqa: F401
from ch09_rewards.rewards import *  # noqa: F401,F403
