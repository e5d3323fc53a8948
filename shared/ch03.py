"""Chapter 3, attention."""

from ch03_attention.attention import *  # noqa: F401,F403
from ch03_attention.kv_cache import KVCache  # noqa: F401
