"""Methods of peers, with a stand-in for the library: what is handed over, refused, coded and kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rdo.checkpoint import load_quantized
from rdo.errors import ConfigError
from rdo.quantizers import RelativeQuantizer
from rdo_harness.methods.base import Context
from rdo_harness.methods.gptq import GPTQ
from rdo_harness.methods.hqq import HQQ
from rdo_harness.methods.peer import PeerMethod
from rdo_harness.methods.quanto import Quanto
from rdo_harness.methods.wanda import Wanda
from rdo_harness.peers import catalogue
from rdo_harness.peers.catalogue import Peer
from rdo_harness.peers.completion import complete
from rdo_harness.peers.environments import PeerError
from rdo_harness.peers.exchange import linear_matrices
from rdo_harness.peers.expression import decoded
from rdo_harness.peers.sample import samples

WORKER = str(Path(__file__).parent / "stand_in_peer.py")


@dataclass(frozen=True)
class StandIn(Peer):
    """Runs in our own environment."""

    def python(self) -> Path:
        return Path(sys.executable)


@pytest.fixture
def act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for gptq, hqq and wanda; what they do is written into the file."""
    for name in ("gptq", "hqq", "wanda"):
        peer = StandIn(name, "hqq", WORKER, calibrated=True, timeout=30.0)
        monkeypatch.setitem(catalogue.PEERS, name, peer)
    path = tmp_path / "act"
    path.write_text("work")
    return path


def context_and_model(tmp_path: Path, which: str = "gpt-small") -> tuple[Context, torch.nn.Module]:
    architecture, prepared = next(sample for sample in samples() if sample[0].name == which)
    model = architecture.build(0, prepared.task).eval()
    return Context(architecture, prepared, 4, 0, tmp_path / "peers"), model


def test_linear_layers_are_handed_over_and_embeddings_and_output_layers_are_not() -> None:
    found = {}
    for architecture, prepared in samples():
        model = architecture.build(0, prepared.task)
        found[architecture.name] = linear_matrices(model)
        assert all(matrix.parameter is model.get_parameter(name) for name, matrix in found[architecture.name].items())
    assert len(found["bert-small"]) == 2 * 6 + 1
    assert "bert.pooler.dense.weight" in found["bert-small"]
    assert len(found["gpt-small"]) == 2 * 4
    assert all(matrix.transposed for matrix in found["gpt-small"].values())
    assert len(found["llama-small"]) == 2 * 7
    assert not [name for names in found.values() for name in names if "emb" in name or "head" in name or "wte" in name]


def test_a_peer_that_quantises(act: Path, tmp_path: Path) -> None:
    context, model = context_and_model(tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (point,) = HQQ(bits=(3,)).points()
    row = HQQ(bits=(3,)).apply(model, point, context, tmp_path / "model.rdo")
    matrices = linear_matrices(model)
    handed = sum(matrix.parameter.numel() for matrix in matrices.values())
    eligible = sum(p.numel() for name, p in before.items() if p.ndim >= 2)
    assert row["native_coverage"] == handed / eligible
    assert row["native_bytes"] == 1000 + 2 * (sum(p.numel() for p in before.values()) - handed)
    assert row["levels"] <= 7
    assert "safetensors==" in row["peer_versions"]
    assert row["completion_relative_step"] in HQQ().relative_steps
    assert row["completion_cross_entropy"] <= row["completion_cross_entropy_before"] * 1.01
    weights = decoded(*load_quantized(tmp_path / "model.rdo"))
    for name, old in before.items():
        new = weights[name]
        if name in matrices:
            scale = old.t().reshape(old.shape[1], -1, 64).abs().amax(2) / 3
            error = (new - old).t().reshape(old.shape[1], -1, 64).abs().amax(2)
            assert bool((error <= 0.51 * scale).all())  # rounding, along the inputs of a Conv1D, and nothing else
            assert torch.equal(new, model.get_parameter(name))
        elif old.ndim >= 2:
            step = row["completion_relative_step"] * float(old.square().mean().sqrt())
            assert 0 < float((new - old).abs().max()) <= 0.5001 * step
        else:
            assert torch.equal(new, old)
    assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])


