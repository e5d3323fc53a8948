"""Appendix F, speed: training and writing."""

from appendix_f_speed.speed import *  # noqa: F401,F403
from appendix_f_speed.writing import *  # noqa: F401,F403
