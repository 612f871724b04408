"""The command ``rdo evaluate``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdo_harness.cli_options import Commands, dtype_from, print_json
from rdo_harness.tables import print_table

if TYPE_CHECKING:
    import torch

    from rdo_harness.lm_evaluation import TaskMetric
    from rdo_harness.model_files import FolderSize

_DESCRIPTION = """\
Run tasks of lm-evaluation-harness on causal language models in compressed or plain folders, and print every metric
beside the size of the weights on the disk, so that a compressed model can be held against what it was made from. Needs
the extra `lm-eval`; a task fetches its data from the Hugging Face hub."""
_EXAMPLES = """\
examples:
  rdo evaluate smollm2-rdo/ --tasks wikitext,hellaswag
  rdo evaluate smollm2/ smollm2-rdo/ --tasks hellaswag --limit 200 --device cuda
  rdo evaluate smollm2-rdo/ --tasks my_task --include-path tasks/ --json

`lm-eval ls tasks` lists what there is. Nothing that comes with a model or a data set is run; the Python functions that
task files name are, those under --include-path too.
"""


def add_command(commands: Commands) -> None:
    """Add the command; it sets ``func``, which takes the parsed arguments and returns an exit code."""
    parser = commands.add_parser(
        "evaluate",
        help="run tasks of lm-evaluation-harness on model folders",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="compressed or plain model folder")
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="tasks, groups, or patterns like mmlu_*")
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N items of each task only")
    parser.add_argument(
        "--shots", type=int, metavar="N", help="solved examples before each item (default: what the task asks for)"
    )
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="items at once (default: 8)")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda (default: cpu)")
    parser.add_argument("--dtype", help="data type of the weights in memory (default: that of the folder)")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="folder with task files (YAML) of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=_evaluate)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got {text!r}")
    return int(text)


def _evaluate(arguments: argparse.Namespace) -> int:
    from rdo.checkpoint.on_device import device_of
    from rdo_harness.model_files import folder_size

    device, dtype = device_of(arguments.device), dtype_from(arguments.dtype)
    sizes = {folder: folder_size(folder) for folder in arguments.folders}
    found = {folder: _metrics(folder, arguments, device, dtype) for folder in sizes}
    if arguments.json:
        models = [
            {
                "folder": str(folder),
                **asdict(size),
                "bits_per_parameter": size.bits_per_parameter,
                "metrics": [asdict(metric) for metric in found[folder]],
            }
            for folder, size in sizes.items()
        ]
        return print_json({"limit": arguments.limit, "dtype": arguments.dtype, "models": models})
    columns = ("folder", "bytes", "bits/parameter", "task", "shots", "items", "metric", "better", "value", "stderr")
    print_table(columns, [_row(folder, sizes[folder], metric) for folder in sizes for metric in found[folder]])
    if arguments.limit is not None:
        print(
            f"\nThe first {arguments.limit:,} items of each task only (--limit): not to be compared with full results."
        )
    return 0


def _metrics(
    folder: Path, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype | None
) -> list[TaskMetric]:
    from rdo.errors import ConfigError
    from rdo_harness.architectures.hugging_face import HuggingFaceCausal, local_model
    from rdo_harness.lm_evaluation import evaluate_tasks

    source = local_model(folder, 1 << 20)
    if not isinstance(source, HuggingFaceCausal):
        raise ConfigError(f"{folder}: tasks of lm-evaluation-harness are for causal language models; this is another")
    return evaluate_tasks(
        source.load_to_run(dtype).to(device),
        source.tokenizer(),
        arguments.tasks.split(","),
        limit=arguments.limit,
        shots=arguments.shots,
        batch_size=arguments.batch_size,
        include_path=arguments.include_path,
    )


def _row(folder: Path, size: FolderSize, metric: TaskMetric) -> list[Any]:
    better = {True: "higher", False: "lower", None: "-"}[metric.higher_is_better]
    name = metric.metric if metric.filter == "none" else f"{metric.metric} ({metric.filter})"
    numbers = [metric.shots, metric.items, name, better, metric.value, metric.stderr]
    return [str(folder), size.file_bytes, size.bits_per_parameter, metric.task, *numbers]
