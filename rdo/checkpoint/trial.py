"""The size of a file that is not kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rdo.checkpoint.info import CheckpointInfo
from rdo.checkpoint.writer import save_compressed


def written_for_trial(model_or_state_dict: nn.Module | Mapping[str, Tensor], **options: Any) -> CheckpointInfo:
    """What ``save_compressed`` with these options writes, to the byte: into a temporary folder, and deleted.

    Raises:
        As ``save_compressed``.
    """
    with tempfile.TemporaryDirectory(prefix="rdo-") as folder:
        return save_compressed(model_or_state_dict, os.path.join(folder, "trial.rdo"), **options)
