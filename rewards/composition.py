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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rewards.base import (
    ERROR,
    NOT_APPLICABLE,
    OK,
    SUPPLIED,
    TIMEOUT,
    UNPARSEABLE,
    RewardFn,
    RewardLoadError,
    Signature,
    Verdict,
    nearest,
    signature_of,
)

_SEVERITY = (ERROR, TIMEOUT, UNPARSEABLE)
# Built-in functions whose worst and best score are 0 and 1. Of any other function nobody knows.
FROM_0_TO_1 = frozenset(
    {
        "math",
        "format",
        "exact",
        "multiple_choice",
        "f1",
        "rouge_l",
        "length",
        "repetition",
        "grounded_qa",
        "language",
        "tool_calls",
        "code",
        "code_all",
        "instruction",
        "json_schema",
    }
)


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

    @property
    def has_workers(self) -> bool:
        """Does the config alone give it workers of its own? (An async or served function has them anyway.)"""
        return bool(self.workers or self.gpus or self.concurrency or self.per_second)

    def applies(self, row: Mapping[str, Any]) -> bool:
        """Does it grade a row with these columns? They hold every column of ``when``."""
        return all(row[column] in values for column, values in self.when.items())

    def check_columns(self, columns: Iterable[str], reserved: Iterable[str] = ()) -> None:
        """Raises RewardLoadError when a column of ``when`` is absent, or one has the name of a setting.

        Settings are those in ``args``, and ``reserved``: the function would take the column, a list, for their value.
        """
        columns = set(columns)
        absent = sorted(set(self.when) - columns)
        if absent:
            raise RewardLoadError(
                f"reward.functions.{self.name}.when: the rows have no column {', '.join(absent)}; they have "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        twice = sorted(columns & set(self.args))
        if twice:
            raise RewardLoadError(
                f"reward.functions.{self.name}.args: {', '.join(twice)} is a column of the rows too, and the function "
                "cannot have both; rename the column (data.columns), or leave the setting out"
            )
        taken = sorted(columns & set(reserved))
        if taken:
            raise RewardLoadError(
                f"reward.functions.{self.name}: {', '.join(taken)} is a column of the rows, and of {self.function} a "
                "setting (a keyword-only parameter with a default), not a value a row; rename the column "
                "(data.columns), or the parameter, or write it before the `*`"
            )


_KEYS = tuple(f.name for f in fields(Part) if f.name != "name")


def read_parts(functions: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of a composition, by name. A value is a weight, a mapping of ``Part``'s fields, or a Part.

    A key without ``function`` in its mapping is itself what ``resolve`` takes, and the name is what follows its last
    colon: ``my.py:brevity`` is called ``brevity``. With ``function`` the key is the name: so one function can take part
    twice, with other settings.

    Raises:
        RewardLoadError: no function, an unknown key (with the nearest one), a value of the wrong kind, two parts of one
            name, or a gate that is no other part, or that waits for itself.
    """
    if not functions:
        raise RewardLoadError("reward.functions: expected at least one reward function, e.g. {math: 1.0}")
    parts: dict[str, Part] = {}
    for key, value in functions.items():
        part = value if isinstance(value, Part) else _read(str(key), value)
        if part.name in parts:
            raise RewardLoadError(
                f"rewards {parts[part.name].function!r} and {part.function!r} are both called {part.name!r} in "
                "metrics: give one another name, NAME: {function: ...}"
            )
        parts[part.name] = part
    for part in parts.values():
        for gate in part.needs:
            if math.isnan(part.needs[gate]):
                raise RewardLoadError(f"reward.functions.{part.name}.needs.{gate}: expected a number, got nan")
            if gate not in parts or gate == part.name:
                others = sorted(set(parts) - {part.name})
                raise RewardLoadError(
                    f"reward.functions.{part.name}.needs: expected other functions of this reward, "
                    f"{', '.join(others) or 'of which there are none'}; got {gate!r}{nearest(gate, others)}"
                )
    return parts


def _read(key: str, value: Any) -> Part:
    where = f"reward.functions.{key}"
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    for name in settings:
        if name not in _KEYS:
            raise RewardLoadError(
                f"{where}: expected a weight or {', '.join(_KEYS)}; got {name!r}{nearest(str(name), _KEYS)}"
            )
    function = settings.pop("function", None)
    if function is not None and not isinstance(function, str):
        raise RewardLoadError(f"{where}.function: expected the name of a function, got {function!r}")
    if function and ("/" in key or not key):
        raise RewardLoadError(f"{where}: expected a name without '/', which stands before the parts of a function")
    kinds = {"args": "setting: value", "when": "column: value or [values]"}
    mappings = {name: settings.pop(name, {}) for name in kinds}
    for name, inside in mappings.items():
        if not isinstance(inside, Mapping):
            raise RewardLoadError(f"{where}.{name}: expected {{{kinds[name]}}}, got {inside!r}")
    return Part(
        name=key if function else key.rpartition(":")[2],
        function=function or key,
        args=dict(mappings["args"]),
        when={str(c): tuple(v) if isinstance(v, (list, tuple)) else (v,) for c, v in mappings["when"].items()},
        needs=_needs(where, settings.pop("needs", {})),
        clip=_clip(where, settings.pop("clip", None)),
        workers=int(_number(f"{where}.workers", settings.pop("workers", 0), whole=True)),
        concurrency=int(_number(f"{where}.concurrency", settings.pop("concurrency", 0), whole=True)),
        **{name: _number(f"{where}.{name}", number) for name, number in settings.items()},
    )


def _number(where: str, value: Any, *, whole: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and not float(value).is_integer()):
        raise RewardLoadError(f"{where}: expected a {'whole ' * whole}number, got {value!r}")
    return float(value)


def _needs(where: str, value: Any) -> dict[str, float]:
    gates = [value] if isinstance(value, str) else value
    if isinstance(gates, Mapping):
        return {str(gate): _number(f"{where}.needs.{gate}", least) for gate, least in gates.items()}
    if not isinstance(gates, (list, tuple)):
        raise RewardLoadError(f"{where}.needs: expected a part, [parts] or {{part: least score}}, got {value!r}")
    return dict.fromkeys(map(str, gates), 1.0)


def _clip(where: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise RewardLoadError(f"{where}.clip: expected [low, high], got {value!r}")
    low, high = (_number(f"{where}.clip", bound) for bound in value)
    return low, high


def check_part(part: Part, fn: RewardFn) -> Signature:
    """Does the function take what the part says of it? Returns its signature.

    Raises:
        RewardLoadError: a setting that it does not have (the nearest one is named), limits for a function that is not
            ``rowwise``, a function that says it is both ``rowwise`` and ``groupwise``, or settings that the function's
            own ``check_settings(**args)``, where it has one, refuses with a ValueError.
    """
    where, signature = f"reward.functions.{part.name}", signature_of(fn, part.function)
    for name in part.args:
        if name not in signature.settings and (signature.names or not signature.takes_all):
            known = sorted(signature.settings)
            raise RewardLoadError(
                f"{where}.args: {part.function} has the settings {', '.join(known) or '(none)'}; got {name!r}"
                f"{nearest(name, known)}. Settings are keyword-only parameters, or where there are none those with a "
                "default"
            )
    rowwise, groupwise = getattr(fn, "rowwise", False), getattr(fn, "groupwise", False)
    if rowwise and groupwise:
        raise RewardLoadError(f"{where}: {part.function} is marked both rowwise and groupwise; remove one mark")
    limits = [name for name in ("concurrency", "per_second") if getattr(part, name)]
    if limits and not rowwise:
        raise RewardLoadError(
            f"{where}.{limits[0]}: a limit counts rows, and {part.function} takes whole "
            f"{'groups' if groupwise else 'batches'}; mark it @rowwise (rewards.base) if it grades each row by itself, "
            f"or leave {' and '.join(limits)} out"
        )
    try:
        getattr(fn, "check_settings", dict)(**part.args)
    except ValueError as error:
        raise RewardLoadError(f"{where}.args: {error}") from error
    return signature


def score_range(parts: Mapping[str, Part]) -> tuple[float, float] | None:
    """The rewards of a row that is all wrong and of one that is all right, or None where nobody can tell.

    Known where every function scores from 0 to 1, no weight is negative, every row is graded by every part, no clip
    cuts and a gate can be passed. (Gates move neither end: all 0 stays 0, and all 1 passes them.) A function that does
    not apply to a row lowers the best reward there: such a row is then not counted as all right.
    """
    known = all(
        part.function in FROM_0_TO_1
        and part.weight >= 0
        and not part.when
        and (part.clip is None or (part.clip[0] <= 0 and part.clip[1] >= 1))
        and all(least <= 1 for least in part.needs.values())
        for part in parts.values()
    )
    return (0.0, math.fsum(part.weight for part in parts.values())) if known else None


def compose(verdicts: Mapping[str, Verdict], parts: Mapping[str, Part]) -> Verdict:
    """One row's reward from the verdicts of the parts that apply to it: the weighted sum of the clipped scores.

    - A verdict ``error``, ``timeout`` or ``unparseable`` gives the whole its status (in that order of precedence): a
      sum without it would be another reward, so the rollout is left out.
    - A ``not_applicable`` verdict does not count for this row, as ``None`` does in TRL; when no part applies, the row
      is ``not_applicable``, and so is one that only parts of weight 0 have graded, where others have weights.
    - A sum beyond what a float holds is an ``error``.
    - A part whose gate scored less than the part needs counts 0; a gate that does not apply to the row holds nothing
      back. Gates look at raw scores.
    - ``parts`` of the result holds every raw score; parts that a function returned itself are kept under
      ``function/part``.
    """
    scores: dict[str, float] = {}
    details: list[str] = []
    terms: list[float] = []
    for name, part in parts.items():
        if name not in verdicts:
            continue
        verdict = verdicts[name]
        held = _held_back(part, verdicts) if verdict.ok else ""
        if verdict.detail or held:
            text = "; ".join(text for text in (held, verdict.detail) if text)
            details.append(text if len(parts) == 1 else f"{name}: {text}")
        if verdict.ok:
            scores[name] = float(verdict.score)
            scores.update({f"{name}/{key}": float(value) for key, value in verdict.parts.items()})
            terms.append(0.0 if held else part.weight * _clipped(verdict.score, part.clip))
    status = next((s for s in _SEVERITY if any(verdict.status == s for verdict in verdicts.values())), OK)
    weighty = {name for name, part in parts.items() if part.weight} or set(parts)
    if status == OK and not any(verdict.ok for name, verdict in verdicts.items() if name in weighty):
        status = NOT_APPLICABLE
    total = _sum(terms)
    if status == OK and not math.isfinite(total):
        status = ERROR
        details.append(f"expected scores whose weighted sum is finite, got {scores}")
    return Verdict(
        score=total if status == OK else 0.0,
        status=status,
        parts=scores,
        detail="\n".join(details),
        seconds=math.fsum(verdict.seconds for verdict in verdicts.values()),
    )


def _sum(terms: Iterable[float]) -> float:
    """Exact, so that the order of parts does not matter; infinite where it is too large for a float."""
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # ValueError: inf - inf
        return math.inf


def _held_back(part: Part, verdicts: Mapping[str, Verdict]) -> str:
    for gate, least in part.needs.items():
        if gate in verdicts and verdicts[gate].ok and verdicts[gate].score < least:
            return f"counts 0: {gate} scored {verdicts[gate].score:g}, {part.name} needs {least:g}"
    return ""


def _clipped(score: float, clip: tuple[float, float] | None) -> float:
    return float(score) if clip is None else min(max(float(score), clip[0]), clip[1])
