"""Appendix E, LoRA."""

from appendix_e_lora.lora import *  # noqa: F401,F403
