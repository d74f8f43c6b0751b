"""``kind: annotate`` and ``kind: train_labeller``: labels on documents, and small classifiers that give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.config.base import require
from rlplatform.config.corpus_documents import WorkersConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class AnnotateConfig(TrackedReads):
    """Labels on every document, by labellers in order (docs/annotation.md).

    Leaves ``documents-*.parquet``, the same documents with more labels, and ``summary.json``: what each label says how
    often, and which labeller stands behind each identity.
    """

    kind: Literal["annotate"] = "annotate"  # which kind of run this file is
    name: str = "annotate"  # shown in progress and reports
    seed: int = 0  # recorded; labellers draw nothing at random
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: str = ""  # a folder of documents: stage:NAME of a documents, annotate or clean stage
    labellers: dict[str, Any] = field(default_factory=dict)  # name -> settings, in order; `use` names another labeller
    replace: bool = False  # a label that a document has already is replaced; else that is an error
    max_failed_share: float = 0.05  # of a label's answers that are error, timeout or unparseable; more stop the stage
    batch_rows: int = 256  # documents that a labeller is given at a time
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents: expected a folder of documents, e.g. stage:documents")
        require(bool(self.labellers), "labellers: expected at least one, e.g. {language: {}, length: {}}")
        for name, settings in self.labellers.items():
            require(
                settings is None or isinstance(settings, Mapping),
                f"labellers.{name}: expected its settings, {{}} for none, got {settings!r}",
            )
        require(
            0 <= self.max_failed_share <= 1, f"max_failed_share: expected from 0 to 1, got {self.max_failed_share:g}"
        )
        require(self.batch_rows >= 1, f"batch_rows: expected >= 1, got {self.batch_rows}")

    @property
    def files(self) -> list[str]:
        """Settings of labellers that may name a file or folder: models, tokenizers, lists."""
        values = [value for settings in self.labellers.values() for value in (settings or {}).values()]
        return [value for value in values if isinstance(value, str)]

    @property
    def folders(self) -> list[str]:
        """The folders of documents that are read."""
        return [self.documents]


@dataclass(frozen=True)
class GoldConfig(TrackedReads):
    """Where the right label of a document comes from: exactly one of these."""

    source: dict[str, str] = field(default_factory=dict)  # by construction: the document's source -> its label
    meta: str = ""  # by construction: this column of the input
    label: str = ""  # this label of an annotate stage, e.g. by a language model; failures and `unknown` are left out
    labeller: str = ""  # with `label`: only where this labeller (its identity) gave it

    def check(self) -> None:
        """Raises ConfigError unless exactly one is given."""
        given = [name for name in ("source", "meta", "label") if getattr(self, name)]
        require(
            len(given) == 1, f"gold: expected exactly one of source, meta and label, got {', '.join(given) or 'none'}"
        )
        require(bool(self.label) or not self.labeller, "gold.labeller: expected gold.label with it")


@dataclass(frozen=True)
class FeaturesConfig(TrackedReads):
    """What of a text a small classifier sees (pretrain/data/ngrams.py)."""

    characters: tuple[int, int] = (1, 4)  # shortest and longest character n-gram within a word; [0, 0] = none
    words: tuple[int, int] = (0, 0)  # shortest and longest word n-gram; [0, 0] = none
    buckets: int = 32768  # that n-grams of each kind are hashed into
    max_characters: int = 2000  # of a text's beginning that are read

    def __post_init__(self) -> None:
        for name in ("characters", "words"):
            sizes = tuple(getattr(self, name))
            require(
                len(sizes) == 2 and (0 < sizes[0] <= sizes[1] or sizes == (0, 0)),
                f"features.{name}: expected [shortest, longest], [0, 0] for none, got {list(sizes)}",
            )
        require(
            tuple(self.characters) != (0, 0) or tuple(self.words) != (0, 0),
            "features: expected characters or words, got neither",
        )
        require(self.buckets >= 2, f"features.buckets: expected >= 2, got {self.buckets}")
        require(self.max_characters >= 1, f"features.max_characters: expected >= 1, got {self.max_characters}")


@dataclass(frozen=True)
class TrainLabellerConfig(TrackedReads):
    """A small classifier trained on a CPU from documents whose label is known (docs/annotation.md).

    Leaves ``labeller.npz``, which the labellers ``classifier`` and ``language`` read, and ``summary.json`` with its
    scores on held-out documents: F1 per label, macro F1, the confusions.
    """

    kind: Literal["train_labeller"] = "train_labeller"  # which kind of run this file is
    name: str = "train_labeller"  # shown in progress and reports
    seed: int = 0  # decides which documents are held out
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    documents: tuple[str, ...] = ()  # folders of documents: stage:NAME
    label: str = ""  # the label that the classifier will give, e.g. domain
    gold: GoldConfig = field(default_factory=GoldConfig)
    split_by: str = "text"  # what is held out together: text (documents with the same words), or meta:COLUMN
    test_share: float = 0.2  # of those groups that are held out
    max_overlap: float = 0.5  # a held-out text that shares more of its word 8-grams with the training is left out
    piece_characters: int = 0  # texts are cut into pieces of about so many characters; 0 = whole
    min_documents: int = 20  # of a label; one with fewer is left out and listed
    max_documents: int = 5000  # of a label that are used
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    strength: float = 10.0  # of the texts against the penalty on weights: scikit-learn's C
    max_iterations: int = 300  # of the solver; not converged by then is an error

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents: expected folders of documents, e.g. [stage:documents]")
        require(bool(self.label), "label: expected the name of the label that the classifier gives")
        self.gold.check()
        require(
            self.split_by == "text" or (self.split_by.startswith("meta:") and len(self.split_by) > len("meta:")),
            f"split_by: expected text or meta:COLUMN, got {self.split_by!r}",
        )
        require(0 < self.test_share < 1, f"test_share: expected in (0, 1), got {self.test_share:g}")
        require(0 < self.max_overlap <= 1, f"max_overlap: expected in (0, 1], got {self.max_overlap:g}")
        require(self.piece_characters >= 0, f"piece_characters: expected >= 0, got {self.piece_characters}")
        require(
            2 <= self.min_documents <= self.max_documents,
            f"expected 2 <= min_documents <= max_documents, got {self.min_documents} and {self.max_documents}",
        )
        require(self.strength > 0 and self.max_iterations >= 1, "expected strength > 0 and max_iterations >= 1")

    @property
    def folders(self) -> list[str]:
        """The folders of documents that are read."""
        return list(self.documents)
