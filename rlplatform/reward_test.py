"""`rlplatform reward test`: grade completions in a file. No model, no Ray.

An output row is the input row (``rlplatform/reward_rows.py``) plus ``score``, ``status``, ``parts``, ``detail`` and
``seconds``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.base import OK, STATUSES, RewardLoadError, Verdict, resolve
from rewards.runner import RewardPool
from rlplatform.config import ConfigError
from rlplatform.reward_choice import Choice, choose
from rlplatform.reward_rows import Row, agrees, batches, columns_of, groups_of, ids_of, read_rows

MAX_SHOWN_ROWS = 20
NUM_SLOWEST = 3
PASSED, FAILED, WRONG = 0, 1, 2


@dataclass(frozen=True)
class Tested:
    """``n`` rows and what was said of them."""

    rows: Sequence[Row]  # [n]
    verdicts: Sequence[Verdict]  # [n]
    logged: Mapping[str, Sequence[Any]]  # column -> [n], from log_extra
    metrics: Mapping[str, float]  # from log_metric, mean over calls
    tracebacks: Mapping[str, str]  # function -> traceback of its first failure

    @property
    def disagreements(self) -> list[int]:
        """Rows whose verdict is not the expected one."""
        pairs = zip(self.rows, self.verdicts, strict=True)
        return [number for number, (row, verdict) in enumerate(pairs) if not agrees(row.get("expect"), verdict)]

    @property
    def not_ok(self) -> list[int]:
        """Rows without an ``ok`` verdict that do not expect it."""
        pairs = zip(self.rows, self.verdicts, strict=True)
        return [number for number, (row, v) in enumerate(pairs) if not v.ok and row.get("expect") != v.status]


def run_reward_test(
    functions: Sequence[str],
    data: Path,
    out: Path | None = None,
    *,
    config: Path | None = None,
    stage: str = "",
    args: Sequence[str] = (),
    timeout_s: float | None = None,
    limit: int = 0,
    strict: bool = False,
) -> int:
    """Grade the rows of ``data``, print tables and the first traceback of each function, write ``out``.

    Args:
        functions, config, stage, args, timeout_s: which reward; see ``rlplatform.reward_choice.choose``.
        data: JSONL, gzipped where it ends in ``.gz``.
        out: verdicts as JSONL; None writes none.
        limit: only the first ``limit`` rows; 0 = all.
        strict: a row whose verdict is not ``ok``, and that does not expect so, counts as a failure.

    Returns the exit code: 0; 1 when a verdict is not the expected one, or ``strict`` fails; 2 when the function could
    not be loaded or the file not be read.
    """
    try:
        choice = choose(functions, config, stage, args, timeout_s)
        rows = read_rows(data, limit)
        tested = grade_rows(choice, rows)
        if out is not None:
            write_verdicts(out, tested)
    except (ConfigError, RewardLoadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    show(choice, tested)
    if out is not None:
        print(f"verdicts: {out}")
    if strict and tested.not_ok:
        print(f"--strict: {len(tested.not_ok)} rows have no ok verdict: {_numbers(tested.not_ok)}")
    return FAILED if tested.disagreements or (strict and tested.not_ok) else PASSED


def grade_rows(choice: Choice, rows: Sequence[Row]) -> Tested:
    """Every row graded, in batches; rows need not have the same columns: where one has none, functions get None.

    Raises RewardLoadError when a function cannot be loaded, or the rows lack what the reward needs to be asked.
    """
    is_grouped = any(getattr(resolve(part.function), "groupwise", False) for part in choice.parts.values())
    groups = groups_of(rows) if is_grouped else None
    columns, ids = columns_of(rows), ids_of(rows)
    verdicts: dict[int, Verdict] = {}
    logged: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    with RewardPool(choice.parts, choice.num_processes, choice.timeout_s) as pool:
        for numbers in batches(len(rows), groups):
            scored = pool.score_detailed(
                [rows[number].get("prompt", "") for number in numbers],
                [rows[number]["completion"] for number in numbers],
                {name: [values[number] for number in numbers] for name, values in columns.items()},
                None if ids is None else [ids[number] for number in numbers],
                groups=None if groups is None else [groups[number] for number in numbers],
            )
            verdicts |= dict(zip(numbers, scored.verdicts, strict=True))
            for column, values in scored.extras.items():
                target = logged.setdefault(column, [None] * len(rows))
                for number, value in zip(numbers, values, strict=True):
                    target[number] = value
            for name, mean in scored.metrics.items():
                metrics.setdefault(name, []).append(mean)
        tracebacks = dict(pool.first_tracebacks)
    means = {name: sum(values) / len(values) for name, values in metrics.items()}
    return Tested(rows, [verdicts[number] for number in range(len(rows))], logged, means, tracebacks)


def write_verdicts(path: Path, tested: Tested) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, verdict in zip(tested.rows, tested.verdicts, strict=True):
            result = {
                "score": verdict.score,
                "status": verdict.status,
                "parts": dict(verdict.parts),
                "detail": verdict.detail,
                "seconds": round(verdict.seconds, 6),
            }
            file.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")


# --- what is printed --------------------------------------------------------------------------------------------------


def show(choice: Choice, tested: Tested) -> None:
    """Print a table of the first rows, a summary, the disagreements, and the first tracebacks."""
    from rich.console import Console

    console = Console()
    console.print(_table_of_rows(choice, tested))
    if len(tested.rows) > MAX_SHOWN_ROWS:
        print(f"(the first {MAX_SHOWN_ROWS} of {len(tested.rows)} rows)")
    _summary(tested)
    expecting = sum(row.get("expect") is not None for row in tested.rows)
    if expecting:
        print(f"expect: {expecting - len(tested.disagreements)} of {expecting} rows got what they expect")
    if tested.disagreements:
        console.print(_table_of_disagreements(tested))
        if len(tested.disagreements) > MAX_SHOWN_ROWS:
            print(f"(the first {MAX_SHOWN_ROWS} of {len(tested.disagreements)} disagreements)")
    for function, text in tested.tracebacks.items():
        print(f"\nfirst failure of {function}:\n{text.rstrip()}")


def _table_of_rows(choice: Choice, tested: Tested) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{choice.title}, {len(tested.rows)} rows")
    several = len(choice.parts) > 1
    for header in ["row", "status", "score", "ms"]:
        table.add_column(header, justify="left" if header == "status" else "right", no_wrap=True)
    for header in [*["parts"] * several, "completion", *tested.logged, "detail"]:
        table.add_column(header, overflow="fold")
    for number, (row, verdict) in enumerate(zip(tested.rows, tested.verdicts, strict=True)):
        if number == MAX_SHOWN_ROWS:
            break
        cells = [
            str(number),
            verdict.status,
            got(verdict, status=False),
            f"{1000 * verdict.seconds:.1f}",
            *[_parts(verdict, list(choice.parts))] * several,
            _end(row["completion"]),
            *(_end(values[number]) for values in tested.logged.values()),
            _end(verdict.detail, 160),
        ]
        style = "" if verdict.ok else "red"
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _table_of_disagreements(tested: Tested) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"disagreements: {len(tested.disagreements)}")
    for header in ("row", "expected", "got"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("completion", "detail"):
        table.add_column(header, overflow="fold")
    for number in tested.disagreements[:MAX_SHOWN_ROWS]:
        row, verdict = tested.rows[number], tested.verdicts[number]
        expect = row["expect"] if isinstance(row["expect"], str) else f"{row['expect']:.4g}"
        cells = [str(number), expect, got(verdict), _end(row["completion"]), _end(verdict.detail, 160)]
        table.add_row(*map(Text, cells))
    return table


def _summary(tested: Tested) -> None:
    verdicts = tested.verdicts
    counts = Counter(verdict.status for verdict in verdicts)
    scores = [verdict.score for verdict in verdicts if verdict.ok]
    print("status: " + ", ".join(f"{status} {counts[status]}" for status in STATUSES if counts[status] or status == OK))
    if scores:
        print(f"score of ok rows: mean {sum(scores) / len(scores):.4f}, min {min(scores):g}, max {max(scores):g}")
    for name, value in tested.metrics.items():
        print(f"logged {name}: {value:.4g}")
    ms = sorted(1000 * verdict.seconds for verdict in verdicts)
    print(f"ms a row: median {_percentile(ms, 0.5):.1f}, p99 {_percentile(ms, 0.99):.1f}, slowest {ms[-1]:.1f}")
    if len(verdicts) > NUM_SLOWEST:
        slowest = sorted(range(len(verdicts)), key=lambda number: -verdicts[number].seconds)[:NUM_SLOWEST]
        print("slowest rows: " + ", ".join(f"{n} ({1000 * verdicts[n].seconds:.1f} ms)" for n in slowest))


def got(verdict: Verdict, *, status: bool = True) -> str:
    """The score, or where there is none the status (or a dash)."""
    return f"{verdict.score:.4g}" if verdict.ok else verdict.status if status else "-"


def _parts(verdict: Verdict, names: Sequence[str]) -> str:
    """Raw scores, one a line; a part that did not grade the row, or has no score, is absent."""
    return "\n".join(f"{name} {verdict.parts[name]:.4g}" for name in names if name in verdict.parts)


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def _numbers(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:10])) + ", ..." * (len(rows) > 10)


def _end(value: Any, width: int = 60) -> str:
    """The last characters on one line: the answer stands at the end."""
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= width else "..." + text[3 - width :]
