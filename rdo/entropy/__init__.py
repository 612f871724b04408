"""Entropy models, one family per file."""

from rdo.entropy.base import ENTROPY_MODELS, EntropyModel, entropy_model_from_config

__all__ = ["ENTROPY_MODELS", "EntropyModel", "entropy_model_from_config"]
