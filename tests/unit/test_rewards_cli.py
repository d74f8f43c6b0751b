"""`rlplatform reward test`: rows in, verdicts out, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlplatform.datafiles import DataError
from rlplatform.reward_rows import batches, groups_of, read_rows
from rlplatform.reward_test import run_reward_test

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
    assert run_reward_test(["math"], rows_file, out, timeout_s=20.0) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [
        {k: v for k, v in row.items() if k not in ("score", "status", "parts", "detail", "seconds")} for row in written
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
    assert run_reward_test(["format"], rows_file, out, limit=2) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1.0, 0.0]


def test_errors_show_the_first_traceback_and_exit_0(rows_file, user_file, capsys):
    assert run_reward_test([f"{user_file}:broken"], rows_file, None, timeout_s=20.0) == 0
    told = capsys.readouterr().out
    assert "first failure of" in told
    assert f'File "{user_file}", line 4, in broken' in told
    assert "TypeError" in told
    assert "status: ok 3, error 2" in told  # None and 7 cannot be indexed


def test_logged_columns_are_shown(rows_file, user_file, capsys):
    assert run_reward_test([f"{user_file}:logs"], rows_file, None) == 0
    assert "length" in capsys.readouterr().out


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_deadline_that_is_none_exits_2(tmp_path, capsys, timeout_s):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "7", "answer": "7"}')
    assert run_reward_test(["exact"], path, None, timeout_s=timeout_s) == 2
    assert "timeout_s > 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mth", '{"completion": "x"}', ["did you mean 'math'"]),
        ("math", "", ["expected at least one row"]),
        ("math", '{"completion": "x"}\nnot json\n', ["rows.jsonl:2", "expected one JSON object a line"]),
        ("math", '{"completion": "\\ud800", "answer": "1"}\n', ["rows.jsonl:1", "half of a character"]),
        ("math", '{"completion": "1", "answer": "1", "prompts": "x"}\n', ["'prompts'", "rename the column"]),
        ("group_length", '{"completion": "1", "prompt": "p"}\n{"completion": "2"}', ["row 1", "`prompt` or a `group`"]),
        ("math", "[1]", ["rows.jsonl:1", "expected a JSON object, got list"]),
        ("math", '{"text": "x"}', ["rows.jsonl:1", "`completion`", "the row has text"]),
        ("math", '{"completion": 7}', ["rows.jsonl:1", "`completion`", "7"]),
        ("math", '{"completion": "7", "expect": true}', ["jsonl:1", "expect", "a score or one of ok, timeout", "True"]),
        ("math", '{"completion": "7", "expect": NaN}', ["rows.jsonl:1", "expect", "nan"]),
        ("math", '{"completion": "7", "expect": "wrong"}', ["rows.jsonl:1", "expect", "'wrong'"]),
    ],
)
def test_what_cannot_be_read_is_named_and_exits_2(tmp_path, capsys, name, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert run_reward_test([name], path, None) == 2
    told = capsys.readouterr().err
    for word in words:
        assert word in told


def test_absent_file(tmp_path, capsys):
    assert run_reward_test(["math"], tmp_path / "none.jsonl", None) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert read_rows(path) == ROWS
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_rows(path)
    path.write_text("plain")
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_rows(path)


class TestExpect:
    """Row, expected, got: what disagrees is shown, counted, and the exit code is 1."""

    @pytest.fixture
    def expecting(self, tmp_path) -> Path:
        rows = [
            {"completion": r"\boxed{7}", "answer": "7", "expect": 1},
            {"completion": r"\boxed{8}", "answer": "7", "expect": 1.0},
            {"completion": r"\boxed{7}", "answer": "", "expect": "unparseable"},
            {"completion": r"\boxed{7}", "answer": "7", "expect": "timeout"},
            {"completion": r"\boxed{7}", "answer": "", "expect": 0.0},
            {"completion": r"\boxed{9}", "answer": "7", "expect": None},
            {"completion": r"\boxed{7}", "answer": "7", "expect": 0.99995},
        ]
        path = tmp_path / "expecting.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_disagreements(self, expecting, capsys):
        assert run_reward_test(["math"], expecting) == 1
        told = capsys.readouterr().out
        assert "expect: 3 of 6 rows got what they expect" in told
        table = told[told.index("disagreements: 3") :]
        found = [tuple(cell.strip() for cell in line.split("│")[1:4]) for line in table.splitlines() if "│" in line]
        assert [row for row in found if row[0]] == [
            ("1", "1", "0"),
            ("3", "timeout", "1"),
            ("4", "0", "unparseable"),
        ]

    def test_rows_that_agree_exit_0(self, expecting, tmp_path):
        lines = expecting.read_text().splitlines()
        path = tmp_path / "agreeing.jsonl"
        path.write_text("\n".join([lines[0], lines[2], lines[5], lines[6]]))
        assert run_reward_test(["math"], path) == 0
        assert run_reward_test(["math"], path, strict=True) == 0  # the one row that is not ok expects it

    def test_functions_do_not_see_it(self, tmp_path):
        (tmp_path / "peek.py").write_text("def peek(completions, **columns): return [float(len(columns))]\n")
        (tmp_path / "rows.jsonl").write_text('{"completion": "x", "answer": "y", "expect": 6.0}\n')
        # answer, and what the platform supplies: completion_ids, trainer_state, log_extra, log_metric, prompts
        assert run_reward_test([f"{tmp_path}/peek.py:peek"], tmp_path / "rows.jsonl") == 0


def test_strict_exits_1_on_any_row_without_a_verdict(rows_file, capsys):
    assert run_reward_test(["math"], rows_file, strict=True) == 1
    assert "--strict: 1 rows have no ok verdict: 2" in capsys.readouterr().out


def test_times_are_told_and_the_slowest_rows_named(tmp_path, capsys):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom rewards.base import rowwise\n@rowwise\n"
        "def slow(completions, wait, **kw):\n    [time.sleep(w) for w in wait]\n    return [1.0] * len(wait)\n"
    )
    waits = [0.0, 0.0, 0.4, 0.0, 0.2]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"completion": "x", "wait": w}) + "\n" for w in waits))
    assert run_reward_test([f"{tmp_path}/slow.py:slow"], tmp_path / "rows.jsonl") == 0
    told = capsys.readouterr().out
    assert "ms a row: median " in told
    assert "slowest rows: 2 (" in told
    assert " ms), 4 (" in told


class TestGroups:
    def test_a_function_of_groups_gets_each_group_whole(self, tmp_path, capsys):
        (tmp_path / "ranks.py").write_text(
            "from rewards.base import groupwise\n@groupwise\n"
            "def shortest(completions, **kw):\n"
            "    least = min(map(len, completions))\n    return [float(len(c) == least) for c in completions]\n"
        )
        texts = ["aa", "bbb", "c", "dd", "e"]
        by_prompt = [{"completion": t, "prompt": p} for t, p in zip(texts, "xyxyx", strict=True)]
        by_group = [{"completion": t, "prompt": "same", "group": g} for t, g in zip(texts, "xyxyx", strict=True)]
        for rows in (by_prompt, by_group):
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            out = tmp_path / "verdicts.jsonl"
            assert run_reward_test([f"{tmp_path}/ranks.py:shortest"], tmp_path / "rows.jsonl", out) == 0
            assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [0.0, 0.0, 1.0, 1.0, 1.0]
        (tmp_path / "rows.jsonl").write_text('{"completion": "a"}\n')
        assert run_reward_test([f"{tmp_path}/ranks.py:shortest"], tmp_path / "rows.jsonl") == 2
        assert "a column `group`" in capsys.readouterr().err

    def test_sampled_ids_of_a_row_arrive_as_such(self, tmp_path):
        rows = [{"completion": "x", "group": 1, "completion_ids": ids} for ids in ([1], [1, 2, 3], [1, 2])]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / "verdicts.jsonl"
        assert run_reward_test(["group_length"], tmp_path / "rows.jsonl", out) == 0
        assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [0.5, -0.5, 0.0]

    def test_batches_divide_no_group(self):
        rows = [{"completion": "", "group": number % 10} for number in range(100)]
        found = batches(100, groups_of(rows))
        assert sorted(number for batch in found for number in batch) == list(range(100))
        assert [len(batch) for batch in found] == [60, 40]
        assert all(len({number % 10 for number in batch}) == len(batch) / 10 for batch in found)
        assert batches(130, None) == [list(range(64)), list(range(64, 128)), [128, 129]]


class TestSeveralFunctionsAndSettings:
    @pytest.fixture
    def settings_file(self, tmp_path) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(
            "def scaled(completions, *, by: float = 1.0, names: tuple = (), **kw):\n"
            "    return [by + len(names) for _ in completions]\n"
            "def other(completions, *, by=0.0, **kw):\n    return [by for _ in completions]\n"
        )
        return path

    def scores(self, tmp_path, *arguments, **keywords) -> list[float]:
        (tmp_path / "rows.jsonl").write_text('{"completion": "x", "answer": "7", "task": "words"}\n')
        out = tmp_path / "verdicts.jsonl"
        assert run_reward_test(*arguments, tmp_path / "rows.jsonl", out, **keywords) == 0
        return [json.loads(line)["score"] for line in out.read_text().splitlines()]

    def test_settings(self, settings_file, tmp_path):
        scaled = [f"{settings_file}:scaled"]
        assert self.scores(tmp_path, scaled) == [1.0]
        assert self.scores(tmp_path, scaled, args=["by=1e-1", "names=[a, b]"]) == [2.1]
        assert self.scores(tmp_path, scaled, args=["scaled.by=5"]) == [5.0]

    def test_several(self, settings_file, tmp_path, capsys):
        both = [f"{settings_file}:scaled", f"{settings_file}:other"]
        assert self.scores(tmp_path, both, args=["other.by=0.5", "scaled.by=2"]) == [2.5]
        assert "scaled" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["size=1"], ["settings by, names", "'size'"]),
            (["by"], ["'by'", "expected key=value"]),
            (["by=[1"], ["'by=[1'", "YAML"]),
            (["=1"], ["expected key=value"]),
        ],
    )
    def test_settings_that_are_wrong(self, settings_file, rows_file, capsys, args, words):
        assert run_reward_test([f"{settings_file}:scaled"], rows_file, args=args) == 2
        told = capsys.readouterr().err
        for word in words:
            assert word in told

    def test_which_function_is_meant_must_be_said(self, rows_file, capsys):
        assert run_reward_test(["math", "format"], rows_file, args=["by=1"]) == 2
        assert "expected NAME.key=value, with NAME one of math, format" in capsys.readouterr().err
        assert run_reward_test(["math", "format"], rows_file, args=["formt.by=1"]) == 2
        assert "did you mean 'format'" in capsys.readouterr().err

    def test_the_composed_reward_of_a_config(self, settings_file, tmp_path):
        """Weight, gate, routing and clipping, as a run would compute it: by hand."""
        (tmp_path / "reward.yaml").write_text(
            f"""
