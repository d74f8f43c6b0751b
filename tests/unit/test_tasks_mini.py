"""The data of the staged recipe: disjoint splits, and rows that the recipe's own filters and rewards take as meant."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewards.base import resolve
from rewards.response import parse
from rlplatform.config import FilterConfig, RecipeConfig, RLConfig, SampleConfig
from rlplatform.configfile import load, stages
from rlplatform.smoke import shorten
from rlplatform.stages.checklists import check_responses
from rlplatform.stages.fusion import usable
from rlplatform.stages.query_filters import not_verifiable
from rlplatform.stages.records import apply_filters
from rlplatform.tasks.mini import GENERAL, general_tasks, problems

CONFIG = Path(__file__).parents[2] / "configs/recipe/qwen3_mini.yaml"


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    sizes = {"num_direct": 300, "num_worked": 300, "num_teacher": 300, "num_queries": 100, "num_rl": 100}
    return problems(0, **sizes, num_test=50, num_general=60)


def test_equal_arguments_give_equal_rows(splits: dict[str, list[dict[str, Any]]]) -> None:
    sizes = {"num_direct": 300, "num_worked": 300, "num_teacher": 300, "num_queries": 100, "num_rl": 100}
    assert problems(0, **sizes, num_test=50, num_general=60) == splits
    assert problems(1, **sizes, num_test=50, num_general=60) != splits


def test_no_problem_is_in_two_splits(splits: dict[str, list[dict[str, Any]]]) -> None:
    def asked(rows: list[dict[str, Any]]) -> set[str]:
        texts = {row.get("prompt") or row["messages"][0]["content"] for row in rows}
        return {text.removeprefix("Work out: ") for text in texts if "What is" in text}

    names = ("base", "teacher", "queries", "rl", "test")
    found = {name: asked([row for row in splits[name] if "unverifiable" not in row["id"]]) for name in names}
    for one in names:
        for two in names:
            assert one == two or not found[one] & found[two], (one, two)


def test_base_never_thinks_and_the_teacher_always_does(splits: dict[str, list[dict[str, Any]]]) -> None:
    said = {name: [parse(row["messages"][-1]["content"]) for row in splits[name]] for name in ("base", "teacher")}
    assert all(one.well_formed and not one.has_thought for one in said["base"])
    assert all(one.well_formed and one.has_thought for one in said["teacher"])
    assert sum("\n" in one.answer for one in said["base"]) == 300  # worked out in the answer


def test_demonstrations_are_right(splits: dict[str, list[dict[str, Any]]]) -> None:
    rows = splits["rl"]
    for column in ("worked", "said"):
        verdicts = resolve("math")(
            prompts=[row["prompt"] for row in rows],
            completions=[row[column] for row in rows],
            answer=[row["answer"] for row in rows],
        )
        assert all(verdict.score == 1.0 for verdict in verdicts)  # type: ignore[union-attr]


def test_what_cannot_be_verified_is_dropped_for_its_reason(splits: dict[str, list[dict[str, Any]]]) -> None:
    records = apply_filters("q", splits["queries"], {"verifiable": not_verifiable})
    assert records.counts == {
        ("", ""): 100,
        ("verifiable", "proof"): 2,
        ("verifiable", "text_generation"): 2,
        ("verifiable", "several_questions"): 2,
        ("verifiable", "no_reference"): 2,
    }


def test_plain_answers_meet_their_checklists(splits: dict[str, list[dict[str, Any]]]) -> None:
    steps = {"usable": partial(usable, thinking=False), "checklist": check_responses}
    records = apply_filters("plain", splits["plain"], steps)
    assert records.dropped() == []
    assert {row["task"] for row in splits["plain"]} == {"sums", *GENERAL}


def test_thoughts_are_samples_of_the_general_tasks(splits: dict[str, list[dict[str, Any]]]) -> None:
    records = apply_filters("thoughts", splits["thoughts"], {"usable": partial(usable, thinking=True)})
    assert records.dropped() == []
    assert {row["task"] for row in splits["thoughts"]} == set(GENERAL)
    assert not {row["id"] for row in splits["thoughts"]} & {row["id"] for row in splits["plain"]}


def test_every_second_prompt_of_the_student_asks_for_no_thought(splits: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["thinking"] for row in splits["student"]] == [True, False] * 50
    assert all(row["prompt"].endswith("/no_think") != row["thinking"] for row in splits["student"])


def test_general_tasks_keep_sums_among_them_and_none_of_the_test() -> None:
    made = general_tasks(0, num_sums=40, tasks=["mode_single"], num_sft=0, num_train=20, num_test=10)
    own = [row for row in made["train"] if row["task"] == "sums"]
    assert (len(own), len(made["train"]), len(made["test"])) == (40, 60, 10)
    assert made["train"][:40] != own  # mixed
    asked = {row["prompt"][0]["content"] for row in own}
    known = problems(0)
    assert asked == {row["prompt"] for row in known["rl"][:40]}
    assert not asked & {row["prompt"] for row in known["test"]}
    with pytest.raises(ValueError, match="expected num_sums <= 1500, got 2000"):
        general_tasks(0, num_sums=2000, tasks=["mode_single"], num_sft=0, num_train=20, num_test=0)


def test_the_recipe_and_its_smoke_twin_load() -> None:
    recipe = load(CONFIG)
    assert isinstance(recipe, RecipeConfig)
    built = stages(recipe)
    kinds = [type(config) for config in built.values()]
    assert kinds.count(SampleConfig) == 6
    assert kinds.count(FilterConfig) == 4
    student = built["student"]
    assert isinstance(student, RLConfig)
    assert student.algorithm.loss == "distillation"
    short = shorten(recipe)
    assert isinstance(short, RecipeConfig)
    samples = {n: c for n, c in stages(short).items() if isinstance(c, SampleConfig)}
    assert {n for n, c in samples.items() if not c.use_demonstrations} == {"reference"}
