"""What is said and kept of grading itself: how long it took, which rows were slow, how functions failed first."""

from __future__ import annotations

import heapq
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rewards.base import ERROR, TIMEOUT, Verdict
from rlplatform.types import Metrics, RolloutGroup

LOGGER = logging.getLogger(__name__)
SLOW_ROWS = 10  # kept of a step
SLOW_FILE, FAILURES_FILE = "slow_rewards.jsonl", "reward_failures.txt"
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)


@dataclass
class Window:
    """What came back since the last step."""

    statuses: Counter[str] = field(default_factory=Counter)  # of composed verdicts
    row_seconds: list[float] = field(default_factory=list)  # all functions of a row together
    seconds: dict[str, list[float]] = field(default_factory=dict)  # function -> of each row
    failures: Counter[str] = field(default_factory=Counter)  # function -> verdicts `error` or `timeout`
    custom: dict[str, list[float]] = field(default_factory=dict)  # what functions gave to log_metric
    tracebacks: dict[str, str] = field(default_factory=dict)  # function -> of its first failure
    waited_s: float = 0.0  # in `poll`, with nothing else to do

    @property
    def num_verdicts(self) -> int:
        return sum(self.statuses.values())

    @property
    def error_rate(self) -> float:
        return (self.statuses[ERROR] + self.statuses[TIMEOUT]) / max(1, self.num_verdicts)

    def note(self, function: str, verdicts: Sequence[Verdict]) -> None:
        self.seconds.setdefault(function, []).extend(verdict.seconds for verdict in verdicts)
        self.failures[function] += sum(verdict.status in (ERROR, TIMEOUT) for verdict in verdicts)

    def metrics(self) -> Metrics:
        seconds = self.row_seconds or [0.0]
        metrics: Metrics = {
            "score/seconds_p50": float(np.percentile(seconds, 50)),
            "score/seconds_p99": float(np.percentile(seconds, 99)),
            "score/error_rate": self.error_rate,
            "score/critical_seconds": self.waited_s,
        }
        for function, values in self.seconds.items():
            metrics[f"score/seconds_p50/{function}"] = float(np.percentile(values, 50))
            metrics[f"score/seconds_p99/{function}"] = float(np.percentile(values, 99))
            metrics[f"score/error_rate/{function}"] = self.failures[function] / len(values)
        for name, values in self.custom.items():
            metrics[f"score/custom/{name}"] = sum(values) / len(values)
        return metrics


class Records:
    """Slow rows and first failures, in the run's folder where there is one.

    Args:
        folder: the run's; None keeps nothing on disk.
        sources: function -> the file that holds it, for the line that an error names first.
    """

    def __init__(self, folder: Path | None, sources: Mapping[str, str]) -> None:
        self._folder = folder
        self._sources = sources
        self._slow: list[tuple[float, int, dict[str, object]]] = []  # a heap, the least slow on top
        self._num_rows = 0
        self.tracebacks: dict[str, str] = {}  # function -> of its first failure since the start

    def note_rows(self, function: str, group: RolloutGroup, step: int, verdicts: Sequence[Verdict]) -> None:
        for sample, verdict in enumerate(verdicts):
            self._num_rows += 1
            if len(self._slow) < SLOW_ROWS or verdict.seconds > self._slow[0][0]:
                row = {
                    "step": step,
                    "prompt_id": group.prompt.prompt_id,
                    "sample": sample,
                    "function": function,
                    "seconds": round(verdict.seconds, 4),
                    "status": verdict.status,
                    "detail": verdict.detail[:500],
                }
                push = heapq.heappush if len(self._slow) < SLOW_ROWS else heapq.heappushpop
                push(self._slow, (verdict.seconds, self._num_rows, row))

    def write_slow_rows(self) -> None:
        """Append the slowest rows since the last call, slowest first."""
        slow, self._slow = sorted(self._slow, reverse=True), []
        if slow and self._folder is not None:
            with (self._folder / SLOW_FILE).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for _, _, row in slow)

    def headline(self, function: str, text: str) -> str:
        return headline(text, self._sources.get(function, ""))

    def note_failure(self, function: str, prompt_id: str, text: str) -> None:
        """Write down, and show, the first failure of a function."""
        if function in self.tracebacks:
            return
        self.tracebacks[function] = text
        told = f"reward {function} failed for the first time, on prompt {prompt_id}: {self.headline(function, text)}"
        where = ""
        if self._folder is not None:
            path = self._folder / FAILURES_FILE
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{told}\n{text.rstrip()}\n\n")
            where = f" (the whole of it: {path})"
        LOGGER.warning("%s%s", told, where)


def headline(text: str, source: str = "") -> str:
    """One line of a traceback: the exception, and the line that raised it, in the file ``source`` where it is there."""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no detail")
    frames = _FRAME.findall(text)
    if not frames:
        return last
    file, line, name = ([frame for frame in frames if frame[0] == source] or frames)[-1]
    return f"{last}, at {file}:{line} in {name}"
