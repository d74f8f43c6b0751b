"""How a judge's replies are read, and how they become one verdict.

A reply is read strictly: it was not cut off, exactly one place of it matches ``reply_pattern``, no word follows that
place, and the number is inside ``scale``. Anything else is ``unparseable``, never a score. Only the reply is read, and
of it only what follows the judge's own thoughts; an answer cannot place a score there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answer import after_thoughts
from rewards.base import ERROR, TIMEOUT, UNPARSEABLE, Verdict
from rewards.judge_rules import Ask, NoReply, Reply, Rules

WIN, TIE, LOSS = 1.0, 0.5, 0.0
_SEVERITY = (ERROR, TIMEOUT, UNPARSEABLE)
_SHOWN = 300  # characters of a reply's end in a verdict's detail


class UnreadableReply(ValueError):
    """A judge's reply that is no verdict; the message says why and shows its end."""


def read_value(reply: Reply, ask: Ask, rules: Rules) -> float:
    """A reply's score in the judge's scale; pairwise: WIN, TIE or LOSS of the policy's answer.

    Raises UnreadableReply.
    """
    said = said_in(reply, rules)
    return _choice(said, ask, reply) if rules.pairwise else _score(said, reply, rules)


def said_in(reply: Reply, rules: Rules) -> str | None:
    """The text in the first group of ``rules.pattern`` where a reply says it in the agreed form.

    Raises UnreadableReply.
    """
    if not reply.complete:
        raise UnreadableReply(_told(f"the reply was cut off (max_tokens={rules.max_tokens})", reply))
    text = after_thoughts(reply.text)
    if text is None:
        raise UnreadableReply(_told("the judge's think block is not closed", reply))
    found = list(rules.pattern.finditer(text))
    if len(found) != 1:
        what = "verdict" if rules.pairwise else "score"
        raise UnreadableReply(_told(f"expected one {what} in the agreed form, got {len(found)}", reply))
    said: str | None = found[0][1]
    if re.search(r"\w", text[found[0].end() :]):
        raise UnreadableReply(_told(f"words follow {found[0][0].strip()!r}", reply))
    return said


def _score(said: str | None, reply: Reply, rules: Rules) -> float:
    try:
        value = float(said or "")
    except ValueError:
        raise UnreadableReply(_told(f"the score {said!r} is no number", reply)) from None
    if not math.isfinite(value) or not rules.low <= value <= rules.high:
        raise UnreadableReply(_told(f"the score {said} is outside {rules.low:g} to {rules.high:g}", reply))
    return value


def _choice(said: str | None, ask: Ask, reply: Reply) -> float:
    choice = (said or "").strip().upper()
    if choice in ("TIE", "C"):
        return TIE
    if choice not in ("A", "B"):
        raise UnreadableReply(_told(f"the verdict {said!r} is none of A, B, tie", reply))
    return WIN if (choice == "B") == ask.swapped else LOSS


def _told(why: str, reply: Reply) -> str:
    end = reply.text.strip()[-_SHOWN:]
    return f"{why}; the reply ends {end!r}" if end else f"{why}; the reply is empty"


def settle(asks: Sequence[Ask], replies: Sequence[Reply | NoReply], rules: Rules) -> Verdict:
    """The verdict of one row. One request without a readable reply makes the row that: half a jury is another judge.

    Pairwise, a vote is what both orders agree on, and a tie where they do not: the rule of MT-Bench (Zheng et al. 2023,
    arXiv:2306.05685, section 3.4, the conservative way). ``median`` and ``mean`` are those of the votes; ``majority``
    is the value of more than half of them, and ``unparseable`` where there is none.

    Parts: ``score_raw`` in the judge's scale, or pairwise ``order_conflicts``, the share of votes whose orders differ;
    with several votes ``votes`` and ``agreement``, the share of them that are the verdict's value; ``cached``, the
    share of replies that were, where any was.
    """
    values: list[float] = []
    troubles: list[NoReply] = []
    for ask, reply in zip(asks, replies, strict=True):
        if isinstance(reply, NoReply):
            troubles.append(reply)
            continue
        try:
            values.append(read_value(reply, ask, rules))
        except UnreadableReply as error:
            troubles.append(NoReply(UNPARSEABLE, str(error)))
    if troubles:
        worst = min(troubles, key=lambda trouble: _SEVERITY.index(trouble.status))
        return Verdict(0.0, worst.status, detail=worst.detail)
    votes = _votes(values, rules)
    value = _aggregated(votes.values, rules.aggregate)
    if value is None:
        return Verdict(0.0, UNPARSEABLE, detail=f"no majority among the votes {[f'{v:g}' for v in votes.values]}")
    parts: dict[str, float] = {}
    if rules.votes > 1:
        parts["votes"] = float(rules.votes)
        parts["agreement"] = sum(vote == value for vote in votes.values) / rules.votes
    if cached := sum(isinstance(reply, Reply) and reply.cached for reply in replies):
        parts["cached"] = cached / len(replies)
    if rules.pairwise:
        parts["order_conflicts"] = votes.conflicts / len(votes.values)
        score = value
    else:
        parts["score_raw"] = value
        score = (value - rules.low) / (rules.high - rules.low)
    last = next(reply.text for reply in reversed(replies) if isinstance(reply, Reply))
    return Verdict(score, parts=parts, detail=f"the judge: {last.strip()[-_SHOWN:]!r}")


@dataclass(frozen=True)
class _Votes:
    values: list[float]
    conflicts: int = 0  # votes whose two orders disagree


def _votes(values: Sequence[float], rules: Rules) -> _Votes:
    if not rules.pairwise:
        return _Votes(list(values))
    pairs = list(zip(values[: rules.votes], values[rules.votes :], strict=True))
    return _Votes([a if a == b else TIE for a, b in pairs], sum(a != b for a, b in pairs))


def _aggregated(values: Sequence[float], aggregate: str) -> float | None:
    if aggregate == "mean":
        return sum(values) / len(values)
    middle = sorted(values)[len(values) // 2]  # the value of more than half, where there is one
    if aggregate == "majority" and 2 * sum(value == middle for value in values) <= len(values):
        return None
    return middle
