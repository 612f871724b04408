"""GPTQ, AWQ, SparseGPT, Wanda of llmcompressor.

Options: ``bits`` and ``group_size``, ``pruner`` and ``sparsity``, or both; ``activation_aware`` asks for AWQ
instead of GPTQ. A group size of 0 makes groups of whole rows. In the sequential pipeline later layers see the
changed earlier ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
    zeros: dict[str, torch.Tensor] = {}
    before = _Before.of(model, job) if job.options.get("activation_aware") else None
    for recipe in _recipes(model, job.options, modules):
        oneshot(
            model=model,
            processor=processor,
            recipe=recipe,
            dataset=torch.utils.data.DataLoader(job.calibration(), batch_size=None),
            pipeline="sequential",
            sequential_targets=_layers(model),
        )
        for name in modules:  # GPTQ's corrections move some of the zeros of a pruner before it: they are put back
            weight = model.get_submodule(name).weight
            if name in zeros:
                weight.data[zeros[name]] = 0.0
            elif job.options.get("pruner"):
                zeros[name] = weight.detach() == 0
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


def _recipes(model: Any, options: dict[str, Any], modules: list[str]) -> list[list[Any]]:
    """What to apply, one after the other."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    recipes: list[list[Any]] = []
    if options.get("pruner"):
        kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[options["pruner"]]
        recipes.append([kind(sparsity=options["sparsity"], targets=modules)])
    if options.get("bits"):
        size, aware = options["group_size"], options.get("activation_aware", False)
        scheme = {"num_bits": options["bits"], "type": "int", "symmetric": not aware}
        scheme |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
        groups = {"all": {"targets": modules, "weights": scheme}}
        if aware:
            found = _RESCALED.get(model.config.model_type)
            mappings = None if found is None else [AWQMapping(*mapping) for mapping in found]
            recipes.append([AWQModifier(mappings=mappings), QuantizationModifier(config_groups=groups)])
        else:
            recipes.append([GPTQModifier(config_groups=groups)])
    return recipes


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
