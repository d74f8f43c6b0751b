"""The ``responses`` format of a ``documents`` stage: what a ``sample`` stage wrote, as documents that say how they came
about and what of them was verified.

Labels: ``synthetic`` (the form) and ``domain`` (what was asked for), by the labeller ``prompt``; ``verified``: ``yes``
where the sandbox ran the program's tests or independent solutions agree with the answer (the labeller says which),
``unchecked`` otherwise. What was checked and failed is no document. Meta: model, seeds, sampling, prompt, its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.data.document import label
from pretrain.data.items import Found, Item, error
from pretrain.data.synthetic_forms import SECTIONS, take_apart
from rewards.composition import read_parts
from rlplatform.config import ConfigError
from rlplatform.config.corpus_documents import ResponsesConfig, SourceConfig
from rlplatform.datafiles import DataError, jsonl_lines
from rlplatform.seeds import request_seed
from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.types import FINISH_STOP

REWARD = "pretrain.data.synthetic_reward:form"
YES, UNCHECKED = "yes", "unchecked"
_VERDICT = ("response", "opened", "status", "score", "reward", "detail", "finish")  # columns that do not go into meta


@dataclass(frozen=True)
class Origin:
    """The ``sample`` stage that wrote a file of responses."""

    model: str
    seed: int
    num_samples: int
    sampling: Mapping[str, Any]
    runs_programs: bool  # is the score that of the reward that runs programs?
    index: Mapping[str, int]  # query id -> its number among the stage's queries

    def group_seed(self, query: str) -> int:
        """The seed of the query's first sample; sample k used ``group_seed + k``, but where one before was rejected."""
        return request_seed(self.seed, 0, self.index[query], self.num_samples, stream="sample")


def origin_of(responses: Path) -> Origin:
    """What ``config.yaml`` and ``queries.jsonl`` beside the responses say.

    Raises:
        ConfigError: they are not there, or are not those of a sample stage.
    """
    file = responses.parent / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        parts = read_parts(config["reward"]["functions"])
        metric = parts[config["metric"] or next(iter(parts))]
        queries = [row["id"] for _, row in jsonl_lines(responses.parent / "queries.jsonl")]
        return Origin(
            model=config["model"]["path"],
            seed=config["seed"],
            num_samples=config["num_samples"],
            sampling=config["sampling"],
            runs_programs=metric.function == REWARD,
            index={name: number for number, name in enumerate(queries)},
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as wrong:
        raise ConfigError(
            f"{responses}: expected the folder of a sample stage, with its config.yaml and queries.jsonl: {wrong!r}"
        ) from wrong


def read_responses(path: Path, source: SourceConfig) -> Iterator[Found]:
    """One document a response.

    Raises:
        ConfigError: no sample stage left this file, or ``solutions``.
    """
    origin = origin_of(path)
    settings = source.responses
    agreement = agreement_of(Path(settings.solutions)) if settings.solutions else {}
    solver = origin_of(Path(settings.solutions)).model if settings.solutions else ""
    for number, row in jsonl_lines(path):
        place = f"line {number}"
        try:
            item = response_item(row, place, origin)
        except (KeyError, ValueError) as wrong:
            yield error(place, "response", f"expected a row of a sample stage over synthetic prompts: {wrong!r}")
            continue
        if not item.reason:
            item = verified(item, row, origin, agreement.get(f"{row['id']}#{row['sample']}"), solver, settings)
        yield item


def response_item(row: Mapping[str, Any], place: str, origin: Origin) -> Item:
    """The document in a response with where it comes from, or why there is none; nothing is verified here.

    Raises:
        KeyError: not a row of this sample stage.
        ValueError: an unknown form.
    """
    columns = {name: value for name, value in row.items() if name not in _VERDICT}
    meta: dict[str, Any] = {
        **columns,
        "model": origin.model,
        "sampling": origin.sampling,
        "group_seed": origin.group_seed(row["id"]),
    }
    form = row["form"]
    cut = row["finish"] != FINISH_STOP
    parsed = take_apart(form, row["response"], opened=row.get("opened") is True, cut=cut)
    if parsed.reason:
        return Item(place, meta=meta, reason=parsed.reason, detail=parsed.detail)
    labels = [label("synthetic", form, "prompt"), label("domain", row["domain"], "prompt")]
    sections = {name: parsed.sections[name] for name in SECTIONS[form] if name != "program"}
    return Item(place, parsed.text, {**meta, "sections": sections}, labels)


def verified(
    item: Item,
    row: Mapping[str, Any],
    origin: Origin,
    rate: PassRate | None,
    solver: str,
    settings: ResponsesConfig,
) -> Item:
    """The document with its label ``verified``, or without text and with the reason where the check failed."""
    if row["form"] == "code" and origin.runs_programs:
        if row["status"] != "ok":
            return _dropped(item, f"grader {row['status']}", row["detail"])
        if row["score"] < 1.0:
            return _dropped(item, "tests failed", row["detail"])
        return _labelled(item, YES, "sandbox", 1.0)
    if row["form"] == "question_answer" and rate is not None and rate.num_samples >= settings.min_solutions:
        said = f"{rate.num_correct} of {rate.num_samples} solutions agree"
        if rate.rate < settings.min_agreement:
            return _dropped(item, "solutions disagree", said)
        return _labelled(item, YES, f"agreement of {rate.num_samples} solutions by {solver}", rate.rate)
    if settings.only_verified:
        return _dropped(item, UNCHECKED, "nothing verified it")
    return _labelled(item, UNCHECKED, "none", None)


def _labelled(item: Item, value: str, labeller: str, score: float | None) -> Item:
    return Item(item.place, item.text, item.meta, [*item.labels, label("verified", value, labeller, score)])


def _dropped(item: Item, reason: str, detail: str) -> Item:
    return Item(item.place, item.text, item.meta, item.labels, reason=reason, detail=detail)


def agreement_of(solutions: Path) -> dict[str, PassRate]:
    """Claim id -> how many of its graded solutions have the claimed answer.

    Raises:
        DataError: they are no graded responses.
    """
    try:
        return measure(row for _, row in jsonl_lines(solutions))
    except ValueError as wrong:
        raise DataError(f"{solutions}: {wrong}") from wrong
