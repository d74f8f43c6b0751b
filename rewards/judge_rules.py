"""How a judge is asked and how its replies are read: no network, no engine. Both kinds of judge stand on this.

    case_of ─► plan: votes x orders ─► [somebody asks a model] ─► settle: replies ─► verdict

A reply is read strictly: it was not cut off, exactly one place of it matches ``reply_pattern``, no word follows that
place, and the number is inside ``scale``. Anything else is ``unparseable``, never a score. Only the reply is read, and
of it only what follows the judge's own thoughts; an answer cannot place a score there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import ERROR, TIMEOUT, UNPARSEABLE, Verdict, nearest
from rewards.format import prompt_opens_block, text_of
from rewards.judge_prompts import (
    PAIRWISE,
    PAIRWISE_WITH_REFERENCE,
    WITH_REFERENCE,
    WITHOUT_REFERENCE,
    Case,
    JudgeSettingsError,
    fill,
    question_of,
    read_template,
)
from rewards.response import has_content
from rewards.text import references

AGGREGATES = ("median", "majority", "mean")
_DECORATION = r"[*_`#> \t]*"  # of Markdown
SCORE_PATTERN = rf"^{_DECORATION}Score{_DECORATION}:{_DECORATION}(-?[0-9]+(?:\.[0-9]+)?){_DECORATION}\.?{_DECORATION}$"
CHOICE_PATTERN = rf"^{_DECORATION}Verdict{_DECORATION}:{_DECORATION}(A|B|[Tt]ie){_DECORATION}\.?{_DECORATION}$"
WIN, TIE, LOSS = 1.0, 0.5, 0.0
_SEVERITY = (ERROR, TIMEOUT, UNPARSEABLE)
_SHOWN = 300  # characters of a reply's end in a verdict's detail


@dataclass(frozen=True)
class Rules:
    """The settings of a judge, but for where it is. Raises JudgeSettingsError."""

    prompt: str = ""  # a template or a file that holds one; "" = those of rewards.judge_prompts
    system: str = ""  # a system message before it
    scale: Sequence[float] = (0.0, 1.0)  # the judge's lowest and highest score; mapped to 0 and 1
    reply_pattern: str = ""  # a regular expression with one group, ^ and $ match at lines; "" = SCORE/CHOICE_PATTERN
    pairwise: bool = False  # compare with column `baseline`, or with the reference, in both orders
    use_reference: bool | None = None  # None: where the rows have the column; true: demanded; false: never
    votes: int = 1  # odd
    aggregate: str = "median"  # of AGGREGATES
    temperature: float = 0.0
    max_tokens: int = 1024  # of a reply, thoughts included; 0 = the endpoint's own limit
    seed: int = 0  # of the first vote; sent with a temperature above 0
    max_answer_chars: int = 20_000  # a longer answer scores 0

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and bool not in _classes(kind)):
                raise JudgeSettingsError(
                    f"judge: {name}: expected {' or '.join(k.__name__ for k in _classes(kind))}, got {value!r}"
                    + ("; is that a column of the dataset? rename it there" if isinstance(value, list) else "")
                )
        if isinstance(self.scale, str) or len(self.scale) != 2 or not self.low < self.high:
            raise JudgeSettingsError(f"judge: scale: expected [lowest, highest], e.g. [1, 10], got {self.scale!r}")
        if self.votes < 1 or self.votes % 2 == 0:
            raise JudgeSettingsError(f"judge: votes: expected an odd number, got {self.votes}")
        if self.votes > 1 and self.temperature == 0:
            raise JudgeSettingsError(
                f"judge: votes: {self.votes} at temperature 0 are one vote {self.votes} times; set temperature, e.g. "
                "0.7"
            )
        if self.aggregate not in AGGREGATES:
            raise JudgeSettingsError(f"judge: aggregate: expected one of {AGGREGATES}, got {self.aggregate!r}")
        if self.temperature < 0 or self.max_tokens < 0 or self.max_answer_chars < 1:
            raise JudgeSettingsError(
                "judge: expected temperature >= 0, max_tokens >= 0 and max_answer_chars >= 1, got "
                f"{self.temperature}, {self.max_tokens} and {self.max_answer_chars}"
            )
        if self.pattern.groups < 1:
            raise JudgeSettingsError(f"judge: reply_pattern: expected a group around the score: {self.reply_pattern!r}")

    @property
    def low(self) -> float:
        return float(self.scale[0])

    @property
    def high(self) -> float:
        return float(self.scale[1])

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        text = self.reply_pattern or (CHOICE_PATTERN if self.pairwise else SCORE_PATTERN)
        try:
            return re.compile(text, re.MULTILINE)
        except re.error as error:
            raise JudgeSettingsError(f"judge: reply_pattern: not a regular expression: {text!r}: {error}") from error

    def template(self, *, with_reference: bool) -> str:
        """Raises JudgeSettingsError."""
        if not self.prompt:
            pair, single = (
                (PAIRWISE_WITH_REFERENCE, WITH_REFERENCE) if with_reference else (PAIRWISE, WITHOUT_REFERENCE)
            )
            return pair if self.pairwise else single
        needed = ["answer_a", "answer_b"] if self.pairwise else ["answer"]
        known = ["question", *needed, "reference", "low", "high"]
        return read_template(self.prompt, needed + ["reference"] * with_reference, known)


_KINDS: dict[str, Any] = {
    "prompt": str,
    "system": str,
    "scale": Sequence,
    "reply_pattern": str,
    "pairwise": bool,
    "use_reference": (bool, type(None)),
    "votes": int,
    "aggregate": str,
    "temperature": (int, float),
    "max_tokens": int,
    "seed": int,
    "max_answer_chars": int,
}


def _classes(kind: Any) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def rules_of(settings: Mapping[str, Any], *, others: Iterable[str] = ()) -> tuple[Rules, dict[str, Any]]:
    """Rules from settings by name, and the settings that are none: those of ``others``.

    Raises JudgeSettingsError for a name that is neither.
    """
    names = [f.name for f in fields(Rules)]
    allowed = [*names, *others]
    for name in settings:
        if name not in allowed:
            raise JudgeSettingsError(f"judge: no setting {name!r}{nearest(name, allowed)}; there are {allowed}")
    rules = Rules(**{name: value for name, value in settings.items() if name in names})
    return rules, {name: value for name, value in settings.items() if name not in names}


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request to the judge."""

    messages: tuple[Mapping[str, str], ...]
    vote: int
    swapped: bool = False  # pairwise: the policy's answer is B


