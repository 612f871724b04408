"""What every worker shares: it reads a job from a folder and writes the answer there. Needs torch and safetensors only.

The folder holds job.json (``options``, ``seed``, and ``matrices``: the names of the weights to change),
weights.safetensors (those matrices, [out, in] float32), calibration.safetensors (``0.input_ids``, ...: batches) and
model/ (config.json and model.safetensors, for libraries that want a whole model). The answer is answer.json and
answer.safetensors: ``NAME`` the changed weights as the library itself dequantises them, [out, in] float32, and where it
has them ``NAME.scale`` and ``NAME.zero_point``, [out, groups]; and other parameters of the model that changed with
them, by their names.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@dataclass
class Answer:
    """What a worker found: tensors as above, the bytes of the library's own format, and the packages it used."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    native_bytes: int = 0
    packages: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Job:
    """One job; ``options`` and ``matrices`` are as in job.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = json.loads((folder / "job.json").read_text())
        self.options: dict[str, Any] = described["options"]
        self.matrices: list[str] = described["matrices"]
        self.seed: int = described["seed"]

    def weights(self) -> dict[str, torch.Tensor]:
        """The matrices to change, [out, in] float32."""
        return load_file(str(self.folder / "weights.safetensors"))

    def calibration(self) -> list[dict[str, torch.Tensor]]:
        """Batches of inputs: ``input_ids`` and where there is padding ``attention_mask``, int64 [batch, length]."""
        batches: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(str(self.folder / "calibration.safetensors")).items():
            number, name = key.split(".", 1)
            batches.setdefault(int(number), {})[name] = tensor
        return [batches[number] for number in sorted(batches)]

    def model(self) -> Any:
        """The transformers model, float32, all of whose weights are those handed over; GPT-2's Conv1D become Linear."""
        import transformers

        folder = str(self.folder / "model")
        name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        kind = getattr(transformers, name)
        model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        wrong = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
        if wrong:
            raise ValueError(f"the weights do not fit {name} of transformers {transformers.__version__}: {wrong}")
        return _linear(model).eval()


def main(work: Callable[[Job], Answer]) -> None:
    """Do the job in the folder that is the script's argument."""
    folder = Path(sys.argv[1])
    job = Job(folder)
    torch.manual_seed(job.seed)
    started = time.perf_counter()
    answer = work(job)
    described = {
        "native_bytes": answer.native_bytes,
        "seconds": time.perf_counter() - started,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *answer.packages)},
        "facts": answer.facts,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in answer.tensors.items()}
    save_file(tensors, str(folder / "answer.safetensors"))
    (folder / "answer.json").write_text(json.dumps(described))


def _linear(model: Any) -> Any:
    """Replace GPT-2's Conv1D, a Linear with a transposed weight that libraries overlook, by Linear."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            rows, columns = module.weight.shape
            linear = torch.nn.Linear(rows, columns)
            linear.weight.data = module.weight.data.t().contiguous()
            linear.bias.data = module.bias.data
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    return model
