from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import Verdict
from rlplatform.evaluation.runner import evaluate
from rlplatform.metrics import REGISTRY, check_names, markdown, pass_at_k
from rlplatform.rollout_metrics import rollout_metrics
from rlplatform.types import GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams, ScoredGroup


def rollout(length: int, finish: str = "stop", version: int = 3, token: int = 5) -> Rollout:
    return Rollout(
        np.full(length, token, dtype=np.int32),
        np.ones(length, dtype=bool),
        np.full(length, -0.5, dtype=np.float32),
        np.full(length, version, dtype=np.int32),
        finish,
        "text",
    )


PROMPT = Prompt("p", (), np.array([1], dtype=np.int32), "p")


def test_rollout_metrics_of_a_batch_counted_by_hand() -> None:
    first = RolloutGroup(PROMPT, (rollout(2), rollout(4, "length"), rollout(2)), step=5, num_rejected=1)
    second = RolloutGroup(PROMPT, (rollout(6, version=5), rollout(6, version=5, token=6)), step=5, index=1)
    ok = ScoredGroup(
        first, (Verdict(1.0, parts={"math": 1.0}), Verdict(0.0, parts={"math": 0.0}), Verdict(0.0, "timeout"))
    )
    equal = ScoredGroup(second, (Verdict(0.0, parts={"math": 0.0}), Verdict(0.0, parts={"math": 0.0})))
    found = rollout_metrics([ok, equal], [ok], version=5)
    check_names(found)
    assert found["reward/mean"] == 0.25  # four ok verdicts: 1, 0, 0, 0
    assert found["reward/std"] == pytest.approx(np.std([1, 0, 0, 0]))
    assert found["reward/trained_mean"] == 0.5
    assert found["reward/part/math"] == 0.25
    assert found["reward/pass_at_group"] == 0.5
    assert (found["verdict/ok"], found["verdict/timeout"], found["verdict/error"]) == (4, 1, 0)
    assert found["rollout/rejected"] == 1
    assert found["rollout/length_mean"] == 4.0
    assert found["rollout/length_max"] == 6
    assert found["rollout/truncated_share"] == 0.2
    assert found["rollout/terminated_length_mean"] == 4.0
    assert found["rollout/duplicate_share"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["lag/max"] == 2
    assert found["lag/mean"] == pytest.approx(8 * 2 / 20)


def test_an_unknown_name_is_refused() -> None:
    check_names(["reward/part/my_fn", "time/generate", "eval/pass_at_4"])
    with pytest.raises(ValueError, match="reward/meen"):
        check_names(["reward/meen"])


def test_names_are_unique_and_the_page_is_up_to_date() -> None:
    names = [metric.name for metric in REGISTRY]
    assert len(names) == len(set(names))
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == markdown(), "run: python -m rlplatform.metrics > docs/metrics.md"


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_counting_every_subset(case: tuple[int, int, int]) -> None:
    n, c, k = case
    samples = [True] * c + [False] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_a_part_is_judged_by_the_problems_that_it_grades() -> None:
    """Routing: math and code problems in one set; one failed, and of one nobody knows which part it was."""
    said = {
        "math 0": [Verdict(1.0, parts={"math": 1.0}), Verdict(0.0, parts={"math": 0.0})],
        "math 1": [Verdict(1.0, parts={"math": 1.0}), Verdict(0.0, "error")],
        "code 0": [Verdict(1.0, parts={"code": 1.0}), Verdict(1.0, parts={"code": 1.0})],
        "code 1": [Verdict(0.0, "not_applicable"), Verdict(0.0, "not_applicable")],
        "lost": [Verdict(0.0, "timeout"), Verdict(0.0, "timeout")],
    }
    prompts = [Prompt(name, (), np.array([1], dtype=np.int32), name) for name in said]

    def generate(requests, sampling):  # type: ignore[no-untyped-def]
        return [
            RolloutGroup(r.prompt, (rollout(1),) * r.num_samples, step=0, index=index)
            for index, r in enumerate(requests)
        ]

    def score(groups):  # type: ignore[no-untyped-def]
        return [ScoredGroup(g, tuple(said[g.prompt.prompt_id][: len(g.rollouts)])) for g in groups]

    options = {"sampling": SamplingParams(4), "num_samples": 2, "seed": 0, "greedy": True}
    found = evaluate(prompts, generate=generate, score=score, metric="math", **options).metrics  # type: ignore[arg-type]
    assert found["eval/accuracy"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert found["eval/pass_at_2"] == pytest.approx(2 / 3)
    assert found["eval/greedy_accuracy"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["eval/part/math"] == found["eval/accuracy"]
    assert found["eval/part/code"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["eval/not_ok"] == 5.0


def test_evaluation_counts_not_ok_as_wrong_and_repeats_its_seeds() -> None:
    """Two problems, four samples: right 2 of 4 and 1 of 4, one verdict a timeout."""
    prompts = [PROMPT, Prompt("q", (), np.array([2], dtype=np.int32), "q")]
    seeds: list[list[int]] = []

    def generate(requests: list[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        seeds.append([request.seed for request in requests])
        return [RolloutGroup(r.prompt, tuple(rollout(2) for _ in range(r.num_samples)), 0, r.index) for r in requests]

    def score(groups: list[RolloutGroup]) -> list[ScoredGroup]:
        table = {"p": [1.0, 1.0, 0.0, None], "q": [1.0, 0.0, 0.0, 0.0]}
        out = []
        for group in groups:
            scores = table[group.prompt.prompt_id][: len(group.rollouts)]
            verdicts = [Verdict(0.0, "timeout") if s is None else Verdict(s, parts={"math": s}) for s in scores]
            out.append(ScoredGroup(group, tuple(verdicts)))
        return out[::-1]

    options = {"sampling": SamplingParams(), "num_samples": 4, "metric": "math", "seed": 1, "greedy": True}
    found = evaluate(prompts, generate=generate, score=score, **options).metrics  # type: ignore[arg-type]
    check_names(found)
    assert found["eval/accuracy"] == pytest.approx(3 / 8)
    assert found["eval/accuracy_ci95"] == pytest.approx(1.96 * np.std([0.5, 0.25], ddof=1) / np.sqrt(2))
    assert found["eval/pass_at_4"] == 1.0
    assert found["eval/pass_at_2"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2)
    assert found["eval/greedy_accuracy"] == 1.0
    assert found["eval/not_ok"] == 1
    evaluate(prompts, generate=generate, score=score, **options)  # type: ignore[arg-type]
    assert seeds[0] == seeds[2]


def test_the_mean_of_a_routed_part_is_over_its_own_problems() -> None:
    """Four problems: a is graded by math alone (1 of 2, then a timeout), b by code, c by nobody, d timed out whole."""
    said = {
        "a": [Verdict(1.0, parts={"math": 1.0}), Verdict(0.0, "timeout", parts={})],
        "b": [Verdict(1.0, parts={"code": 1.0, "code/passed": 1.0}), Verdict(0.5, parts={"code": 0.5})],
        "c": [Verdict(0.0, "not_applicable")] * 2,
        "d": [Verdict(0.0, "timeout")] * 2,
    }
    prompts = [Prompt(name, (), np.array([1], dtype=np.int32), "p") for name in said]

    def generate(requests: list[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        return [RolloutGroup(r.prompt, (rollout(2), rollout(2)), 0, r.index) for r in requests]

    def score(groups: list[RolloutGroup]) -> list[ScoredGroup]:
        return [ScoredGroup(group, tuple(said[group.prompt.prompt_id])) for group in groups]

    options = {"sampling": SamplingParams(), "num_samples": 2, "metric": "math", "seed": 1, "greedy": False}
    found = evaluate(prompts, generate=generate, score=score, **options).metrics  # type: ignore[arg-type]
    assert found["eval/part/math"] == pytest.approx((0.5 + 0) / 2)  # of a and d
    assert found["eval/part/code"] == pytest.approx((0.75 + 0) / 2)  # of b and d
    assert found["eval/part/code/passed"] == pytest.approx((0.5 + 0) / 2)
    assert found["eval/not_ok"] == 5
    routes: dict[str, list[str]] = {"a": ["math"], "b": ["code"], "c": ["code"], "d": ["math"]}
    options["graders"] = lambda prompt: routes[prompt.prompt_id]
    found = evaluate(prompts, generate=generate, score=score, **options).metrics  # type: ignore[arg-type]
    assert found["eval/part/math"] == pytest.approx((0.5 + 0) / 2)  # of a and d
    assert (found["eval/part/code"], found["eval/part/code/passed"]) == (0.75, 0.5)  # of b alone
