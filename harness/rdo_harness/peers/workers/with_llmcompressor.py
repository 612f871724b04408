"""GPTQ, SparseGPT, Wanda of llmcompressor. Options: ``bits`` and ``group_size``, ``pruner`` and ``sparsity``, or both.

A group size of 0 makes groups of whole rows. In the sequential pipeline later layers see the changed earlier ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peer_job import Answer, Job, main


def work(job: Job) -> Answer:
    """Prune, quantise, or one after the other."""
    import tokenizers
    import transformers
    from llmcompressor import oneshot

    model = job.model()
    modules = [name.removesuffix(".weight") for name in job.matrices]
    # oneshot insists on something that processes text, though it is given token ids
    processor = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    zeros: dict[str, torch.Tensor] = {}
    for modifier in _modifiers(job.options, modules):
        oneshot(
            model=model,
            processor=processor,
            recipe=[modifier],
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
    for name in modules:
        module = model.get_submodule(name)
        answer.tensors[f"{name}.weight"] = module.weight.detach().float()
        if hasattr(module, "weight_scale"):
            answer.tensors[f"{name}.weight.scale"] = module.weight_scale.detach().float()
            answer.tensors[f"{name}.weight.zero_point"] = module.weight_zero_point.detach().float()
    answer.native_bytes = _saved_bytes(model, job.folder / "saved", modules)
    return answer


def _modifiers(options: dict[str, Any], modules: list[str]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    modifiers = []
    if options.get("pruner"):
        kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[options["pruner"]]
        modifiers.append(kind(sparsity=options["sparsity"], targets=modules))
    if options.get("bits"):
        size = options["group_size"]
        scheme = {"num_bits": options["bits"], "type": "int", "symmetric": True}
        scheme |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
        modifiers.append(GPTQModifier(config_groups={"all": {"targets": modules, "weights": scheme}}))
    return modifiers


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
