"""The exceptions that a user of rdo can meet.

Every message says what was wrong, where, and what to do. All derive from :class:`RdoError`, so that one ``except``
catches them; where a builtin exception describes the same mistake, the class derives from that one too.
"""

from __future__ import annotations


class RdoError(Exception):
    """Base class of every error that rdo raises on purpose."""


class ConfigError(RdoError, ValueError):
    """An argument, an option or a suite file asks for something impossible."""


class UnknownNameError(RdoError, LookupError):
    """A name that no plug-in was registered under."""


class DuplicateNameError(RdoError, ValueError):
    """Two plug-ins want the same name."""


class NonFiniteWeightsError(RdoError, ValueError):
    """A tensor to quantise or to fit holds NaN or infinity."""


class SymbolOverflowError(RdoError, ValueError):
    """The quantisation step is so small that symbols leave the 32-bit range."""


class CoderError(RdoError, ValueError):
    """A bitstream cannot be encoded or decoded."""


class CheckpointError(RdoError):
    """A compressed checkpoint cannot be read or written."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A compressed checkpoint is truncated, damaged, or contradicts itself."""


class UnsupportedVersionError(CheckpointError, ValueError):
    """A compressed checkpoint was written by a newer format version."""


class DataError(RdoError):
    """A data set or pretrained weights cannot be fetched, or are not what was pinned."""


class IntegrationError(RdoError, ImportError):
    """A library that rdo extends is missing, or is a version that it does not know how to extend."""
