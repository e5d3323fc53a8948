"""Chapter 5, pretraining."""

from ch05_pretraining.muon import Muon  # noqa: F401
from ch05_pretraining.pretraining import *  # noqa: F401,F403
from ch05_pretraining.storyteller import *  # noqa: F401,F403
from ch05_pretraining.tensor_files import TensorFile, read_checkpoint  # noqa: F401
from ch05_pretraining.weights import *  # noqa: F401,F403
