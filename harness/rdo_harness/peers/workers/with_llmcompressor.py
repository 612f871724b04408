"""GPTQ, AWQ, SparseGPT, Wanda and magnitude pruning of llmcompressor.

Options: ``bits`` and ``group_size``, ``pruner`` and ``sparsity``, or both; ``activation_aware`` asks for AWQ
instead of GPTQ. A group size of 0 makes groups of whole rows. In the sequential pipeline later layers see the
changed earlier ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peer_job import Answer, Job, main

_RESCALED = {
    "bert": [("re:.*attention.self.value$", ["re:.*attention.output.dense$"])],
    "gpt2": [("re:.*ln_1$", ["re:.*attn.c_attn$"]), ("re:.*ln_2$", ["re:.*mlp.c_fc$"])],
}
"""Where AWQ's scales go in models that the library knows nothing of: a layer, and those that read nothing but it.

BERT's norms feed the residual stream as well, and in both an activation stands between the two layers of the MLP.
"""
_MOST_ERROR = 1e-3


def work(job: Job) -> Answer:
    """Prune, quantise, or one after the other."""
    import tokenizers
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():  # AWQ pins memory for copies to an accelerator, and fails without one
        IntermediatesCache.pin_memory = lambda *_: None
    model = job.model()
    modules = [name.removesuffix(".weight") for name in job.matrices]
    # oneshot insists on something that processes text, though it is given token ids
    processor = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    before = _Before.of(model, job) if job.options.get("activation_aware") else None
    apply = partial(
        oneshot,
        model=model,
        processor=processor,
        dataset=torch.utils.data.DataLoader(job.calibration(), batch_size=None),
        pipeline="sequential",
        sequential_targets=_layers(model),
    )
    zeros = {}
    if pruner := job.options.get("pruner"):
        if pruner == "magnitude":
            _prune_by_magnitude(model, modules, job.options["sparsity"])
        else:
            apply(recipe=_pruning(pruner, modules, job.options["sparsity"]))
        zeros = {name: model.get_submodule(name).weight == 0 for name in modules}
    if job.options.get("bits"):
        apply(recipe=_quantization(model, job.options, modules))
        for name, zero in zeros.items():  # GPTQ's corrections move some of the zeros: they are put back
            model.get_submodule(name).weight.data[zero] = 0.0
    answer = Answer(packages=("llmcompressor", "compressed-tensors", "transformers"))
    if before is not None:
        changed = before.changed(model)
        answer.tensors = {name: parameter for name, parameter in changed.items() if name not in job.matrices}
        answer.facts = {"rescaled_matrices": sum(name in job.matrices for name in changed)}
        _check_same_function(model, job, before.outputs, answer.facts["rescaled_matrices"])
        _round(model, modules)
    for name in modules:
        module = model.get_submodule(name)
        answer.tensors[f"{name}.weight"] = module.weight.detach().float()
        if hasattr(module, "weight_scale"):
            answer.tensors[f"{name}.weight.scale"] = module.weight_scale.detach().float()
            answer.tensors[f"{name}.weight.zero_point"] = module.weight_zero_point.detach().float()
    answer.native_bytes = _saved_bytes(model, job.folder / "saved", modules)
    return answer


def _pruning(pruner: str, modules: list[str], sparsity: float) -> list[Any]:
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[pruner]
    return [kind(sparsity=sparsity, targets=modules)]


def _prune_by_magnitude(model: Any, modules: list[str], sparsity: float) -> None:
    """Zero the smallest weights of every matrix.

    The library's modifier is made for training, where it masks the weights after every step of the optimizer; oneshot
    has none, so it is told of one step here.
    """
    from llmcompressor.core import Event, EventType, State
    from llmcompressor.modifiers.pruning import MagnitudePruningModifier

    state = State(model=model)
    modifier = MagnitudePruningModifier(
        targets=modules,
        init_sparsity=sparsity,
        final_sparsity=sparsity,
        start=0,
        end=1,
    )
    modifier.initialize(state)
    modifier.update_event(state, Event(type_=EventType.OPTIM_POST_STEP))
    modifier.finalize(state)


def _quantization(model: Any, options: dict[str, Any], modules: list[str]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    size, aware = options["group_size"], options.get("activation_aware", False)
    scheme = {"num_bits": options["bits"], "type": "int", "symmetric": not aware}
    scheme |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    groups = {"all": {"targets": modules, "weights": scheme}}
    if not aware:
        return [GPTQModifier(config_groups=groups)]
    found = _RESCALED.get(model.config.model_type)
    mappings = None if found is None else [AWQMapping(*mapping) for mapping in found]
    return [AWQModifier(mappings=mappings), QuantizationModifier(config_groups=groups)]


@dataclass
class _Before:
    """A model before AWQ: copies of its parameters, and what it computes."""

    parameters: dict[str, torch.Tensor]
    outputs: torch.Tensor

    @classmethod
    def of(cls, model: Any, job: Job) -> _Before:
        copies = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        return cls(copies, _outputs(model, job))

    def changed(self, model: Any) -> dict[str, torch.Tensor]:
        """The parameters that are no longer what they were."""
        now = dict(model.named_parameters())
        lost = [name for name in self.parameters if name not in now]
        if lost:  # experts that share a parameter become one layer each
            raise ValueError(f"llmcompressor replaces {lost[0]}, and what AWQ made of it cannot be taken back")
        return {name: now[name] for name, copy in self.parameters.items() if not torch.equal(copy, now[name])}


@torch.no_grad()
def _outputs(model: Any, job: Job) -> torch.Tensor:
    """Of the first batch."""
    return model(**job.calibration()[0]).logits


def _check_same_function(model: Any, job: Job, plain: torch.Tensor, rescaled: int) -> None:
    """AWQ rescaled something, and before rounding the model computes what it did."""
    from compressed_tensors.quantization import disable_quantization, enable_quantization

    if not rescaled:
        raise ValueError(f"AWQ rescaled nothing in a {type(model).__name__}: this would be rounding to nearest")
    model.apply(disable_quantization)
    error = float((_outputs(model, job) - plain).abs().max() / plain.abs().max())
    model.apply(enable_quantization)
    if not error < _MOST_ERROR:
        raise ValueError(f"AWQ changed what the model computes: its outputs differ by {error:.2g} of the largest")


@torch.no_grad()
def _round(model: Any, modules: list[str]) -> None:
    """Replace weights by what the library computes with in their place; AWQ leaves that to its forward pass."""
    from compressed_tensors.quantization import forward_quantize

    for module in map(model.get_submodule, modules):
        weights = module.quantization_scheme.weights
        module.weight.copy_(forward_quantize(module, module.weight, "weight", weights))


def _layers(model: Any) -> list[str]:
    """Class names of the blocks: the members of the model's longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return sorted({type(block).__name__ for block in max(lists, key=len)})


def _saved_bytes(model: Any, folder: Path, modules: list[str]) -> int:
    """Bytes of the changed modules in the library's own file, of a model in bfloat16 as is usual; biases left out."""
    model.to(torch.bfloat16).save_pretrained(str(folder), save_compressed=True)
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for key, entry in header.items():
            module, _, part = key.rpartition(".")
            if module in modules and part != "bias":
                begin, end = entry["data_offsets"]
                total += end - begin
    return total


if __name__ == "__main__":
    main(work)
