"""Lets a peer work on a model: hands over what it needs, checks what it gives back, and keeps the answers."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdo_harness.peers.catalogue import Peer
from rdo_harness.peers.environments import PeerError
from rdo_harness.peers.process import Answer, read_answer, run_worker, write_job

LEAST_COVERAGE = 0.95
"""Of the weights handed over, the share that must come back changed."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a model that peers can work on.

    Attributes:
        parameter: of the model.
        transposed: it is [in, out], as in GPT-2's Conv1D; peers get and give [out, in].
    """

    parameter: nn.Parameter
    transposed: bool

    def oriented(self) -> Tensor:
        """The weights as [out, in] float32."""
        weight = self.parameter.detach().float()
        return weight.t().contiguous() if self.transposed else weight

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Take on weights of size [out, in]."""
        self.parameter.copy_(weight.t() if self.transposed else weight)


def linear_matrices(model: nn.Module) -> dict[str, Matrix]:
    """The weights of linear layers but output layers, by name: what post-training libraries are meant for.

    Output layers (``get_output_embeddings``, or the only linear layer outside the base model of a classifier) and
    embeddings are what they leave alone by default.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    prefix = getattr(model, "base_model_prefix", "")
    found: dict[str, Matrix] = {}
    for name, module in model.named_modules():
        transposed = type(module).__name__ == "Conv1D"
        inside = not prefix or not hasattr(model, prefix) or name.startswith(f"{prefix}.")
        if not (isinstance(module, nn.Linear) or transposed) or module is output or not inside:
            continue
        if id(module.weight) not in embeddings:
            found[f"{name}.weight"] = Matrix(module.weight, transposed)
    return found


def ask(
    peer: Peer,
    model: nn.Module,
    matrices: Mapping[str, Matrix],
    options: Mapping[str, Any],
    calibration: Sequence[Mapping[str, Tensor]],
    seed: int,
    cache: Path,
) -> Answer:
    """Let a peer change the matrices; the model stays as it is. The same question is asked once only.

    Args:
        matrices: names and weights to change; the answer's tensors have the same names, [out, in].
        calibration: batches of inputs, for peers that want some.
        cache: folder in which answers are kept.

    Raises:
        PeerError: the peer is not installed, failed, or left more than 5 % of these weights as they were.
    """
    python = peer.python()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".asking-") as temporary:
        folder = Path(temporary) / "job"
        folder.mkdir()
        before = {name: matrix.oriented() for name, matrix in matrices.items()}
        write_job(folder, options, before, calibration if peer.calibrated else [], seed)
        if peer.whole_model:
            _save_model(peer, model, folder / "model")
        kept = cache / _digest(peer, folder)
        if not kept.exists():
            run_worker(python, peer.worker, folder, peer.timeout)
            for part in ("model", "saved"):
                shutil.rmtree(folder / part, ignore_errors=True)
            for part in ("weights.safetensors", "calibration.safetensors"):
                (folder / part).unlink()
            _publish(folder, kept)
        answer = read_answer(kept)
    check_answer(peer, before, dict(model.named_parameters()), answer)
    return answer


def check_answer(peer: Peer, before: Mapping[str, Tensor], parameters: Mapping[str, Tensor], answer: Answer) -> None:
    """Raise :class:`PeerError` unless all tensors are there and finite, with 95 % of the weights in changed ones."""
    changed = total = 0
    for name in answer.beside(before):
        if name not in parameters:
            raise PeerError(f"{peer.name} gave back {name}, and the model has no such parameter")
        _check_tensor(peer, name, parameters[name], answer)
    for name, weight in before.items():
        after = _check_tensor(peer, name, weight, answer)
        total += weight.numel()
        changed += 0 if torch.equal(after, weight) else weight.numel()
    if changed < LEAST_COVERAGE * total:
        raise PeerError(
            f"{peer.name} changed {changed} of the {total} weights that it supports: it cannot be said "
            "to have compressed them"
        )


def _check_tensor(peer: Peer, name: str, before: Tensor, answer: Answer) -> Tensor:
    after = answer.tensors.get(name)
    if after is None or after.shape != before.shape or not bool(after.isfinite().all()):
        found = "nothing" if after is None else f"size {list(after.shape)}, or numbers that are not finite"
        raise PeerError(f"{peer.name} gave back {found} for {name} of size {list(before.shape)}")
    return after


def _save_model(peer: Peer, model: nn.Module, folder: Path) -> None:
    """Write a folder that transformers loads; what ``save_pretrained`` writes, without its progress bar."""
    from safetensors.torch import save_file

    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        raise PeerError(f"{peer.name} works on whole transformers models, {type(model).__name__} is none")
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(folder))
    first: dict[int, str] = {}
    state = {n: t for n, t in model.state_dict().items() if first.setdefault(t.data_ptr(), n) == n}  # tied ones once
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _digest(peer: Peer, folder: Path) -> str:
    """Of everything that determines the answer: the job's files, the worker and the environment."""
    digest = hashlib.sha256(f"{peer.name} {peer.environment().digest}".encode())
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [*files, *peer.sources()]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def _publish(folder: Path, kept: Path) -> None:
    try:
        folder.rename(kept)
    except OSError:  # another process asked the same
        if not kept.exists():
            raise