@dataclass(frozen=True)
class Reply:
    """What the judge said."""

    text: str
    complete: bool = True  # false: cut off, at max_tokens or by a filter
    cached: bool = False
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class NoReply:
    """Why there is none: a verdict's status and detail."""

    status: str
    detail: str


@dataclass
class Usage:
    """Sums over the requests of a call, for ``log_metric``."""

    rows: int = 0
    asked: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0  # of replies that were not cached
    completion_tokens: int = 0

    def add(self, replies: Sequence[Reply | NoReply]) -> None:
        self.rows += any(isinstance(reply, Reply) for reply in replies)
        for reply in replies:
            self.asked += 1
            if isinstance(reply, Reply):
                self.cached += reply.cached
                self.retries += reply.retries
                if not reply.cached:
                    self.prompt_tokens += reply.prompt_tokens
                    self.completion_tokens += reply.completion_tokens

    def metrics(self) -> dict[str, float]:
        """Share of requests from the cache; the rest per row with a reply. Nothing where there was none."""
        if not self.rows:
            return {}
        sums = {name: getattr(self, name) / self.rows for name in ("retries", "prompt_tokens", "completion_tokens")}
        return {f"judge/{name}": value for name, value in {"cached": self.cached / self.asked, **sums}.items()}


def case_of(
    prompt: Any,
    completion: Any,
    prompt_text: str | None,
    columns: Mapping[str, Any],
    rules: Rules,
) -> Case | Verdict:
    """What is to be judged, or the verdict where nobody needs to be asked.

    ``columns`` are the row's: ``reference``, or else ``answer``; ``baseline``. A reference that cannot be read is
    ``unparseable``. No answer, an open think block and an answer above ``max_answer_chars`` are ok with score 0.
    """
    reference = next((columns[name] for name in ("reference", "answer") if name in columns), None)
    wanted = {"reference": reference} if _wants_reference(columns, rules) else {}
    if rules.pairwise and "baseline" in columns:
        wanted["baseline"] = columns["baseline"]
    found: dict[str, str] = {}
    for name, value in wanted.items():
        texts = references(value)
        if texts is None:
            shown = repr(value)[:100] if value is not None else "nothing"
            return Verdict(0.0, UNPARSEABLE, detail=f"expected a {name} for the judge, got {shown}")
        found[name] = texts[0] if len(texts) == 1 else "One of:\n" + "\n".join(f"- {text}" for text in texts)
    rival = found.get("baseline", found.get("reference", "")) if rules.pairwise else ""
    if rules.pairwise and not rival:
        return Verdict(0.0, UNPARSEABLE, detail="pairwise: expected a column baseline or reference, got neither")
    answer = after_thoughts(text_of(completion), opened=prompt_opens_block(prompt, prompt_text))
    if answer is None:
        return Verdict(0.0, detail="the think block is not closed")
    if not has_content(answer):
        return Verdict(0.0, detail="no answer")
    if len(answer) > rules.max_answer_chars:
        return Verdict(0.0, detail=f"an answer of {len(answer)} characters, above {rules.max_answer_chars}")
    shown_reference = "" if rules.pairwise and "baseline" not in found else found.get("reference", "")
    return Case(question_of(prompt), answer.strip(), shown_reference, rival)


def _wants_reference(columns: Mapping[str, Any], rules: Rules) -> bool:
    present = "reference" in columns or "answer" in columns
    if rules.use_reference is None:
        return present
    return rules.use_reference


def plan(case: Case, rules: Rules, tokens: Iterable[str] = ()) -> list[Ask]:
    """The requests of a case: each vote in each order. Raises JudgeSettingsError for a template that cannot work."""
    template = rules.template(with_reference=bool(case.reference))
    numbers = {"low": f"{rules.low:g}", "high": f"{rules.high:g}"}
    asks = []
    for swapped in (False, True) if rules.pairwise else (False,):
        content = fill(template, case, numbers, swapped=swapped, tokens=tokens)
        messages = [{"role": "system", "content": rules.system}] if rules.system else []
        messages.append({"role": "user", "content": content})
        asks += [Ask(tuple(messages), vote, swapped) for vote in range(rules.votes)]
    return asks


# --- what is read ---------------------------------------------------------------------------------------------------


class UnreadableReply(ValueError):
    """A judge's reply that is no verdict; the message says why and shows its end."""


def read_value(reply: Reply, ask: Ask, rules: Rules) -> float:
    """A reply's score in the judge's scale; pairwise: WIN, TIE or LOSS of the policy's answer.

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
    said = found[0][1]
    if re.search(r"\w", text[found[0].end() :]):
        raise UnreadableReply(_told(f"words follow {found[0][0].strip()!r}", reply))
    return _choice(said, ask, reply) if rules.pairwise else _score(said, reply, rules)


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
