from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdo_harness import cli
from rdo_harness.run import rows_path
from rdo_harness.suite import load_suite


def test_list_names_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "suites": {"quickstart", "classification", "language-model"},
        "methods": {"rtn", "pruning", "backslash", "lp"},
        "tasks": {"trec", "wikitext2-bytes"},
        "architectures": {"minilm", "gpt-small", "llama-small"},
        "coders": {"fixed_length", "exp_golomb", "huffman", "rans"},
        "entropy-models": {"generalized_gaussian", "laplace", "gaussian", "lp", "pareto"},
    }
    for what, names in expected.items():
        assert cli.main(["list", what, "--json"]) == 0
        entries = json.loads(capsys.readouterr().out)
        assert names <= {entry["name"] for entry in entries}
        for text in (entry["description"] for entry in entries):
            assert text.endswith(".") or what == "suites", text
            assert ":`" not in text, f"a role of Sphinx in a terminal: {text}"
        assert cli.main(["list", what]) == 0
        assert names <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_a_run_ends_with_table_figure_and_page_and_can_be_repeated(
    tiny_suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert cli.main(["run", str(tiny_suite_file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 trainings and 10 operating points to do" in printed
    assert "normal + RTN" in printed
    for part in (
        "runs/tiny.jsonl",
        "tables/tiny.md",
        "tables/tiny.csv",
        "figures/tiny.svg",
        "figures/tiny.png",
        "tiny.html",
    ):
        assert (out / part).stat().st_size > 100, part
    rows = rows_path(out, load_suite(str(tiny_suite_file))).read_bytes()
    assert cli.main(["run", str(tiny_suite_file), "--out", str(out)]) == 0
    assert "10 finished earlier and kept" in capsys.readouterr().out
    assert rows_path(out, load_suite(str(tiny_suite_file))).read_bytes() == rows
    (out / "tables" / "tiny.md").unlink()
    assert cli.main(["report", str(tiny_suite_file), "--out", str(out)]) == 0
    assert (out / "tables" / "tiny.md").exists()


def test_a_dry_run_trains_nothing_and_says_how_long(
    tiny_suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scale in ("small", "full"):
        assert cli.main(["run", "paper-table4", "--scale", scale, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "meta-llama/Llama-3.2-1B" in printed
    assert "to do: 15 of 15 trainings (about 0.8 h of training); 15 of 15 operating points" in printed
    assert "to do: 12 of 12 trainings (about 10.0 h of training); 12 of 12 operating points" in printed
    assert cli.main(["run", str(tiny_suite_file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "to do: 3 of 3 trainings (3 of unknown time); 10 of 10 operating points" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.main(["run", str(tiny_suite_file), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli.main(["run", str(tiny_suite_file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("earlier rows") == 2, "one line for normal training, one for both lambdas"
    assert "to do: 0 of 3 trainings (about 0.0 h of training); 0 of 10 operating points" in printed


def test_misuse_is_exit_code_2_and_one_line(
    tiny_suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["run", "quikstart"], "did you mean 'quickstart'"),
        (["run", str(tiny_suite_file), "--methods", "rtm"], "did you mean 'rtn'"),
        (["run", str(tiny_suite_file), "--seeds", "0"], "1 or more"),
        (["report", str(tiny_suite_file), "--out", str(tmp_path / "absent")], "rdo run"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("rdo: error: ")
        assert error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        cli.main(["list", "nonsense"])
    assert caught.value.code == 2


def test_methods_are_named_by_labels_with_commas_in_quotes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dry-run", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(["run", "size-language-model", "--methods", '"QAT, one step", GPTQ', *options]) == 0
    printed = capsys.readouterr().out
    assert "QAT, one step" in printed
    assert "QAT, steps by scale" not in printed
    assert cli.main(["run", "size-language-model", "--methods", "QAT, one step", *options]) == 2
    assert "no method 'one step'; did you mean 'qat, one step'" in capsys.readouterr().err


def test_an_interrupt_says_what_is_kept(
    tiny_suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rdo_harness import progress

    def interrupt(self: object, row: object, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressDisplay, "finished", interrupt)
    assert cli.main(["run", str(tiny_suite_file), "--out", str(tmp_path / "out")]) == 130
    assert "1 finished points are kept" in capsys.readouterr().err


def test_the_command_starts_without_heavy_imports() -> None:
    code = (
        "import sys, rdo_harness.cli as c; c.build_parser(); "
        "print([m for m in ('transformers', 'numba', 'pandas', 'matplotlib', 'scipy', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "rdo_harness.cli", "list", "methods"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 0