reward:
  functions:
    exact: 0.5
    gated: {{function: "{settings_file}:scaled", weight: 100, needs: exact}}
    clipped: {{function: "{settings_file}:scaled", weight: 2, clip: [0, 3], args: {{by: 9}}}}
    elsewhere: {{function: "{settings_file}:scaled", weight: 1000, when: {{task: code}}}}
"""
        )
        # exact 0 -> gated counts 0; 2 * min(9, 3); `elsewhere` does not apply
        assert self.scores(tmp_path, [], config=tmp_path / "reward.yaml") == [6.0]
        assert self.scores(tmp_path, [], config=tmp_path / "reward.yaml", args=["clipped.by=1"]) == [2.0]

    def test_the_stage_of_a_recipe(self, tmp_path, capsys):
        recipe = Path(__file__).parents[2] / "configs" / "recipe" / "demo.yaml"
        assert self.scores(tmp_path, [], config=recipe) == [0.0]
        assert self.scores(tmp_path, [], config=recipe, stage="rl") == [0.0]
        assert run_reward_test([], tmp_path / "rows.jsonl", config=recipe, stage="sft") == 2
        assert "one of its stages with a reward, rl; got 'sft'" in capsys.readouterr().err

    def test_a_function_or_a_config(self, rows_file, tmp_path, capsys):
        assert run_reward_test([], rows_file) == 2
        assert run_reward_test(["math"], rows_file, config=tmp_path / "none.yaml") == 2
        assert run_reward_test([], rows_file, config=tmp_path / "none.yaml") == 2
        (tmp_path / "empty.yaml").write_text("reward: {}\n")
        assert run_reward_test([], rows_file, config=tmp_path / "empty.yaml") == 2
        told = capsys.readouterr().err.splitlines()
        for line, words in zip(told, ["got neither", "got both", "no such file", "reward.functions"], strict=True):
            assert words in line


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
