"""What the driver reads of a metrics file while a rank writes it."""

from __future__ import annotations

import os
from pathlib import Path

from pretrain.train import LinesAsWritten, drop_lines_after


def test_each_complete_line_is_returned_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    new_lines = LinesAsWritten(path)
    assert new_lines() == []  # no file yet
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert new_lines() == ['{"step": 1}', '{"step": 2}']
    assert new_lines() == []
    with open(path, "a") as file:
        file.write('ep": 3}\n')
    assert new_lines() == ['{"step": 3}']


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("a\nb\n")
    new_lines = LinesAsWritten(path)
    assert new_lines() == ["a", "b"]
    anew = tmp_path / "anew"
    anew.write_text("a\nb\nc\n")
    os.replace(anew, path)
    assert new_lines() == ["a", "b", "c"]


def test_a_shortened_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("a\nb\n")
    new_lines = LinesAsWritten(path)
    assert new_lines() == ["a", "b"]
    with open(path, "r+") as file:
        file.truncate(2)
    assert new_lines() == ["a"]


def test_lines_of_steps_that_run_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "skipped_steps.jsonl"
    drop_lines_after(path, 3)
    assert not path.exists()
    path.write_text('{"step": 2, "text": "a\u2028b"}\n{"step": 4}\n{"step": 3}\n{"st', encoding="utf-8")
    drop_lines_after(path, 3)
    assert path.read_text(encoding="utf-8") == '{"step": 2, "text": "a\u2028b"}\n{"step": 3}\n'