def test_the_rest_may_cost_as_much_as_the_suite_says(
    act: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, model = context_and_model(tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss_by_error(_: Context, model: torch.nn.Module) -> float:
        kept = before["transformer.wte.weight"]
        error = (model.get_parameter("transformer.wte.weight") - kept).square().mean() / kept.square().mean()
        return 1.0 + float(error)  # a step of r sigma adds r^2 / 12

    monkeypatch.setattr(Context, "validation_cross_entropy", loss_by_error)
    method = HQQ(bits=(3,), rest_losses=(0.01, 0.05))
    points = method.points()
    assert points[0] == HQQ(bits=(3,)).points()[0], "what is published keeps its key"
    assert points[1].options == {"bits": 3, "group_size": 64, "rest_loss": 0.05}
    rows = []
    for point in points:
        model.load_state_dict(before, strict=False)
        rows.append(method.apply(model, point, context, tmp_path / "model.rdo"))
    assert [row["completion_relative_step"] for row in rows] == [0.3, 0.7]
    assert rows[0]["peer_seconds"] == rows[1]["peer_seconds"], "the peer was asked once"
    with pytest.raises(ConfigError, match="positive shares"):
        HQQ(rest_losses=(0.0,))


def test_other_parameters_that_change_with_the_matrices_are_in_the_file(act: Path, tmp_path: Path) -> None:
    act.write_text("rescale")
    context, model = context_and_model(tmp_path)
    norms = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 1}
    row = HQQ(bits=(3,)).apply(model, HQQ(bits=(3,)).points()[0], context, tmp_path / "model.rdo")
    assert row["batches"] == 8  # what a worker says of itself is in the row
    weights = decoded(*load_quantized(tmp_path / "model.rdo"))
    changed = [name for name, norm in norms.items() if not torch.equal(weights[name], norm)]
    assert changed == ["transformer.h.0.ln_1.weight"]
    assert weights[changed[0]].tolist() == [0.25] * 64
    act.write_text("rescale what is not there")
    context, model = context_and_model(tmp_path, "llama-small")
    with pytest.raises(PeerError, match=r"gave back no\.such\.weight, and the model has no such parameter"):
        HQQ(bits=(3,)).apply(model, HQQ(bits=(3,)).points()[0], context, tmp_path / "model.rdo")


def test_quanto_has_8_bits_in_rows_and_fewer_in_groups() -> None:
    options = [point.options for point in Quanto(group_sizes=(64, 32), bits=(8, 2)).points()]
    assert [(chosen["bits"], chosen["group_size"]) for chosen in options] == [(8, 0), (2, 64), (2, 32)]
    with pytest.raises(ConfigError, match=r"quanto has integers of 8, 4 or 2 bits, got `bits` \[3\]"):
        Quanto(bits=(3,))


def test_the_same_question_is_asked_once(act: Path, tmp_path: Path) -> None:
    rows = []
    for _ in range(2):
        context, model = context_and_model(tmp_path, "llama-small")
        method = Wanda(sparsities=(0.5,), relative_steps=(0.2, 0.4))
        rows += [method.apply(model, point, context, tmp_path / "model.rdo") for point in method.points()[:1]]
        coded, _ = load_quantized(tmp_path / "model.rdo")
        assert all((coded[name].symbols == 0).float().mean() >= 0.5 for name in linear_matrices(model))
    assert (tmp_path / "calls").read_text() == "x"
    assert rows[0] == rows[1]
    assert len([path for path in (tmp_path / "peers").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("pruner", ["magnitude", "sparsegpt", "wanda"])
def test_quantisation_after_pruning(act: Path, tmp_path: Path, pruner: str) -> None:
    method = GPTQ(bits=(3,), pruner=pruner, sparsities=(0.5, 0.8))
    points = method.points()
    assert [(point.sparsity, point.options["pruner"]) for point in points] == [(0.5, pruner), (0.8, pruner)]
    for point in points:
        context, model = context_and_model(tmp_path)
        row = method.apply(model, point, context, tmp_path / "model.rdo")
        coded, _ = load_quantized(tmp_path / "model.rdo")
        assert row["levels"] <= 2**3
        for name in linear_matrices(model):
            symbols = coded[name].symbols
            assert (symbols == 0).float().mean() >= point.sparsity - 0.001
            assert int(symbols.max() - symbols.min()) + 1 <= 2**3


def test_what_prunes_before_quantisation_is_known_and_has_a_share() -> None:
    with pytest.raises(ConfigError, match=r"one of magnitude, sparsegpt, wanda, got .random."):
        GPTQ(pruner="random", sparsities=(0.5,))
    with pytest.raises(ConfigError, match="give `pruner` and `sparsities` together"):
        GPTQ(pruner="magnitude")


@pytest.mark.parametrize(
    ("what", "method", "message"),
    [
        ("nothing", HQQ(bits=(3,)), r"hqq changed 0 of the 98304 weights that it supports"),
        ("too many levels", HQQ(bits=(3,)), r"15 different weights share a scale, 3 bits were asked for"),
        ("too dense", Wanda(relative_steps=(0.2,)), r"\d+\.\d+% of the weights are zero, 50\.00% were asked for"),
        (
            "too dense",
            GPTQ(bits=(8,), pruner="magnitude", sparsities=(0.8,)),
            r"\d+\.\d+% of the weights are zero, 80\.00% were asked for",
        ),
        ("fail", HQQ(bits=(3,)), r"(?s)stand_in_peer\.py failed with exit code 1.*RuntimeError: the stand-in fails"),
        ("sleep", HQQ(bits=(3,)), r"took longer than 5 s and was stopped"),
    ],
)
def test_what_did_not_do_what_was_asked_is_refused(
    act: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, method: PeerMethod, message: str
) -> None:
    act.write_text(what)
    if what == "sleep":
        monkeypatch.setitem(catalogue.PEERS, "hqq", replace(catalogue.PEERS["hqq"], timeout=5.0))
    context, model = context_and_model(tmp_path)
    with pytest.raises(PeerError, match=message):
        method.apply(model, method.points()[0], context, tmp_path / "model.rdo")
    assert not (tmp_path / "model.rdo").exists()
    assert [path for path in (tmp_path / "peers").iterdir() if path.name.startswith(".asking")] == []


def test_whole_models_are_written_for_transformers(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    from rdo_harness.peers.exchange import _save_model

    _, model = context_and_model(tmp_path)
    _save_model(catalogue.PEERS["gptq"], model, tmp_path / "model")
    loaded, info = GPT2LMHeadModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(PeerError, match="whole transformers models, Linear is none"):
        _save_model(catalogue.PEERS["gptq"], torch.nn.Linear(2, 2), tmp_path / "other")


@pytest.mark.parametrize("most_loss", [0.0, 1e-4, 1e-3, 1e-2, 1.0])
def test_what_a_peer_leaves_gets_the_coarsest_step_that_is_allowed_in_few_trials(most_loss: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 30)
    original = model.weight.detach().clone()
    quantizers = [RelativeQuantizer(ratio) for ratio in (0.7, 0.1, 1.0, 0.2, 0.05, 0.4, 0.3)]
    trials = 0

    def loss(model: torch.nn.Module) -> float:
        nonlocal trials
        trials += 1
        return 1.0 + float((model.weight - original).square().mean())  # type: ignore[operator]

    def raised(quantizer: RelativeQuantizer) -> float:
        return float((quantizer.quantize(original, "weight").dequantize() - original).square().mean())

    architecture = SimpleNamespace(compressible=lambda name, tensor: tensor.ndim == 2)
    context: Any = SimpleNamespace(architecture=architecture, validation_cross_entropy=loss)
    found = complete(model, (), quantizers, context, most_loss)
    allowed = [quantizer for quantizer in quantizers if raised(quantizer) <= most_loss]
    wanted = max(allowed, key=lambda quantizer: quantizer.ratio, default=quantizers[4])
    assert found.chosen == wanted.config()
    assert found.cross_entropy == pytest.approx(1.0 + raised(wanted), abs=1e-7)
    assert trials <= 1 + 3 + 1
    assert torch.equal(model.weight, original)
