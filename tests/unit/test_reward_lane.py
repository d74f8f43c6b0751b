"""Which job goes when, with what, and what comes back of it: a lane on a fleet that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actors.fleet import Err, FleetActor, Ok, Reply
from actors.grading_request import GradingRequest, PartScore
from actors.reward_lane import BUNDLE_ROWS, MAX_IN_FLIGHT, MAX_SENDS, Job, Lane
from actors.reward_worker import RewardWorker
from rewards.base import ERROR, Verdict
from rlplatform.types import Prompt, RolloutGroup

LOST = Err("WorkerLost", "gone", lost=True)


class Model(FleetActor):
    def score(self, request: GradingRequest) -> PartScore: ...


class FakeFleet:
    call_timeout_s = 100.0
    num_restarts = 0

    def __init__(self, num_workers: int, actor_class: type) -> None:
        self.actor_class = actor_class
        self.live_workers = list(range(num_workers))
        self.calls: list[tuple[int, Any, Any, float]] = []  # worker, method, argument, deadline
        self.replies: list[Reply] = []

    def call_async(self, worker: int, method: Any, argument: Any) -> int:
        self.calls.append((worker, method, argument, self.call_timeout_s))
        return len(self.calls) - 1

    def ready(self, timeout_s: float) -> list[Reply]:
        replies, self.replies = self.replies, []
        return replies

    def answer(self, call: int, result: Any) -> None:
        self.replies.append(Reply(call, self.calls[call][0], result))


def job(name: str, number: int, *, rows: int = 2, group: RolloutGroup | None = None, **columns: Any) -> Job:
    prompt = Prompt(f"p{number}", (), np.array([1], dtype=np.int32), "q")
    values = {column: [value] * rows for column, value in columns.items()}
    request = GradingRequest(name, ["q"] * rows, [f"{number}.{row}" for row in range(rows)], values, (rows,))
    made = Job(group or RolloutGroup(prompt, (), step=0), request)
    made.queued_at = float(number)
    return made


def lane(functions: list[str], *, num_workers: int = 1, **settings: Any) -> tuple[Lane, FakeFleet]:
    fleet = FakeFleet(num_workers, Model if settings.get("merge_rows") else RewardWorker)
    return Lane(fleet, functions, **settings), fleet  # type: ignore[arg-type]


def scores(*values: float, seconds: float = 1.0, **settings: Any) -> PartScore:
    return PartScore([Verdict(value, seconds=seconds) for value in values], **settings)


def test_at_most_so_many_calls_at_a_worker_and_the_oldest_first():
    made, fleet = lane(["math"], num_workers=2)
    for number in range(7):
        made.put(job("math", number))
    assert made.advance() == []
    assert [call[0] for call in fleet.calls] == [0, 1, 0, 1]
    assert [[r.completions[0] for r in call[2]] for call in fleet.calls] == [["0.0"], ["1.0"], ["2.0"], ["3.0"]]
    assert (len(fleet.calls), made.num_waiting) == (2 * MAX_IN_FLIGHT, 3)
    assert made.statistics()["math"].longest == 7
    fleet.answer(1, Ok([scores(1, 0)]))
    ((done, result),) = made.advance()
    assert (done.request.completions[0], [v.score for v in result.verdicts]) == ("1.0", [1.0, 0.0])
    assert fleet.calls[4][0] == 1  # its place is taken at once


def test_functions_that_share_a_lane_are_asked_about_a_group_in_one_call():
    made, fleet = lane(["math", "format"])
    first = job("math", 0)
    for other in (job("format", 0, group=first.group), first, job("math", 1)):
        made.put(other)
    made.advance()
    assert [sorted(request.function for request in call[2]) for call in fleet.calls] == [["format", "math"], ["math"]]
    assert fleet.calls[0][1] is RewardWorker.score_each
    names = [request.function for request in fleet.calls[0][2]]
    fleet.answer(0, Ok([scores(*((1, 1) if name == "math" else (0, 0)), restarts=3) for name in names]))
    found = {done.request.function: [v.score for v in result.verdicts] for done, result in made.advance()}
    assert found == {"math": [1.0, 1.0], "format": [0.0, 0.0]}
    assert made.num_restarts == 3


def test_groups_travel_together_while_grading_takes_next_to_no_time():
    made, fleet = lane(["math", "format"], num_workers=2)

    def submit(numbers: range) -> None:
        for number in numbers:
            first = job("math", number)
            made.put(first)
            made.put(job("format", number, group=first.group))

    submit(range(8))
    made.advance()
    assert [len(call[2]) for call in fleet.calls] == [2, 2, 2, 2]  # how fast they are nobody knows yet
    fleet.answer(0, Ok([scores(1, 1, seconds=0.001), scores(1, 1, seconds=0.003)]))
    made.advance()
    assert [(r.function, r.completions[0]) for r in fleet.calls[4][2]] == [
        ("math", "4.0"),
        ("format", "4.0"),
        ("math", "5.0"),
        ("format", "5.0"),
    ]  # half of the four that waited: the other worker gets its share
    fleet.answer(1, Ok([scores(1, 1, seconds=1.0), scores(1, 1, seconds=1.0)]))
    made.advance()
    assert [len(call[2]) for call in fleet.calls[5:]] == [2]  # slow again, so one by one


def test_a_bundle_is_bounded():
    made, fleet = lane(["math"])
    for number in range(100):
        made.put(job("math", number, rows=8))
    made.advance()
    fleet.answer(0, Ok([scores(*[1.0] * 8, seconds=0.0)]))
    made.advance()
    assert len(fleet.calls[2][2]) == BUNDLE_ROWS // 8
    fleet.answer(1, Ok([scores(*[1.0] * 8, seconds=0.004)]))  # 2 ms on average: 100 ms are 50 rows
    made.advance()
    assert len(fleet.calls[3][2]) == 6


def test_groups_of_one_function_travel_together_and_leave_other_workers_their_share():
    made, fleet = lane(["judge"], num_workers=2, merge_rows=6)
    for number in range(8):
        made.put(job("judge", number))
    made.advance()
    assert [call[2].group_sizes for call in fleet.calls] == [(2, 2, 2), (2, 2, 2), (2,), (2,)]
    made, fleet = lane(["judge"], num_workers=4, merge_rows=6)
    for number in range(4):
        made.put(job("judge", number))
    made.advance()
    assert [call[2].group_sizes for call in fleet.calls] == [(2,)] * 4


def test_groups_with_other_columns_or_of_another_step_travel_apart():
    made, fleet = lane(["judge"], merge_rows=100)
    for number, columns in enumerate([{"a": 1}, {"a": 2}, {"b": 1}]):
        made.put(job("judge", number, **columns))
    made.advance()
    assert [call[2].columns for call in fleet.calls] == [{"a": [1, 1, 2, 2]}, {"b": [1, 1]}]


def test_what_a_merged_call_says_is_taken_apart():
    made, fleet = lane(["judge"], merge_rows=100)
    for number in range(3):
        made.put(job("judge", number, rows=number + 1))
    made.advance()
    failed = [Verdict(float(row)) for row in range(4)] + [Verdict(0.0, ERROR)] * 2
    said = PartScore(failed, extras={"x": list("abcdef")}, metrics={"m": 1.0}, tracebacks=("text",), version="7")
    fleet.answer(0, Ok(said))
    found = [result for _, result in made.advance()]
    assert [[v.score for v in result.verdicts] for result in found] == [[0.0], [1.0, 2.0], [3.0, 0.0, 0.0]]
    assert [result.extras for result in found] == [{"x": ["a"]}, {"x": ["b", "c"]}, {"x": ["d", "e", "f"]}]
    assert [result.metrics for result in found] == [{"m": 1.0}, {}, {}]  # it counts once
    assert [result.tracebacks for result in found] == [(), (), ("text",)]  # it tells of the group that failed


def test_a_call_that_answers_too_little_is_an_error_of_all_its_groups():
    made, fleet = lane(["judge"], merge_rows=100)
    made.put(job("judge", 0))
    made.put(job("judge", 1))
    made.advance()
    fleet.answer(0, Ok(scores(1, 1, 1)))
    assert ["3 verdicts for 4 rows" in str(result) for _, result in made.advance()] == [True, True]


@pytest.mark.parametrize(("functions", "merge_rows"), [(["judge"], 100), (["judge"], 0), (["judge", "math"], 0)])
def test_lost_jobs_are_sent_again_each_alone_and_then_given_up(functions, merge_rows):
    made, fleet = lane(functions, merge_rows=merge_rows)
    for number in range(3):
        made.put(job("judge", number))
    made.advance()
    for call in range(len(fleet.calls)):
        fleet.answer(call, LOST)
    sent = len(fleet.calls)
    assert made.advance() == []
    answered: list[tuple[Job, Any]] = []
    call = sent
    while call < len(fleet.calls):
        requests = fleet.calls[call][2]
        requests = requests if isinstance(requests, list) else [requests]
        assert [len(request.completions) for request in requests] == [2]
        fleet.answer(call, LOST)
        answered += made.advance()
        call += 1
    assert {done.request.completions[0] for done, _ in answered} == {"0.0", "1.0", "2.0"}
    assert all(result is LOST and done.num_sends == MAX_SENDS for done, result in answered)
    assert made.num_waiting == 0


def test_a_job_behind_the_one_that_kills_its_worker_is_not_to_blame():
    made, fleet = lane(["judge"])
    made.put(job("judge", 0))  # kills its worker, every time
    made.put(job("judge", 1))
    made.advance()
    given_up = []
    for first in (0, 2):
        fleet.answer(first + 1, LOST)
        fleet.answer(first, LOST)
        given_up += made.advance()
    assert [done.request.completions[0] for done, _ in given_up] == ["0.0"]
    fleet.answer(4, Ok([scores(1, 1)]))
    ((done, _),) = made.advance()
    assert done.request.completions[0] == "1.0"


def test_an_exception_is_no_loss_and_is_not_sent_again():
    made, fleet = lane(["judge"])
    made.put(job("judge", 0))
    made.advance()
    fleet.answer(0, Err("KeyError", "'x'"))
    ((_, result),) = made.advance()
    assert isinstance(result, Err)
    assert len(fleet.calls) == 1


def test_calls_of_a_limited_function_are_given_the_time_they_need():
    made, fleet = lane(["judge"], rows_per_second=0.5)
    made.put(job("judge", 0, rows=10))
    made.advance()
    assert fleet.calls[0][3] == 100.0 + MAX_IN_FLIGHT * 10 / 0.5


def test_a_request_s_lists_have_one_length():
    with pytest.raises(ValueError, match="GradingRequest for math: expected lists of one length"):
        GradingRequest("math", ["q"], ["c"], {"answer": ["a", "b"]}, (1,))
    with pytest.raises(ValueError, match="'groups': 3"):
        GradingRequest("math", ["q"], ["c"], {}, (1, 2))
    assert GradingRequest("math", ["q"] * 3, ["c"] * 3, {}, (1, 2)).groups == [0, 1, 1]
