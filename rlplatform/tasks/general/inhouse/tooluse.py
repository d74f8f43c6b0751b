"""ToolUse: single-turn, multi-turn and multi-step calls, scored by intent, format and parameters.

The three are the report's (arXiv 2505.09388, section 4.7); how they are counted is ours:

- ``format``: every call can be read (one JSON object with ``name`` and ``arguments`` in a closed block).
- ``intent``: the functions called are the expected ones, in any order, no more and no fewer; none where none fits.
- ``parameters``: expected calls that were made with the expected arguments, over the expected calls or, if those are
  more, the calls made. Where no call is expected, 1 if none was made and something was said.

The score is their mean; an answer whose format is wrong has 0 in all three.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.response import has_content
from rewards.text import unreadable
from rewards.tool_calls import Expected, matches, read_calls, read_expected
from rlplatform.tasks.general import agent
from rlplatform.tasks.general.task import Example, Row, make_row
from rlplatform.tasks.general.words import part

SUBSCORES = ("intent", "format", "parameters")
_HERE = "rlplatform.tasks.general.inhouse.tooluse"
FUNCTIONS = {"tool_use": part(f"{_HERE}:tool_use_reward", 1.0)}
SORTS: dict[str, tuple[Callable[[random.Random, int], Example], ...]] = {
    "single_turn": (agent.single_call, agent.parallel_calls, agent.no_tool),
    "multi_turn": (agent.context_arguments,),
    "multi_step": (agent.next_call,),
}


def requests(seed: int, *, num_test: int = 320, difficulty: int = 3, flag: str = "") -> dict[str, list[Row]]:
    """Split ``test`` of different requests, the three sorts equally often.

    Rows are those of ``Task.rows``, with ``answer`` (the expected calls as JSON) and ``sort``. At difficulty 3 the
    tools stand in the prompt as Qwen3's chat template writes them, below in a short form.

    Raises:
        ValueError: an unknown difficulty or flag, or more requests than there are.
    """
    if difficulty not in (1, 2, 3) or flag not in ("", "/think", "/no_think"):
        raise ValueError(f"tooluse: expected a difficulty of 1 to 3 and a flag, got {difficulty} and {flag!r}")
    rng = random.Random(f"general/tooluse/{seed}")
    taken: set[str] = set()
    rows: list[Row] = []
    for number in range(num_test):
        sort = list(SORTS)[number % len(SORTS)]
        for _ in range(2000):
            example = rng.choice(SORTS[sort])(rng, difficulty)
            if example.key not in taken:
                break
        else:
            raise ValueError(f"tooluse: no new request of sort {sort!r} after {len(taken)}; lower num_test")
        taken.add(example.key)
        flags = ("", *[""] * len(example.history), flag)
        rows.append({**make_row(example, flags, "tooluse", "agent", row_id=f"tooluse-{number:05d}"), "sort": sort})
    return {"test": rows}


@rowwise
def tool_use_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """The mean of intent, format and parameters, which are its parts; column ``answer`` is that of `tool_calls`."""
    verdicts = []
    for row, completion in enumerate(completions):
        expected = read_expected(answer[row])
        if expected is None:
            verdicts.append(unreadable("the expected calls", answer[row]))
            continue
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        parts = subscores(after_thoughts(text_of(completion), opened=opened), expected)
        verdicts.append(Verdict(sum(parts.values()) / len(parts), parts=parts))
    return verdicts


def subscores(text: str | None, expected: Sequence[Expected]) -> dict[str, float]:
    """Of one answer; None: its think block is not closed."""
    calls = None if text is None or not has_content(text) else read_calls(text)
    if calls is None:
        return dict.fromkeys(SUBSCORES, 0.0)
    intent = sorted(name for name, _ in calls) == sorted(name for name, _ in expected)
    return {"intent": float(intent), "format": 1.0, "parameters": _parameters(expected, calls)}


def _parameters(expected: Sequence[Expected], calls: Sequence[tuple[str, dict[str, Any]]]) -> float:
    if not expected:
        return float(not calls)
    left = list(calls)
    for one in expected:  # expected calls here allow one value an argument: the first fit is as good as any
        fit = next((call for call in left if matches(one, call)), None)
        if fit is not None:
            left.remove(fit)
    return (len(calls) - len(left)) / max(len(expected), len(calls))


@dataclass(frozen=True)
class ToolUseScore:
    """Means from 0 to 1."""

    score: float
    subscores: dict[str, float]
    by_sort: dict[str, float]
    num_requests: int


def score(rows: Sequence[Row], completions: Sequence[str]) -> ToolUseScore:
    """Raises ValueError where there is not one completion a row, or a row's expected calls cannot be read."""
    if not rows or len(rows) != len(completions):
        raise ValueError(f"tooluse: expected completions of {len(rows)} rows (at least 1), got {len(completions)}")
    verdicts = tool_use_reward([row["prompt"] for row in rows], completions, [row["answer"] for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
        if not verdict.ok:
            raise ValueError(f"tooluse: {row['id']}: {verdict.detail}")
    by_sort: dict[str, list[float]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        by_sort.setdefault(row["sort"], []).append(verdict.score)
    return ToolUseScore(
        score=sum(verdict.score for verdict in verdicts) / len(verdicts),
        subscores={name: sum(v.parts[name] for v in verdicts) / len(verdicts) for name in SUBSCORES},
        by_sort={sort: sum(found) / len(found) for sort, found in by_sort.items()},
        num_requests=len(verdicts),
    )
