"""Chapter 7, following instructions."""

from ch07_instructions.instructions import *  # noqa: F401,F403
