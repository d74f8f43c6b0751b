"""Benchmarks on a real engine: every set of the table, both modes, budgets, equal reruns, a kill survived."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.init import init_model
from model.tokenizer import train_bpe
from rlplatform.evaluation.benchmarks import BENCHMARKS

pytestmark = pytest.mark.timeout(900)

LENGTH, STOP = 24, "\n</think>\n\n"
BUDGETS = (0, 3, 9)
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "gsm8k/test.jsonl.gz": [{"question": f"What is {n} + 1?", "answer": f"Count on. #### {n + 1}"} for n in range(3)],
    "math500/test.jsonl.gz": [{"problem": "What is 2 + 2?", "answer": "4", "subject": "Algebra"}],
    "aime24/test.jsonl": [{"id": 60, "problem": "What is 7 + 1?", "solution": "8", "answer": "008", "year": "2024"}],
    "aime25/test.jsonl": [{"problem": "What is 7 + 2?", "answer": "9", "id": "0"}],
    "humaneval/HumanEval.jsonl": [
        {
            "task_id": "HumanEval/0",
            "prompt": "def one():\n    '''The number 1.'''\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
            "entry_point": "one",
        }
    ],
    "mbpp/mbpp.jsonl.gz": [
        {
            "task_id": task,
            "text": "Write a function that gives 1.",
            "code": "def one():\n    return 1",
            "test_list": ["assert one() == 1"],
            "test_setup_code": "",
        }
        for task in (2, 3, 4, 11)
    ],
    "ifeval/input_data.jsonl": [
        {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    ],
    "mmlu/test.jsonl.gz": [{"question": "1 + 1?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 1}],
    "mmlu/dev.jsonl": [{"question": "0 + 1?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 0}],
    "mmlu_redux/mmlu_redux.jsonl.gz": [
        {"question": "1 + 1?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 1, "error_type": "ok"}
    ],
    "bbh/bbh.jsonl.gz": [{"task": "navigate", "input": "Turn left. Are you back?", "target": "No"}],
    "bbh/cot_prompts.jsonl": [
        {"task": "navigate", "prompt": "Canary.\n-----\nFollow the steps.\n\nQ: a\nA: So it is No."}
    ],
    "mgsm/mgsm.jsonl.gz": [{"lang": "de", "question": "Was ist 1 + 1?", "answer": "2"}],
    "own/test.jsonl": [{"prompt": f"{n} + {n}?", "answer": str(2 * n), "domain": "sums"} for n in range(6)],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model and a row of every set, in the set's schema."""
    folder = tmp_path_factory.mktemp("benchmarks")
    texts = ["What is 12 + 34? think answer because", "user assistant system", "\n\n", '"answer": "A"'] * 20
    train_bpe(texts, 320, folder / "tokenizer")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 8192}
    init_model(folder / "model", str(folder / "tokenizer"), shape, 320, 0)
    for name, rows in ROWS.items():
        file = folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        opener = gzip.open if name.endswith(".gz") else open
        with opener(file, "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def command(place: Path, run_dir: Path, **values: Any) -> list[str]:
    config = {
        "kind": "benchmarks",
        "run_dir": str(run_dir),
        "data_dir": str(place / "data"),
        "limit": 6,
        "num_samples": 2,
        "max_prompt_tokens": 4000,
        "sampling": {"max_new_tokens": LENGTH, "thinking_stop_text": STOP},
        "model": {"path": str(place / "model")},
        "rollout": {"cpus_per_worker": 0.5, "kv_cache_gib": 0.25, "max_num_seqs": 32},
        **values,
    }
    file = run_dir.with_suffix(".yaml")
    file.write_text(json.dumps(config))
    return [sys.executable, "-m", "rlplatform", "run", str(file)]


def finish(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """The whole table in both modes, and budgets: one engine, one run."""
    finish(command(place, place / "whole", benchmarks=list(BENCHMARKS), budgets=list(BUDGETS)))
    return json.loads((place / "whole" / "results.json").read_text())


def entry(results: dict[str, Any], name: str, mode: str, budget: int | None = None) -> dict[str, Any]:
    (found,) = [e for e in results["entries"] if (e["benchmark"], e["mode"], e["budget"]) == (name, mode, budget)]
    return found


def test_every_set_is_measured_in_both_modes_and_at_every_budget(place: Path, whole: dict[str, Any]) -> None:
    for name, one in BENCHMARKS.items():
        for mode in ("dialogue",) if one.multi_turn else ("thinking", "non_thinking"):
            found = entry(whole, name, mode)
            assert 0 <= found["accuracy"] <= 1
            assert found.get("verdicts", {"ok": 1}).keys() <= {"ok", "rejected"}, (name, found["verdicts"])
            effective = whole["effective_sampling"][f"{name}-{mode}"]
            assert (effective["max_tokens"], effective["top_k"]) == (LENGTH, 20)
            assert effective["presence_penalty"] == (1.5 if mode == "non_thinking" else 0.0)
    assert entry(whole, "aime24", "thinking")["report"] == 81.4
    assert entry(whole, "thinkfollow", "dialogue")["turns"] >= 6 * 4
    for file in (
        "results.json",
        "report/benchmarks.png",
        "report/budget_own.png",
        "own-thinking/eval/step-000000.parquet",
    ):
        assert (place / "whole" / file).is_file()
    assert not (place / "whole" / "groups").exists()


@pytest.mark.parametrize("budget", BUDGETS)
def test_thinking_tokens_stay_within_the_budget_and_totals_within_the_length(
    place: Path, whole: dict[str, Any], budget: int
) -> None:
    from model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(place / "model"))
    frame = pd.read_parquet(place / "whole" / f"own-budget-{budget}" / "eval" / "step-000000.parquet")
    assert len(frame) == 12
    assert frame["length"].max() <= LENGTH
    for text in frame["completion"]:
        before, cut, _ = text.partition(STOP)
        if cut and before.startswith("<think>"):
            thought = tokenizer(before, add_special_tokens=False)["input_ids"]
            assert len(thought) <= budget or budget == 0
    found = entry(whole, "own", "thinking", budget)
    assert found["thinking_tokens"] + found["inserted_tokens"] + found["answer_tokens"] <= LENGTH
    assert found["thinking_tokens"] <= budget
    assert found["cut_share"] == (1.0 if budget == 0 else found["cut_share"])


def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_an_uninterrupted_one(
    place: Path, whole: dict[str, Any]
) -> None:
    """Both are also a rerun with the same seed."""
    values = {"benchmarks": ["own", "thinkfollow"], "modes": ["thinking"], "limit": 40, "num_samples": 8}
    values["paths"] = {"own": str(place / "many.jsonl")}
    rows = [{"prompt": f"{n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    (place / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish(command(place, place / "once", **values))
    arguments = command(place, place / "killed", **values)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    groups = place / "killed" / "groups"
    deadline = time.monotonic() + 600
    while not any(file.stat().st_size for file in groups.glob("*.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    recorded = sum(len(file.read_bytes().splitlines()) for file in groups.glob("*.jsonl"))
    assert recorded > 0
    finish(arguments)
    once, killed = ((place / run / "results.json").read_text() for run in ("once", "killed"))
    assert json.loads(killed)["entries"] == json.loads(once)["entries"]
    assert killed == once


def test_pass_at_k_of_the_engines_samples_is_that_of_all_subsets(place: Path, whole: dict[str, Any]) -> None:
    """Brute force over every subset of the recorded samples."""
    from itertools import combinations

    frame = pd.read_parquet(place / "whole" / "own-thinking" / "eval" / "step-000000.parquet")
    right = [[json.loads(parts)["math"] >= 1 for parts in own] for _, own in frame.groupby("prompt_id")["parts"]]
    found = entry(whole, "own", "thinking")
    assert found["pass_at_2"] == np.mean([np.mean([any(pair) for pair in combinations(one, 2)]) for one in right])
    assert found["accuracy"] == pytest.approx(np.mean(right))
