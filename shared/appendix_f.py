"""Appendix F, speed."""

from appendix_f_speed.speed import *  # noqa: F401,F403
