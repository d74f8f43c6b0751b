"""How several reward functions become one reward: weights, gates, routing by column, clipping.

    reward:
      functions:
        format: 0.1                                        a weight; or what follows
        math: {weight: 1.0, needs: [format], when: {task: [gsm8k, math]}}
        code: {weight: 1.0, needs: {format: 1.0}, when: {task: code}, args: {scoring: all}}
        polite: {function: preference, weight: 0.5, clip: [-4, 4], args: {model: runs/rm/model}}

Every function that applies to a row grades it, gate or not: the record holds every raw score beside the reward that is
trained on. What the reward counts is decided here, in one pure function, ``compose``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rewards.base import (
    ERROR,
    NOT_APPLICABLE,
    OK,
    SUPPLIED,
    TIMEOUT,
    UNPARSEABLE,
    RewardLoadError,
    Verdict,
    nearest,
)

_SEVERITY = (ERROR, TIMEOUT, UNPARSEABLE)


@dataclass(frozen=True)
class Part:
    """One reward function of a composition, as configured."""

    name: str  # in parts, metrics and gates
    function: str  # what ``rewards.base.resolve`` takes
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)  # the function's settings, passed as keywords
    needs: Mapping[str, float] = field(default_factory=dict)  # other part -> the score from which this one counts
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # column -> values of the rows it grades
    clip: tuple[float, float] | None = None  # bounds of its score in the reward; the record keeps the raw one
    timeout_s: float = 0.0  # seconds a row may take; 0 = reward.timeout_s
    workers: int = 0  # reward workers of its own; 0 = it shares those of the service
    concurrency: int = 0  # rows at the same time, all workers together; 0 = as many as processes, async: 16 a worker
    per_second: float = 0.0  # rows a second, all workers together; 0 = no limit
    gpus: float = 0.0  # of each worker of its own

    def __post_init__(self) -> None:
        where = f"reward.functions.{self.name}"
        if not math.isfinite(self.weight):
            raise RewardLoadError(f"{where}.weight: expected a finite number, got {self.weight}")
        taken = sorted(set(self.args) & set(SUPPLIED))
        if taken:
            raise RewardLoadError(f"{where}.args: {', '.join(taken)} come from the platform; they are no settings")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise RewardLoadError(f"{where}.clip: expected [low, high] with low < high, got {list(self.clip)}")
        for name in ("timeout_s", "workers", "concurrency", "per_second", "gpus"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RewardLoadError(f"{where}.{name}: expected >= 0, got {getattr(self, name)}")

    def applies(self, columns: Mapping[str, Any]) -> bool:
        """Does it grade a row with these columns? Raises RewardLoadError when a column of ``when`` is absent."""
        absent = sorted(set(self.when) - set(columns))
        if absent:
            raise RewardLoadError(
                f"reward.functions.{self.name}.when: the rows have no column {', '.join(absent)}; they have "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        return all(columns[column] in values for column, values in self.when.items())


_KEYS = tuple(f.name for f in fields(Part) if f.name != "name")


def read_parts(functions: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of a composition, by name. A value is a weight or a mapping of ``Part``'s fields.

    A key without ``function`` in its mapping is itself what ``resolve`` takes, and the name is what follows its last
    colon: ``my.py:brevity`` is called ``brevity``. With ``function`` the key is the name: so one function can take part
    twice, with other settings.

    Raises:
        RewardLoadError: no function, an unknown key (with the nearest one), a value of the wrong kind, two parts of one
            name, or a gate that is no other part, or that waits for itself.
    """
    if not functions:
        raise RewardLoadError("reward.functions: expected at least one, e.g. {math: 1.0}")
    parts: dict[str, Part] = {}
    for key, value in functions.items():
        settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
        part = _read(str(key), settings)
        if part.name in parts:
            raise RewardLoadError(
                f"rewards {parts[part.name].function!r} and {part.function!r} are both called {part.name!r} in "
                "metrics: give one another name, NAME: {function: ...}"
            )
        parts[part.name] = part
    for part in parts.values():
        for gate in part.needs:
            if gate not in parts or gate == part.name:
                others = sorted(set(parts) - {part.name})
                raise RewardLoadError(
                    f"reward.functions.{part.name}.needs: expected other functions of this reward, "
                    f"{', '.join(others) or 'of which there are none'}; got {gate!r}{nearest(gate, others)}"
                )
    return parts


