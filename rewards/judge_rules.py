"""How a judge is asked: no network, no engine. Both kinds of judge stand on this and on ``rewards/judge_reading.py``.

case_of ─► plan: votes x orders ─► [somebody asks a model] ─► judge_reading.settle: replies ─► verdict
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import UNPARSEABLE, Verdict, nearest
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
    cached: bool = False  # not asked for by this row: kept from before, or asked by another row just now
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
