"""Rate-distortion optimised training and compression of neural network weights (BackSlash)."""

from rdo.allocation import steps_for_bits
from rdo.attach import Attachment, attach
from rdo.checkpoint import inspect_compressed, load_compressed, save_compressed, verify_compressed
from rdo.coders import CODERS
from rdo.constraint import RateConstraint
from rdo.entropy import ENTROPY_MODELS
from rdo.quantizers import RelativeQuantizer, UniformQuantizer

__version__ = "0.1.0"

__all__ = [
    "CODERS",
    "ENTROPY_MODELS",
    "Attachment",
    "RateConstraint",
    "RelativeQuantizer",
    "UniformQuantizer",
    "attach",
    "inspect_compressed",
    "load_compressed",
    "save_compressed",
    "steps_for_bits",
    "verify_compressed",
]