def _read(key: str, settings: dict[str, Any]) -> Part:
    where = f"reward.functions.{key}"
    for name in settings:
        if name not in _KEYS:
            raise RewardLoadError(
                f"{where}: expected a weight or {', '.join(_KEYS)}; got {name!r}{nearest(name, _KEYS)}"
            )
    function = settings.pop("function", None)
    name = key if function else key.rpartition(":")[2]
    needs = settings.pop("needs", {})
    if isinstance(needs, str):
        needs = [needs]
    if not isinstance(needs, Mapping):
        needs = dict.fromkeys(needs, 1.0)
    when = settings.pop("when", {})
    if not isinstance(when, Mapping):
        raise RewardLoadError(f"{where}.when: expected {{column: value or [values]}}, got {when!r}")
    clip = settings.pop("clip", None)
    if clip is not None and (isinstance(clip, str) or not isinstance(clip, Sequence) or len(clip) != 2):
        raise RewardLoadError(f"{where}.clip: expected [low, high], got {clip!r}")
    args = settings.pop("args", {})
    if not isinstance(args, Mapping):
        raise RewardLoadError(f"{where}.args: expected {{setting: value}}, got {args!r}")
    try:
        return Part(
            name=name,
            function=str(function or key),
            args=dict(args),
            needs={str(gate): float(least) for gate, least in needs.items()},
            when={str(c): tuple(v) if isinstance(v, (list, tuple)) else (v,) for c, v in when.items()},
            clip=None if clip is None else (float(clip[0]), float(clip[1])),
            **{k: int(v) if k in ("workers", "concurrency") else float(v) for k, v in settings.items()},
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, RewardLoadError):
            raise
        raise RewardLoadError(f"{where}: expected numbers, got {settings}: {error}") from error


def compose(verdicts: Mapping[str, Verdict], parts: Mapping[str, Part]) -> Verdict:
    """One row's reward from the verdicts of the parts that apply to it: the weighted sum of the clipped scores.

    - A verdict ``error``, ``timeout`` or ``unparseable`` gives the whole its status (in that order of precedence): a sum
      without it would be another reward, so the rollout is left out.
    - A ``not_applicable`` verdict does not count for this row, as ``None`` does in TRL; when no part applies, the row is
      ``not_applicable``.
    - A part whose gate scored less than the part needs counts 0; a gate that does not apply to the row holds nothing
      back. Gates look at raw scores.
    - ``parts`` of the result holds every raw score; parts that a function returned itself are kept under
      ``function/part``.
    """
    scores: dict[str, float] = {}
    details: list[tuple[str, str]] = []
    total = 0.0
    for name, verdict in verdicts.items():
        held = _held_back(parts[name], verdicts) if verdict.ok else ""
        if verdict.detail or held:
            details.append((name, "; ".join(text for text in (held, verdict.detail) if text)))
        if verdict.ok:
            scores[name] = float(verdict.score)
            scores.update({f"{name}/{key}": float(value) for key, value in verdict.parts.items()})
            total += 0.0 if held else parts[name].weight * _clipped(verdict.score, parts[name].clip)
    status = next((s for s in _SEVERITY if any(verdict.status == s for verdict in verdicts.values())), OK)
    if status == OK and not any(verdict.ok for verdict in verdicts.values()):
        status = NOT_APPLICABLE
    return Verdict(
        score=total if status == OK else 0.0,
        status=status,
        parts=scores,
        detail="\n".join(text if len(parts) == 1 else f"{name}: {text}" for name, text in details),
        seconds=sum(verdict.seconds for verdict in verdicts.values()),
    )


def _held_back(part: Part, verdicts: Mapping[str, Verdict]) -> str:
    for gate, least in part.needs.items():
        if gate in verdicts and verdicts[gate].ok and verdicts[gate].score < least:
            return f"counts 0: {gate} scored {verdicts[gate].score:g}, {part.name} needs {least:g}"
    return ""


def _clipped(score: float, clip: tuple[float, float] | None) -> float:
    return float(score) if clip is None else min(max(float(score), clip[0]), clip[1])
