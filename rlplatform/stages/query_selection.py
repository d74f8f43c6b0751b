"""Reasoning RL: which queries, and in which order (arXiv 2505.09388, section 4.2).

The report's 3,995 query-verifier pairs were (1) not used in the cold start, (2) learnable for the cold-start model, (3)
as hard as possible, (4) over a broad range of sub-domains. It gives no bounds: those here are this project's own, on
pass rates that the cold-start model was measured to have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlplatform.stages.pass_rates import PassRate
from rlplatform.stages.records import Decision, Row, text_column
from rlplatform.stages.texts import rank, same_question


def select_queries(
    rows: Sequence[Row],
    rates: Mapping[str, PassRate],
    *,
    used: Sequence[Row],
    num: int,
    seed: int,
    min_rate: float = 0.0,
    max_rate: float = 0.75,
    domain_column: str = "domain",
) -> list[Decision]:
    """The four criteria, in order; each row is kept or dropped for the first that it fails.

    1. ``used_in_cold_start``: the id or the question of a row of ``used``.
    2. ``unmeasured``: no ok verdict. ``never_solved``: pass rate 0, nothing to reinforce. ``too_hard``: below
       ``min_rate``.
    3. ``too_easy``: above ``max_rate``, since groups that are all right teach nothing either.
    4. ``easier_than_needed``: not among the ``num`` chosen. Places go round the domains, each time to the hardest query
       left in one of those with the fewest chosen so far: domains are as even as their queries allow, and within a
       domain none is easier than one left out. Ties go by (seed, id).

    Fewer than ``num`` may pass; then all of them are kept.

    Raises:
        ValueError: a query without any verdict, bounds out of order, or a missing domain.
    """
    if num < 1 or not 0 <= min_rate < max_rate <= 1:
        raise ValueError(
            f"select_queries: expected num >= 1 and 0 <= min_rate < max_rate <= 1, got {num}, {min_rate}, {max_rate}"
        )
    ids, questions = {row["id"] for row in used}, {same_question(row) for row in used}
    decisions = [_criteria(row, rates, ids, questions, min_rate, max_rate) for row in rows]
    hardest: dict[str, list[int]] = defaultdict(list)
    for place, decision in enumerate(decisions):
        if decision.kept:
            hardest[text_column(rows[place], domain_column)].append(place)

    def order(place: int) -> tuple[float, int]:
        return rates[rows[place]["id"]].rate, rank(seed, "hard", rows[place]["id"])

    queues = [sorted(places, key=order) for _, places in sorted(hardest.items())]
    chosen: set[int] = set()
    turn = 0
    while len(chosen) < num and any(len(queue) > turn for queue in queues):
        # One place a domain and round; in a last, partial round the hardest heads first.
        heads = sorted((queue[turn] for queue in queues if len(queue) > turn), key=order)
        chosen.update(heads[: num - len(chosen)])
        turn += 1
    for place, decision in enumerate(decisions):
        if decision.kept and place not in chosen:
            decisions[place] = Decision("easier_than_needed", decision.detail)
    return decisions


def _criteria(
    row: Row,
    rates: Mapping[str, PassRate],
    ids: set[str],
    questions: set[tuple[str, ...]],
    min_rate: float,
    max_rate: float,
) -> Decision:
    if row["id"] in ids or same_question(row) in questions:
        return Decision("used_in_cold_start")
    if row["id"] not in rates:
        raise ValueError(
            f"select_queries: no verdict on query {row['id']!r}; sample the cold-start model on every query first"
        )
    rate = rates[row["id"]]
    if not rate.num_samples:
        return Decision("unmeasured", f"none of {rate.num_not_ok} verdicts is ok")
    low, high = rate.interval()
    detail = f"{rate.num_correct} of {rate.num_samples} correct, 95 % interval {low:.2f} to {high:.2f}"
    if rate.num_correct == 0:
        return Decision("never_solved", detail)
    if rate.rate < min_rate:
        return Decision("too_hard", f"{detail}, at least {min_rate:g}")
    if rate.rate > max_rate:
        return Decision("too_easy", f"{detail}, at most {max_rate:g}")
    return Decision(detail=detail)


# --- curriculum -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curriculum:
    """Queries by pass rate, easy first: what is asked at a step is a function of (seed, step) and nothing else.

    The queries are cut into ``num_buckets`` of (nearly) equal size by pass rate; each bucket is asked for an equal part
    of ``num_steps``, in shuffled epochs of its own. With one bucket it is a plain shuffle. Steps beyond ``num_steps``
    stay in the hardest bucket. Nothing needs to be saved: a resumed run asks for ``ids(step)`` again.
    """

    ordered: tuple[str, ...]  # query ids, easiest first
    num_steps: int
    prompts_per_step: int
    seed: int
    num_buckets: int = 4

    def __post_init__(self) -> None:
        if min(self.num_steps, self.prompts_per_step, self.num_buckets) < 1 or self.num_buckets > self.num_steps:
            raise ValueError(
                "Curriculum: expected num_steps, prompts_per_step >= 1 and 1 <= num_buckets <= num_steps, got "
                f"{self.num_steps}, {self.prompts_per_step} and {self.num_buckets}"
            )
        if len(set(self.ordered)) != len(self.ordered):
            raise ValueError("Curriculum: expected every query once")
        smallest = len(self.ordered) // self.num_buckets
        if smallest < self.prompts_per_step:
            raise ValueError(
                f"Curriculum: {len(self.ordered)} queries in {self.num_buckets} buckets are {smallest} a bucket, fewer "
                f"than the {self.prompts_per_step} of one step; use fewer buckets or prompts_per_step"
            )

    def bucket(self, index: int) -> tuple[str, ...]:
        """Sizes differ by one at most."""
        begin, end = (len(self.ordered) * k // self.num_buckets for k in (index, index + 1))
        return self.ordered[begin:end]

    def bucket_of(self, step: int) -> int:
        """The bucket that step ``step`` (from 0) asks from."""
        if step < 0:
            raise ValueError(f"Curriculum: expected step >= 0, got {step}")
        return min(step * self.num_buckets // self.num_steps, self.num_buckets - 1)

    def ids(self, step: int) -> list[str]:
        """The ``prompts_per_step`` queries of a step, all different."""
        index = self.bucket_of(step)
        members = self.bucket(index)
        first_step = -(-index * self.num_steps // self.num_buckets)
        # Whole steps an epoch: a step never holds a query twice, and the few left over get their turn in other epochs.
        per_epoch = len(members) // self.prompts_per_step
        epoch, place = divmod(step - first_step, per_epoch)
        order = np.random.default_rng([self.seed, index, epoch]).permutation(len(members))
        return [members[k] for k in order[place * self.prompts_per_step : (place + 1) * self.prompts_per_step]]


def easiest_first(rates: Mapping[str, PassRate], *, seed: int) -> tuple[str, ...]:
    """Query ids by falling pass rate, ties by (seed, id), for ``Curriculum``.

    Raises:
        ValueError: a query without an ok verdict.
    """
    unmeasured = [name for name, rate in rates.items() if not rate.num_samples]
    if unmeasured:
        raise ValueError(f"easiest_first: {len(unmeasured)} queries have no ok verdict, e.g. {unmeasured[:3]}")
    return tuple(sorted(rates, key=lambda name: (-rates[name].rate, rank(seed, "curriculum", name))))
