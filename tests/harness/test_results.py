from __future__ import annotations

from pathlib import Path

import pytest

from rdo_harness.results import append_row, read_rows


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x.jsonl"
    for number in range(3):
        append_row(path, {"key": str(number), "text": "a\nb", "value": 0.1 * number, "none": None})
    assert [row["key"] for row in read_rows(path)] == ["0", "1", "2"]
    assert read_rows(path)[1] == {"key": "1", "text": "a\nb", "value": 0.1, "none": None}


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_row_survives(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_row(path, {"key": "whole"})
    whole = path.read_bytes()
    line = b'{"key": "torn", "value": 12345}\n'
    for cut in range(1, len(line) - 1):
        path.write_bytes(whole + line[:cut])
        assert [row["key"] for row in read_rows(path)] == ["whole"]
        append_row(path, {"key": "next"})
        assert [row["key"] for row in read_rows(path)] == ["whole", "next"]


def test_not_a_number_never_enters_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"value": float("nan")})
    assert read_rows(path) == []


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "absent.jsonl") == []
