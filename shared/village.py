"""Stories of a small village, each with what is true in it (see `corpus/`)."""

from corpus.plots import PLOTS
from corpus.reader import contradictions
from corpus.village import PARTS, Tale, tales, tell

__all__ = ["PARTS", "PLOTS", "Tale", "contradictions", "tales", "tell"]
