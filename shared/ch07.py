"""Chapter 7, following instructions."""

from ch07_instructions.instructions import *  # noqa: F401,F403
from ch07_instructions.judging import (  # noqa: F401
    generate_model_scores,
    judge_prompt,
    query_model,
)
from ch07_instructions.stories import (  # noqa: F401
    fours_in,
    has_ending,
    repeated_fours,
    uses_word,
)
