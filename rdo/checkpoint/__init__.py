"""Compressed checkpoints: safetensors files whose tensors are bitstreams; docs/format.md describes the format."""

from rdo.checkpoint.info import CheckpointInfo, TensorInfo
from rdo.checkpoint.opened import CompressedFile, default_output_limit
from rdo.checkpoint.reader import inspect_compressed, load_compressed, load_quantized, open_compressed
from rdo.checkpoint.verify import Verification, verify_compressed
from rdo.checkpoint.writer import is_compressible, save_compressed

__all__ = [
    "CheckpointInfo",
    "CompressedFile",
    "TensorInfo",
    "Verification",
    "default_output_limit",
    "inspect_compressed",
    "is_compressible",
    "load_compressed",
    "load_quantized",
    "open_compressed",
    "save_compressed",
    "verify_compressed",
]
