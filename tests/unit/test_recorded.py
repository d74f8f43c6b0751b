"""Groups on record: a run that is killed anywhere goes on, and ends with what an uninterrupted one has."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.base import Verdict
from rlplatform.recorded import Recorded, read, weights_mark
from rlplatform.types import GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams, ScoredGroup

SAMPLING = SamplingParams(max_new_tokens=8)


class Killed(BaseException):
    """Stands for kill -9: nothing below it is caught."""


class Fleet:
    """Two groups a poll, in an order of its own; what it samples follows from the seed."""

    def __init__(self, order: int = 0) -> None:
        self.order, self.waiting, self.asked = np.random.default_rng(order), list[GenerationRequest](), list[int]()

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingParams | None = None) -> None:
        self.waiting += [requests[place] for place in self.order.permutation(len(requests))]
        self.asked += [request.index for request in requests]

    def poll(self, timeout_s: float) -> list[RolloutGroup]:
        now, self.waiting = self.waiting[:2], self.waiting[2:]
        return [self.group(request) for request in now]

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def group(self, request: GenerationRequest) -> RolloutGroup:
        rollouts = []
        for k in range(request.num_samples):
            draws = np.random.default_rng(request.seed + k)
            ids = draws.integers(0, 9, 5).astype(np.int32)
            logprobs = draws.random(5).astype(np.float32)
            rollouts.append(Rollout(ids, np.ones(5, bool), logprobs, np.zeros(5, np.int32), "stop", str(ids)))
        return RolloutGroup(request.prompt, tuple(rollouts), request.step, request.index)


class Service:
    def __init__(self, kill_after: int = 10**9) -> None:
        self.waiting, self.left = list[RolloutGroup](), kill_after

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        self.waiting += groups

    def poll(self, timeout_s: float) -> list[ScoredGroup]:
        found, self.waiting = self.waiting[:1], self.waiting[1:]
        self.left -= len(found)
        if self.left < 0:
            raise Killed
        return [
            ScoredGroup(g, tuple(Verdict(float(r.token_ids[0] > 4), parts={"a": 1.0}) for r in g.rollouts))
            for g in found
        ]

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    @property
    def graders(self) -> Any:
        return lambda prompt: ["a"]


def requests(num: int = 7, seed: int = 0) -> list[GenerationRequest]:
    prompts = [Prompt(f"p{n}", (), np.array([n, n], np.int32), str(n), {"answer": n}) for n in range(num)]
    return [GenerationRequest(prompt, 2, 0, n, 100 * seed + 10 * n) for n, prompt in enumerate(prompts)]


def run(folder: Path, *, kill_after: int = 10**9, order: int = 0, **values: Any) -> tuple[list[Any], list[int]]:
    fleet = Fleet(order)
    recorded = Recorded(folder, fleet, Service(kill_after), about=values.pop("about", {}), **values)
    scored = recorded.score(recorded.generate(requests(), SAMPLING))
    return [
        (s.group.index, [r.token_ids.tolist() for r in s.group.rollouts], [v.score for v in s.verdicts]) for s in scored
    ], fleet.asked


@pytest.mark.parametrize("kill_after", range(8))
def test_killed_after_any_group_it_ends_with_the_same_and_asks_only_for_the_rest(
    kill_after: int, tmp_path: Path
) -> None:
    whole, _ = run(tmp_path / "whole", order=1)
    if kill_after < 7:
        with pytest.raises(Killed):
            run(tmp_path / "killed", kill_after=kill_after, order=2)
    else:
        run(tmp_path / "killed", order=2)
    again, asked = run(tmp_path / "killed", order=3)
    assert again == whole
    assert [index for index, _, _ in again] == list(range(7))
    assert len(asked) == 7 - kill_after


@pytest.mark.parametrize("cut", [1, 2, 40, 10**6])
def test_a_line_cut_short_is_sampled_again(cut: int, tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    (file,) = tmp_path.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    torn = lines[-1][: -min(cut, len(lines[-1]))]
    file.write_bytes(b"".join(lines[:-1]) + torn)
    again, asked = run(tmp_path)
    assert again == whole
    assert len(asked) == 1
    assert len(read(file)) == 7
    assert len(file.read_bytes().splitlines()) == 7


def test_other_weights_settings_prompts_and_seeds_find_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    assert len(run(tmp_path, about={"model": 2})[1]) == 7
    fleet = Fleet()
    recorded = Recorded(tmp_path, fleet, Service(), about={})
    recorded.generate(requests(), replace(SAMPLING, temperature=0.5))
    recorded.generate(requests(seed=1), SAMPLING)
    changed = [replace(r, prompt=replace(r.prompt, columns={"answer": 0})) for r in requests()]
    recorded.generate(changed, SAMPLING)
    assert len(fleet.asked) == 21
    recorded.generate(requests(), SAMPLING)
    assert len(fleet.asked) == 21


def test_without_a_grader_groups_are_recorded_as_sampled(tmp_path: Path) -> None:
    fleet = Fleet()
    first = Recorded(tmp_path, fleet, about={}).generate(requests(3), SAMPLING)
    again = Recorded(tmp_path, fleet, about={}).generate(requests(3), SAMPLING)
    assert fleet.asked == [0, 1, 2]
    assert [pickle.dumps(a.rollouts[0].text) for a in first] == [pickle.dumps(b.rollouts[0].text) for b in again]


def test_a_group_is_changed_before_it_is_graded(tmp_path: Path) -> None:
    def zeros(group: RolloutGroup) -> RolloutGroup:
        ids = np.zeros(5, np.int32)
        return replace(group, rollouts=tuple(replace(r, token_ids=ids, text="0") for r in group.rollouts))

    found, _ = run(tmp_path, change=zeros)
    assert all(scores == [0.0, 0.0] for _, _, scores in found)


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    twice = [*requests(2), *requests(1)]
    with pytest.raises(ValueError, match="different places"):
        Recorded(tmp_path, Fleet(), Service(), about={}).generate(twice, SAMPLING)

    class Loses(Fleet):
        def poll(self, timeout_s: float) -> list[RolloutGroup]:
            return super().poll(timeout_s)[1:]

    with pytest.raises(RuntimeError, match="of 7 never came back"):
        Recorded(tmp_path, Loses(), Service(), about={}).generate(requests(), SAMPLING)


def test_the_mark_of_weights_changes_with_the_file(tmp_path: Path) -> None:
    assert weights_mark("owner/name") == weights_mark(str(tmp_path)) == []
    (tmp_path / "model.safetensors").write_bytes(b"12")
    before = weights_mark(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"123")
    assert before != weights_mark(str(tmp_path))
