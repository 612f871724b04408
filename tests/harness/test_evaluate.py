"""``rdo evaluate``: tasks of lm-evaluation-harness over local files, on plain and compressed folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rdo import inspect_compressed
from rdo_harness import cli
from tests.integrations.hub_folders import bert, compress, decompress, llama, save

WORDS = [f"w{index}" for index in range(64)]
QUESTIONS = [
    {"question": f"w{i} w{(7 * i) % 64} w3", "choices": [f"w{(i + k) % 60 + 4}" for k in range(3)], "answer": i % 3}
    for i in range(20)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 3.0
"""
DOCUMENT = 'doc_to_text: ""\ndoc_to_target: question'


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plain Llama with a tokenizer of words, and its compressed folder at a step that changes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = save(llama(), tmp_path_factory.mktemp("evaluate") / "model")
    vocabulary = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", "<pad>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder, compress(folder, "--step", "2^-4")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    (path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (path / "words.yaml").write_text(TASK.format(name="words_choice", data=path / "questions.jsonl"))
    (path / "absent.yaml").write_text(TASK.format(name="absent_data", data=path / "nothing.jsonl"))
    return path


def right_answers(folder: Path) -> list[bool]:
    """Whether the likeliest choice is the right one, by transformers alone on a plain folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for item in QUESTIONS:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(item["question"])["input_ids"]])).logits[0, -1]
        choices = [logits[tokenizer(choice)["input_ids"][-1]] for choice in item["choices"]]
        found.append(int(torch.stack(choices).argmax()) == item["answer"])
    return found


def test_metrics_are_those_of_the_decoded_model(
    folders: tuple[Path, Path], tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    plain, small = folders
    arguments = ["evaluate", str(plain), str(small), "--tasks", "words_choice", "--include-path", str(tasks)]
    assert cli.main([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    expected = {"first": right_answers(plain), "second": right_answers(decompress(small))}
    assert expected["first"] != expected["second"], "the step is too fine for this test"
    for model, right in ((first, expected["first"]), (second, expected["second"])):
        [metric] = model["metrics"]
        assert metric["value"] == pytest.approx(sum(right) / len(right))
        mean = sum(right) / len(right)
        assert metric["stderr"] == pytest.approx((mean * (1 - mean) / (len(right) - 1)) ** 0.5)
        assert (metric["task"], metric["metric"], metric["items"], metric["version"]) == (
            "words_choice", "acc", 20, "3.0",
        )  # fmt: skip
        assert metric["higher_is_better"] is True
    info = inspect_compressed(small / "model.rdo")
    assert (second["file_bytes"], second["bits_per_parameter"]) == (info.file_bytes, info.bits_per_parameter)
    assert first["file_bytes"] == (plain / "model.safetensors").stat().st_size
    assert first["parameters"] == second["parameters"] == info.parameters
    assert (first["compressed"], second["compressed"]) == (False, True)
    assert cli.main([*arguments, "--limit", "4"]) == 0
    out = capsys.readouterr().out
    assert f"{info.file_bytes:,}" in out
    assert f"{sum(expected['second'][:4]) / 4:.4g}" in out
    assert "The first 4 items of each task only" in out


def test_a_tokenizer_without_ends_of_texts_is_named(
    folders: tuple[Path, Path], tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of the tutorial, on a task that reads whole texts."""
    pytest.importorskip("lm_eval")
    from transformers import AutoTokenizer

    folder = shutil.copytree(folders[0], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    task = TASK.format(name="texts", data=tasks / "questions.jsonl").replace("multiple_choice", "loglikelihood_rolling")
    task = task.replace("doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer", DOCUMENT)
    (tmp_path / "texts.yaml").write_text(task.replace("metric: acc", "metric: bits_per_byte"))
    assert cli.main(["evaluate", str(folder), "--tasks", "texts", "--include-path", str(tmp_path)]) == 1
    assert "set its eos_token" in capsys.readouterr().err


def test_what_cannot_be_run_says_why(
    folders: tuple[Path, Path], tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    small = str(folders[1])
    assert cli.main(["evaluate", small, "--tasks", "absent_data", "--include-path", str(tasks)]) == 1
    error = capsys.readouterr().err
    assert "could not run absent_data" in error
    assert "nothing.jsonl" in error
    assert cli.main(["evaluate", small, "--tasks", "words_choice", "--include-path", str(tmp_path / "no")]) == 2
    assert "expected a folder with task files" in capsys.readouterr().err


@pytest.mark.slow  # lm-evaluation-harness reads the files of thousands of tasks
def test_an_unknown_task_names_the_nearest(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    assert cli.main(["evaluate", str(folders[1]), "--tasks", "helaswag"]) == 2
    assert "knows no task 'helaswag'; did you mean 'hellaswag'?" in capsys.readouterr().err


def test_columns_of_a_suite(folders: tuple[Path, Path], tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task ``wikitext2`` runs tasks by name on what it tests."""
    pytest.importorskip("lm_eval")
    from rdo_harness.registries import ARCHITECTURES
    from rdo_harness.tasks.wikitext2_tokens import PreparedTokens, WikiText2

    architecture = ARCHITECTURES.get("hf")(path=str(folders[0]), max_length=32)
    text = " ".join(WORDS * 3).encode()
    task = WikiText2(context=8, lm_eval=("words_choice",), lm_eval_path=str(tasks), lm_eval_limit=10)
    prepared = PreparedTokens(task, architecture, {"train": text, "validation": text, "test": text})
    model = architecture.load()
    more = prepared.evaluate(model, "test").more
    assert more["lm_eval/words_choice/acc"] == pytest.approx(sum(right_answers(folders[0])[:10]) / 10)
    assert more.keys() == {"lm_eval/words_choice/acc", "lm_eval/words_choice/acc_stderr"}
    assert not prepared.evaluate(model, "validation").more
    assert "lm_eval" not in WikiText2().config(), "rows of suites without it keep their hash"


def test_the_table_without_the_package(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is ours of the command, by a stand-in for the library: what it is asked for, and what becomes of answers."""
    asked: dict[str, Any] = {}

    class Manager:
        all_tasks = ("one", "two")

        def __init__(self, include_path: str | None = None) -> None:
            assert include_path is None

        def match_tasks(self, names: list[str]) -> list[str]:
            return [name for name in self.all_tasks if name in names]

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        asked.update(options)
        results = {"one": {"alias": "one", "acc,none": 0.5, "acc_stderr,none": 0.25, "ppl,strict": 7.0}}
        higher = {"one": {"acc": True, "ppl": False}}
        return {"results": results, "higher_is_better": higher, "n-shot": {"one": 2}, "versions": {"one": 1}}

    library = SimpleNamespace(simple_evaluate=simple_evaluate)
    monkeypatch.setitem(sys.modules, "lm_eval", library)
    monkeypatch.setitem(sys.modules, "lm_eval.models", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", SimpleNamespace(HFLM=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=Manager))
    small = str(folders[1])
    assert cli.main(["evaluate", small, "--tasks", "one", "--shots", "2", "--limit", "7", "--dtype", "bfloat16"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][3:] == ["one", "2", "-", "acc", "higher", "0.5", "0.25"]
    assert lines[2][3:] == ["one", "2", "-", "ppl", "(strict)", "lower", "7", "-"]
    assert (asked["tasks"], asked["limit"], asked["num_fewshot"]) == (["one"], 7, 2)
    model = asked["model"].pretrained
    assert (model.dtype, model.training, model.config.use_cache) == (torch.bfloat16, False, True)
    assert cli.main(["evaluate", small, "--tasks", "twoo"]) == 2
    assert "knows no task 'twoo'; did you mean 'two'?" in capsys.readouterr().err


def test_misuse_is_explained(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["evaluate", str(folders[1]), "--tasks", "one"]) == 2
    assert "pip install 'backslash-rdo[lm-eval]'" in capsys.readouterr().err
    classifier = save(bert(), tmp_path / "bert")
    assert cli.main(["evaluate", str(classifier), "--tasks", "one"]) == 2
    assert "for causal language models" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "nowhere"), "--tasks", "one"]) == 2
    assert "expected a model folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(folders[1]), "--tasks", "one", "--limit", "0"])
    assert "a whole number from 1 on" in capsys.readouterr().err
