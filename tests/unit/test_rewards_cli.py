"""`rlplatform reward test`: rows in, verdicts out, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlplatform.reward_test import RowsError, read_rows, run_reward_test

ROWS = [
    {"completion": r"<think>3+4</think>\boxed{7}", "answer": "7", "prompt": "3+4?", "id": "a"},
    {"completion": r"\boxed{8}", "answer": "7", "prompt": [{"role": "user", "content": "3+4?"}]},
    {"completion": r"\boxed{7}", "answer": None},
    {"completion": [{"role": "assistant", "content": r"\boxed{7}"}], "answer": 7, "thinking": False},
    {"completion": "", "answer": "7"},
]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "def short(completions, **columns):\n"
        "    return [1.0 / (1 + len(c)) for c in completions]\n"
        "def broken(completions, answer):\n"
        "    return [float(a[0]) for a in answer]\n"
        "async def logs(completions, log_extra):\n"
        "    log_extra('length', [len(c) for c in completions])\n"
        "    return [0.5] * len(completions)\n"
    )
    return path


def test_built_in(rows_file, tmp_path, capsys):
    out = tmp_path / "deep" / "verdicts.jsonl"
    assert run_reward_test("math", rows_file, out, timeout_s=20.0) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [
        {k: v for k, v in row.items() if k not in ("score", "status", "parts", "seconds")} for row in written
    ] == ROWS
    assert [(row["score"], row["status"]) for row in written] == [
        (1.0, "ok"),
        (0.0, "ok"),
        (0.0, "unparseable"),
        (1.0, "ok"),
        (0.0, "ok"),
    ]
    assert written[0]["parts"] == {"math": 1.0}
    assert written[2]["parts"] == {}
    assert all(row["seconds"] >= 0 for row in written)
    told = capsys.readouterr().out
    assert "status: ok 4, unparseable 1" in told
    assert "mean 0.5000" in told
    assert str(out) in told


def test_limit(rows_file, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    assert run_reward_test("format", rows_file, out, limit=2) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1.0, 0.0]


def test_errors_show_the_first_traceback_and_exit_0(rows_file, user_file, capsys):
    assert run_reward_test(f"{user_file}:broken", rows_file, None, timeout_s=20.0) == 0
    told = capsys.readouterr().out
    assert "first failure of" in told
    assert f'File "{user_file}", line 4, in broken' in told
    assert "TypeError" in told
    assert "status: ok 3, error 2" in told  # None and 7 cannot be indexed


def test_logged_columns_are_shown(rows_file, user_file, capsys):
    assert run_reward_test(f"{user_file}:logs", rows_file, None) == 0
    assert "length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mth", '{"completion": "x"}', ["did you mean 'math'"]),
        ("math", "", ["expected at least one row"]),
        ("math", '{"completion": "x"}\nnot json\n', ["line 2", "not JSON"]),
        ("math", "[1]", ["line 1", "expected a JSON object, got list"]),
        ("math", '{"text": "x"}', ["line 1", "`completion`", "the row has text"]),
        ("math", '{"completion": 7}', ["line 1", "`completion`", "7"]),
    ],
)
def test_what_cannot_be_read_is_named_and_exits_2(tmp_path, capsys, name, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert run_reward_test(name, path, None) == 2
    told = capsys.readouterr().err
    for word in words:
        assert word in told


def test_absent_file(tmp_path, capsys):
    assert run_reward_test("math", tmp_path / "none.jsonl", None) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert read_rows(path) == ROWS
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RowsError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_rows(path)
    path.write_text("plain")
    with pytest.raises(RowsError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_rows(path)


def test_the_command(rows_file, user_file, tmp_path):
    """From the folder of the file, as a newcomer types it."""
    command = [sys.executable, "-m", "rlplatform", "reward", "test", "my_rewards.py:short", "--data", str(rows_file)]
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [*command, "--out", "verdicts.jsonl", "--rows", "3"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "my_rewards.py:short, 3 rows" in result.stdout
    written = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [list(row["parts"]) for row in written] == [["short"]] * 3
