"""Everything in examples/ that is a reward runs, and gives what its rows expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlplatform.reward_test import run_reward_test

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {
    "length_by_group.py:concise": "length_by_group.jsonl",
    "async_reward.py:looked_up": "async_reward.jsonl",
    "verl:verl_score.py:compute_score": "verl_score.jsonl",
    "my_reward.py:brevity": "rows.jsonl",
}


@pytest.mark.parametrize("name", RUNS)
def test_reward(name, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    assert run_reward_test([name], Path(RUNS[name]), strict=True) == 0, capsys.readouterr().out


def test_composed_reward(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES.parent)
    data = EXAMPLES / "composed_reward.jsonl"
    code = run_reward_test([], data, config=EXAMPLES / "composed_reward.yaml", strict=True)
    assert code == 0, capsys.readouterr().out


def test_no_example_is_left_out():
    """Run above, or by a command of a page, which tests/e2e/test_docs.py runs."""
    pages = "".join(page.read_text() for page in (EXAMPLES.parent / "docs").glob("*.md"))
    run = {name.removeprefix("verl:").partition(":")[0] for name in RUNS} | {*RUNS.values()}
    run |= {"composed_reward.jsonl", "composed_reward.yaml"}
    left_out = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - run
    assert {name for name in left_out if f"examples/{name}" not in pages} == set()
