"""``kind: clean``: documents filtered, without duplicates, benchmark items and personal data (docs/cleaning.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.config.base import require
from rlplatform.config.corpus_documents import WorkersConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class CleanConfig(TrackedReads):
    """Documents through named steps, with a reason for each that is dropped and a record of every change.

    Leaves ``documents-*.parquet`` (kept), ``dropped-*.parquet`` (whole rows with ``step``, ``reason``, ``detail``),
    ``changes-*.parquet`` (what was cut or replaced where), ``flow.json``, ``flow.md``, ``flow.png``, ``summary.json``.
    """

    kind: Literal["clean"] = "clean"  # which kind of run this file is
    name: str = "clean"  # shown in progress and reports
    seed: int = 0  # recorded; cleaning draws nothing at random, and MinHash's seed is a setting of its steps
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: str = ""  # the folder of an earlier stage, e.g. stage:annotate
    steps: dict[str, Any] = field(default_factory=dict)  # step -> its settings, in order; see docs/cleaning.md
    batch_documents: int = 256  # that a task holds in memory at a time
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents: expected the folder of an earlier stage, e.g. stage:annotate")
        require(bool(self.steps), "steps: expected at least one, e.g. {exact_duplicates: {}}")
        for name, settings in self.steps.items():
            require(
                isinstance(settings, Mapping),
                f"steps.{name}: expected a mapping of settings ({{}} for the defaults), got {settings!r}",
            )
        require(self.batch_documents >= 1, f"batch_documents: expected >= 1, got {self.batch_documents}")

    def contamination(self) -> dict[str, Mapping[str, Any]]:
        """The steps that look for benchmark items, with their settings."""
        return {
            name: settings for name, settings in self.steps.items() if settings.get("function", name) == "contamination"
        }

    @property
    def folders(self) -> list[str]:
        """Of shards that are read."""
        return [self.documents]
