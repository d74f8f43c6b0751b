"""How right a classifier is: F1 per class, macro F1, confusions. Pure functions of two lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassScore:
    """One class's: precision = right / said, recall = right / support, F1 their harmonic mean; 0 where 0 / 0."""

    name: str
    support: int  # texts that are of the class
    said: int  # texts that it was said of
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.support if self.support else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.support + self.said) if self.support + self.said else 0.0


@dataclass(frozen=True)
class Scores:
    """Of answers against gold."""

    classes: tuple[ClassScore, ...]  # those that gold has, in alphabetical order
    confusion: dict[str, dict[str, int]]  # gold -> answer -> texts; an answer may be no class of gold
    num: int

    @property
    def accuracy(self) -> float:
        return sum(one.right for one in self.classes) / self.num if self.num else 0.0

    @property
    def macro_f1(self) -> float:
        """The mean over gold's classes, each counting the same."""
        return sum(one.f1 for one in self.classes) / len(self.classes) if self.classes else 0.0

    @property
    def majority(self) -> float:
        """The accuracy of always saying the most frequent class."""
        return max((one.support for one in self.classes), default=0) / self.num if self.num else 0.0

    def summary(self) -> dict[str, Any]:
        """As plain values for a JSON file."""
        return {
            "texts": self.num,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "majority_accuracy": self.majority,
            "labels": {
                one.name: {"f1": one.f1, "precision": one.precision, "recall": one.recall, "texts": one.support}
                for one in self.classes
            },
            "confusion": self.confusion,
        }


def score(gold: Sequence[str], answers: Sequence[str]) -> Scores:
    """Raises ValueError where the lists are not of one length."""
    if len(gold) != len(answers):
        raise ValueError(f"expected one answer a text, got {len(gold)} texts and {len(answers)} answers")
    support, said = Counter(gold), Counter(answers)
    pairs = Counter(zip(gold, answers, strict=True))
    confusion: dict[str, dict[str, int]] = {}
    for (right, answer), number in sorted(pairs.items()):
        confusion.setdefault(right, {})[answer] = number
    classes = tuple(ClassScore(name, support[name], said[name], pairs[name, name]) for name in sorted(support))
    return Scores(classes, confusion, len(gold))
