"""ThinkFollow's driver: dialogues go on turn by turn, each with the model's own earlier answers in its context.

``enable_thinking`` is not used: the mode stands in the flags alone. Every turn is one batch over all dialogues that
still have a question. A turn is seeded by (run seed, turn, dialogue), so neither batching nor the order of the
engine's replies changes anything. What counts as followed is ``rlplatform.tasks.general.inhouse.thinkfollow``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from model.messages import render_chat
from rewards.base import Verdict
from rlplatform.evaluation.runner import Generate
from rlplatform.seeds import request_seed
from rlplatform.stages.pass_rates import PassRate
from rlplatform.tasks.general.inhouse.thinkfollow import SORTS, followed, prompt_of
from rlplatform.tasks.general.task import Row
from rlplatform.types import FINISH_LENGTH, GenerationRequest, Prompt, RolloutGroup, SamplingParams, ScoredGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Driven:
    """What came back. ``replies[d][t]`` answers turn ``t`` of dialogue ``d``; None: it was not answered."""

    replies: tuple[tuple[str | None, ...], ...]
    groups: tuple[RolloutGroup, ...]  # in the order asked: by turn, then by dialogue
    num_too_long: int  # turns that did not fit into the model's length any more, and those after them
    num_rejected: int  # turns whose only sample the engine gave up, and those after them

    @property
    def truncated_share(self) -> float:
        """Of the turns that were answered, cut at max_new_tokens."""
        finishes = [rollout.finish for group in self.groups for rollout in group.rollouts]
        return float(np.mean([finish == FINISH_LENGTH for finish in finishes])) if finishes else 0.0


def drive(
    rows: Sequence[Row],
    *,
    tokenizer: PreTrainedTokenizerBase,
    generate: Generate,
    sampling: SamplingParams,
    seed: int,
    max_model_len: int,
) -> Driven:
    """Ask every turn of every dialogue.

    Raises:
        RuntimeError: ``generate`` returned other groups than it was asked for.
    """
    replies: list[list[str | None]] = [[] for _ in rows]
    groups: list[RolloutGroup] = []
    lost = {"too_long": 0, "rejected": 0}
    ended: set[int] = set()

    def end(place: int, why: str) -> None:
        left = len(rows[place]["users"]) - len(replies[place])
        replies[place] += [None] * left
        lost[why] += left
        ended.add(place)

    plain = replace(sampling, thinking_budget=None)
    for turn in range(max((len(row["users"]) for row in rows), default=0)):
        requests = []
        for place, row in enumerate(rows):
            if place in ended or turn >= len(row["users"]):
                continue
            prompt = _prompt(row, [reply or "" for reply in replies[place]], tokenizer)
            if len(prompt.token_ids) + sampling.max_new_tokens > max_model_len:
                end(place, "too_long")
                continue
            requests.append(
                GenerationRequest(prompt, 1, turn, place, request_seed(seed, turn, place, 1, stream="dialogue"))
            )
        if not requests:
            continue
        answered = sorted(generate(requests, plain), key=lambda group: group.index)
        if [group.index for group in answered] != [request.index for request in requests]:
            raise RuntimeError(f"thinkfollow: expected {len(requests)} groups, one a dialogue, got {len(answered)}")
        groups += answered
        for group in answered:
            if group.rollouts:
                replies[group.index].append(group.rollouts[0].text)
            else:
                end(group.index, "rejected")
    return Driven(tuple(map(tuple, replies)), tuple(groups), lost["too_long"], lost["rejected"])


def _prompt(row: Row, replies: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    messages = prompt_of(row, replies)
    text = render_chat(tokenizer, messages, add_generation_prompt=True)
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    return Prompt(f"{row['id']}-{len(replies)}", tuple(messages), ids, text, {"category": row["sorts"][len(replies)]})


def scored(rows: Sequence[Row], driven: Driven) -> list[ScoredGroup]:
    """Every turn that was answered, with its verdict, for the record of rollouts."""
    good = _followed(rows, driven)
    return [
        ScoredGroup(group, (Verdict(score, parts={"followed": score}),) * len(group.rollouts))
        for group in driven.groups
        for score in (float(good[group.index][group.step]),)
    ]


def _followed(rows: Sequence[Row], driven: Driven) -> list[list[bool]]:
    return [
        followed(row, [reply or "" for reply in replies]) for row, replies in zip(rows, driven.replies, strict=True)
    ]


def summary(rows: Sequence[Row], driven: Driven) -> dict[str, Any]:
    """Shares from 0 to 1 with 95 % intervals. A turn that was not answered is not followed.

    Turns of one dialogue are not independent: the interval of ``per_turn`` is that of a ratio of sums over dialogues
    (Cochran 1977, section 6.3). ``per_dialogue`` has Wilson's.
    """
    good = _followed(rows, driven)
    counts = np.array([len(turns) for turns in good], dtype=np.float64)
    hits = np.array([sum(turns) for turns in good], dtype=np.float64)
    share, error = _ratio(hits, counts)
    whole = sum(map(all, good))
    low, high = PassRate(whole, len(good)).interval()
    by_sort: dict[str, dict[str, float]] = {}
    for sort in SORTS:
        own = np.array([[float(kind == sort) for kind in _padded(row["sorts"], counts)] for row in rows])
        hit = np.array([[float(ok) for ok in _padded(turns, counts)] for turns in good])
        asked = own.sum(axis=1)
        if asked.sum():
            at, by = _ratio((own * hit).sum(axis=1), asked)
            by_sort[sort] = {"accuracy": at, "accuracy_ci95": by, "problems": int(asked.sum())}
    return {
        "accuracy": share,
        "accuracy_ci95": error,
        "per_dialogue": whole / len(good),
        "per_dialogue_interval": [low, high],
        "problems": len(rows),
        "turns": int(counts.sum()),
        "categories": by_sort,
        "num_too_long": driven.num_too_long,
        "num_rejected": driven.num_rejected,
        "truncated_share": driven.truncated_share,
    }


def _padded(values: Sequence[Any], counts: np.ndarray) -> list[Any]:
    return [*values, *[False] * (int(counts.max()) - len(values))]


def _ratio(hits: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """sum(hits) / sum(counts) and half its 95 % interval; a unit is one dialogue, float [dialogues] each."""
    share = float(hits.sum() / counts.sum())
    n = len(hits)
    if n < 2:
        return share, 0.0
    variance = n / (n - 1) * float(((hits - share * counts) ** 2).sum()) / float(counts.sum()) ** 2
    return share, 1.96 * variance**0.5
