"""Chapter 3, attention."""

from ch03_attention.attention import *  # noqa: F401,F403
