"""The ``train_labeller`` stage: a small classifier from documents whose label is known, scored on held-out ones.

    documents ── gold ──► examples ── groups ──► held out │ trained on ──► labeller.npz
                                                     └── less what overlaps ──► F1 per label, macro F1, confusions

What is held out together is a group: documents with the same words, or with the same value of a column (an article
number, where documents are translations of each other). A held-out text that shares more than ``max_overlap`` of its
word 8-grams with the texts trained on is left out of the scores: a near-duplicate. The file is the model that was
scored: it has not seen the held-out part.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.document import Row, label_of, meta_of, read_documents
from pretrain.data.label_schema import MEANINGS, UNKNOWN
from pretrain.data.labels import failure_of
from pretrain.data.ngrams import MODEL_FILE, Features, NgramModel, fit, normalised, save
from pretrain.data.scores import Scores, score
from pretrain.data.scripts import pieces, words
from rlplatform.config.corpus_annotate import FeaturesConfig, GoldConfig, TrainLabellerConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

SUMMARY = "summary.json"
_OVERLAP_WORDS = 8


@dataclass(frozen=True)
class Example:
    """A text whose label is known."""

    text: str
    gold: str
    group: str  # what is held out together


def train_labeller(config: TrainLabellerConfig) -> dict[str, Any]:
    """Train, score and save; returns the summary.

    Raises:
        DataError: documents without what ``gold`` or ``split_by`` names, or too few of them.
    """
    folder = Path(config.run_dir)
    left_out: Counter[str] = Counter()
    rows = (row for path in config.documents for row in read_documents(path))
    examples = list(read_examples(rows, config.gold, config.split_by, left_out))
    examples, rare = choose(examples, config.min_documents, config.max_documents, config.seed, left_out)
    train, test = split(examples, config.test_share, config.seed)
    train, test = cut(train, config.piece_characters), cut(test, config.piece_characters)
    test = without_overlap(test, train, config.max_overlap, left_out)
    _check_classes(train, test)
    _check_numbers(config.label, {one.gold for one in train})
    features = features_of(config.features)
    model = fit(
        [one.text for one in train],
        [one.gold for one in train],
        label=config.label,
        features=features,
        strength=config.strength,
        max_iterations=config.max_iterations,
    )
    scores = evaluate(model, test)
    summary = {
        "label": config.label,
        "documents": len(examples),
        "trained_on_texts": len(train),
        "held_out": {**scores.summary(), "groups": len({one.group for one in test}), **error_of(model, test)},
        "left_out": dict(sorted(left_out.items())),
        "rare_labels": rare,
        "model": model.digest,
    }
    about = {"held_out_macro_f1": scores.macro_f1, "seed": config.seed, "texts": len(train)}
    model = NgramModel(model.label, model.classes, model.features, model.weights, model.bias, about)
    save(model, folder / MODEL_FILE, [one.text for one in test])
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def features_of(config: FeaturesConfig) -> Features:
    characters, words_ = tuple(config.characters), tuple(config.words)
    return Features((characters[0], characters[1]), (words_[0], words_[1]), config.buckets, config.max_characters)


# --- examples -------------------------------------------------------------------------------------------------------


def read_examples(rows: Iterable[Row], gold: GoldConfig, split_by: str, left_out: Counter[str]) -> Iterator[Example]:
    """The documents whose label is known; the others are counted in ``left_out`` by reason.

    Raises:
        DataError: a document without the column that ``split_by`` names, or no document with a label.
    """
    num = 0
    for row in rows:
        answer, reason = gold_of(row, gold)
        if answer is None:
            left_out[reason] += 1
            continue
        num += 1
        yield Example(row["text"], answer, group_of(row, split_by))
    if not num:
        raise DataError(f"expected documents with a known label, found none: {dict(left_out)}")


def gold_of(row: Row, gold: GoldConfig) -> tuple[str | None, str]:
    """(label, "") or (None, reason)."""
    if gold.source:
        answer = gold.source.get(row["source"])
        return answer, "" if answer is not None else f"source {row['source']} is not in gold.source"
    if gold.meta:
        value = meta_of(row).get(gold.meta)
        if value is None or value == "":
            return None, f"no column {gold.meta}"
        return str(value), ""
    entry = label_of(row, gold.label, gold.labeller)
    if entry is None:
        return None, f"no label {gold.label}"
    status = failure_of(entry)
    if status or entry["value"] == UNKNOWN:
        return None, f"label {gold.label} is {status or UNKNOWN}"
    return entry["value"], ""


def group_of(row: Row, split_by: str) -> str:
    """Raises DataError where the document lacks the column."""
    if split_by == "text":
        return _hash(normalised(row["text"]))
    column = split_by.removeprefix("meta:")
    value = meta_of(row).get(column)
    if value is None:
        raise DataError(f"document {row['id']!r}: split_by: expected a column {column} in its meta")
    return str(value)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def choose(
    examples: Sequence[Example], fewest: int, most: int, seed: int, left_out: Counter[str]
) -> tuple[list[Example], dict[str, int]]:
    """(examples, label -> documents of labels that have too few): at most ``most`` of each, chosen by hash.

    One text with two labels is left out with both.
    """
    said: dict[str, set[str]] = defaultdict(set)
    for one in examples:
        said[_hash(normalised(one.text))].add(one.gold)
    clear = [one for one in examples if len(said[_hash(normalised(one.text))]) == 1]
    if len(clear) < len(examples):
        left_out["the same text has several labels"] += len(examples) - len(clear)
    by_label: dict[str, list[Example]] = defaultdict(list)
    for one in clear:
        by_label[one.gold].append(one)
    rare = {name: len(found) for name, found in sorted(by_label.items()) if len(found) < fewest}
    chosen: list[Example] = []
    for name, found in sorted(by_label.items()):
        if name in rare:
            left_out["its label has too few documents"] += len(found)
            continue
        ranked = sorted(found, key=lambda one: _hash(f"{seed}\0{one.text}"))
        if len(found) > most:
            left_out["more than max_documents of its label"] += len(found) - most
        chosen += ranked[:most]
    return chosen, rare


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(trained on, held out): whole groups, ordered by a hash of seed and group, so that no order of work matters.

    Where every group has one label, a share of each label's groups is held out; else a share of all.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    for one in examples:
        labels[one.group].add(one.gold)
    strata: dict[str, set[str]] = defaultdict(set)
    single = all(len(found) == 1 for found in labels.values())
    for group, found in labels.items():
        strata[min(found) if single else ""].add(group)
    held: set[str] = set()
    for groups in strata.values():
        ranked = sorted(groups, key=lambda group: _hash(f"{seed}\0{group}"))
        held |= set(ranked[: max(1, round(share * len(ranked)))])
    return [one for one in examples if one.group not in held], [one for one in examples if one.group in held]


def cut(examples: Sequence[Example], num_characters: int) -> list[Example]:
    """The examples in pieces; whole where ``num_characters`` is 0."""
    if not num_characters:
        return list(examples)
    return [Example(part, one.gold, one.group) for one in examples for part in pieces(one.text, num_characters)]


def without_overlap(
    test: Sequence[Example], train: Sequence[Example], most: float, left_out: Counter[str]
) -> list[Example]:
    """The held-out texts of which at most a share ``most`` of the word 8-grams occurs in the texts trained on.

    A text of fewer words is one n-gram.
    """
    known = {gram for one in train for gram in _grams(one.text)}
    kept = []
    for one in test:
        grams = _grams(one.text)
        if not grams or sum(gram in known for gram in grams) <= most * len(grams):
            kept.append(one)
    if len(kept) < len(test):
        left_out["a held-out text overlaps with the training"] += len(test) - len(kept)
    return kept


def _grams(text: str) -> set[int]:
    tokens = words(normalised(text))
    size = min(_OVERLAP_WORDS, len(tokens))
    return {
        int.from_bytes(hashlib.blake2b(" ".join(tokens[k : k + size]).encode(), digest_size=8).digest())
        for k in range(len(tokens) - size + 1)
        if size
    }


def _check_classes(train: Sequence[Example], test: Sequence[Example]) -> None:
    trained, tested = {one.gold for one in train}, {one.gold for one in test}
    for missing, where in ((tested - trained, "trained on"), (trained - tested, "held out")):
        if missing:
            raise DataError(
                f"labels {', '.join(sorted(missing))}: none of their texts is {where}; they need more groups "
                "(split_by), another test_share or seed, or a higher min_documents to be left out"
            )


def _check_numbers(label: str, classes: set[str]) -> None:
    if label not in MEANINGS or MEANINGS[label].kind != "number":
        return
    for name in sorted(classes):
        try:
            float(name)
        except ValueError:
            raise DataError(f"label {label} is a number of the schema, its gold has {name!r}") from None


def evaluate(model: NgramModel, test: Sequence[Example]) -> Scores:
    """The scores of the likeliest class of each text."""
    best = model.probabilities([one.text for one in test]).argmax(axis=1)
    return score([one.gold for one in test], [model.classes[k] for k in best])


def error_of(model: NgramModel, test: Sequence[Example]) -> dict[str, float]:
    """``mean_absolute_error`` of the mean level, where the classes are numbers."""
    if model.levels is None:
        return {}
    said = model.probabilities([one.text for one in test]) @ model.levels
    return {"mean_absolute_error": float(abs(said - [float(one.gold) for one in test]).mean())}


def table(summary: dict[str, Any]) -> list[str]:
    """What a person sees of the summary: F1 per label, then the whole, then the most frequent confusions."""
    held = summary["held_out"]
    lines = [
        f"  {name:24} F1 {one['f1']:.3f}  precision {one['precision']:.3f}  recall {one['recall']:.3f}"
        f"  {one['texts']} texts"
        for name, one in held["labels"].items()
    ]
    lines.append(
        f"  {'all':24} macro F1 {held['macro_f1']:.3f}  accuracy {held['accuracy']:.3f}"
        f" (always the most frequent: {held['majority_accuracy']:.3f})  {held['texts']} texts"
    )
    if "mean_absolute_error" in held:
        lines.append(f"  {'all':24} mean absolute error of the mean level {held['mean_absolute_error']:.3f}")
    mistakes = [
        (number, gold, answer)
        for gold, answers in held["confusion"].items()
        for answer, number in answers.items()
        if gold != answer
    ]
    lines += [f"  {number} x {gold} taken for {answer}" for number, gold, answer in sorted(mistakes, reverse=True)[:5]]
    return lines
