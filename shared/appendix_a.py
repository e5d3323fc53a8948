"""Appendix A, PyTorch."""

from appendix_a_pytorch.pytorch import *  # noqa: F401,F403
