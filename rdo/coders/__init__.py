"""Entropy coders, one per file; docs/coders.md gives the layout of every table and payload."""

from rdo.coders.base import CODERS, Bitstream, EntropyCoder, Histogram, coder_from_config, make_coder, make_coders

__all__ = ["CODERS", "Bitstream", "EntropyCoder", "Histogram", "coder_from_config", "make_coder", "make_coders"]
