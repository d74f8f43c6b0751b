"""The Qwen3 report's own figures, in percent, to stand beside ours (arXiv 2505.09388, tables 3, 6, 8, 11 to 20, 22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Percent in each mode; ``single`` where the report has one figure for the model: a base model's, ThinkFollow's."""

    thinking: float | None = None
    non_thinking: float | None = None
    single: float | None = None

    def of(self, mode: str) -> float | None:
        """``mode`` is "thinking", "non_thinking" or anything else, e.g. "dialogue", for the single one."""
        return {"thinking": self.thinking, "non_thinking": self.non_thinking}.get(mode, self.single)


Figures = Mapping[str, Figure]  # by model
SIZES = ("235B-A22B", "32B", "30B-A3B", "14B", "8B", "4B", "1.7B", "0.6B")


def _modes(thinking: str, non_thinking: str) -> Figures:
    pairs = zip(SIZES, map(float, thinking.split()), map(float, non_thinking.split()), strict=True)
    return {f"Qwen3-{size}": Figure(one, other) for size, one, other in pairs}


def _base(values: str) -> Figures:
    sizes = ("0.6B", "8B", "235B-A22B")
    pairs = zip(sizes, map(float, values.split()), strict=True)
    return {f"Qwen3-{size}-Base": Figure(single=value) for size, value in pairs}


AIME24 = _modes("85.7 81.4 80.4 79.3 76.0 73.8 48.3 10.7", "40.1 31.0 32.8 31.7 29.1 25.0 13.4 3.4")
AIME25 = _modes("81.5 72.9 70.9 70.4 67.3 65.6 36.8 15.1", "24.7 20.2 21.6 23.3 20.9 19.1 9.8 2.6")
MATH500 = _modes("98.0 97.2 98.0 96.8 97.4 97.0 93.4 77.6", "91.2 88.6 89.8 90.0 87.4 84.8 73.0 55.2")
IFEVAL = _modes("83.4 85.0 86.5 85.4 85.0 81.9 72.5 59.2", "83.2 83.2 83.7 84.8 83.0 81.2 68.2 54.5")
# Table 22, after the fourth stage.
MMLU_REDUX = {"Qwen3-32B": Figure(90.9, 85.7)}
COUNTERFACTQA = {"Qwen3-32B": Figure(68.1, 66.4)}
LENGTHCTRL = {"Qwen3-32B": Figure(73.5, 87.3)}
TOOLUSE = {"Qwen3-32B": Figure(85.5, 86.5)}
THINKFOLLOW = {"Qwen3-32B": Figure(single=98.9)}
# Tables 3, 6 and 8: base models.
MMLU = _base("52.81 76.89 87.81")
BBH = _base("41.47 78.40 88.87")
GSM8K = _base("59.59 89.84 94.39")
MGSM = _base("30.99 76.02 83.53")
