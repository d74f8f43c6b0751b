"""The ``sample`` stage of a recipe: graded completions of every query, as rows for the stages after it.

    queries ─ vLLM fleet ─ reward service ─► responses.jsonl   a row a completion
                                             queries.jsonl     a row a query, with its pass rate

A response is a row with its query's columns and ``id``, ``sample``, ``prompt``, ``response``, ``opened``, ``status``,
``score``, ``detail``, ``finish`` and ``length`` (tokens).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import NOT_APPLICABLE
from rewards.format import prompt_opens_block
from rlplatform.config import ConfigError, SampleConfig
from rlplatform.launch import Outcome, graded_fleet, graded_prompts, ray_session, sampling_params
from rlplatform.recorded import FOLDER, Change, Recorded, weights_mark
from rlplatform.reward_checks import accuracy_metric
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.seeds import request_seed
from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.types import (
    FINISH_LENGTH,
    FINISH_STOP,
    GenerationRequest,
    Prompt,
    RolloutGroup,
    SamplingParams,
    ScoredGroup,
)

Row = dict[str, Any]
Generate = Callable[[Sequence[GenerationRequest], SamplingParams], list[RolloutGroup]]
Score = Callable[[Sequence[RolloutGroup]], list[ScoredGroup]]

RESPONSES, QUERIES = "responses.jsonl", "queries.jsonl"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def row_id(columns: Mapping[str, Any], otherwise: str) -> str:
    """Column ``id``, or another name where it holds none."""
    return otherwise if columns.get("id") in (None, "") else str(columns["id"])


def sample(config: SampleConfig) -> Outcome:
    """``num_samples`` graded completions of every query.

    An interrupted run goes on with the queries that are not finished yet.

    Raises:
        ConfigError: data, model or rewards cannot be used; nothing was started.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    metric = accuracy_metric(config.reward, config.metric)
    prompts = graded_prompts(config, folder, "sample")
    with ray_session(), ExitStack() as stack:
        fleet, service = graded_fleet(config, folder, stack)
        recorded = Recorded(folder.path / FOLDER, fleet, service, about=_about(config), change=_change(config))
        groups = ask(
            prompts,
            generate=recorded.generate,
            score=recorded.score,
            sampling=sampling_params(config.sampling),
            num_samples=config.num_samples,
            seed=config.seed,
        )
        effective, graders = fleet.effective_sampling(), service.versions()
    rows = [row for group in groups for row in response_rows(group, metric)]
    queries = query_rows(prompts, rows)
    write_rows(folder.path / RESPONSES, rows)
    write_rows(folder.path / QUERIES, queries)
    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)
    summary = {"model": config.model.path, "data": config.data.path, **sample_summary(queries, rows, groups)}
    return Outcome(str(folder.path), summary | {"sampling": effective, "graders": graders})


def _change(config: SampleConfig) -> Change | None:
    demonstration = config.demonstration if config.use_demonstrations else ""
    return partial(with_demonstrations, column=demonstration) if demonstration else None


def _about(config: SampleConfig) -> Row:
    """What the responses follow from beside their prompts, seeds and sampling."""
    return {
        "model": [config.model.path, weights_mark(config.model.path), asdict(config.model)],
        "reward": config.reward.functions,
        "environment": asdict(config.environment),
        "demonstration": config.demonstration if config.use_demonstrations else "",
    }


def ask(
    prompts: Sequence[Prompt],
    *,
    generate: Generate,
    score: Score,
    sampling: SamplingParams,
    num_samples: int,
    seed: int,
) -> list[ScoredGroup]:
    """The graded group of every prompt, in order. Seeds depend on the run's seed and the prompt's place alone."""
    requests = [
        GenerationRequest(prompt, num_samples, 0, index, request_seed(seed, 0, index, num_samples, stream="sample"))
        for index, prompt in enumerate(prompts)
    ]
    scored = sorted(score(generate(requests, sampling)), key=lambda group: group.group.index)
    if [group.group.index for group in scored] != list(range(len(prompts))):
        raise RuntimeError(f"sample: expected {len(prompts)} graded groups, one a query, got {len(scored)}")
    return scored


def with_demonstrations(group: RolloutGroup, column: str) -> RolloutGroup:
    """The group with the text of its first, third, ... rollout replaced; the tokens stay, nothing is trained on them.

    Raises:
        ConfigError: the prompt has no such column.
    """
    text = group.prompt.columns.get(column)
    if not isinstance(text, str):
        raise ConfigError(f"prompt {group.prompt.prompt_id}: demonstration: expected text in column {column!r}")
    rollouts = list(group.rollouts)
    rollouts[::2] = [replace(rollout, text=text, finish=FINISH_STOP) for rollout in rollouts[::2]]
    return replace(group, rollouts=tuple(rollouts))


def _query(prompt: Prompt) -> Row:
    """A query's own columns; its id is column ``id``, else its place in the dataset."""
    messages = [dict(message) for message in prompt.messages]
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return {
        **{key: value for key, value in prompt.columns.items() if key != "messages"},
        "id": row_id(prompt.columns, prompt.prompt_id),
        "prompt": messages[0]["content"] if alone else messages or prompt.text,
    }


def response_rows(scored: ScoredGroup, metric: str) -> list[Row]:
    """One row a completion. A verdict that is ok and says nothing of the metric's part is ``not_applicable``."""
    query = _query(scored.group.prompt)
    rows = []
    for number, (rollout, verdict) in enumerate(zip(scored.group.rollouts, scored.verdicts, strict=True)):
        judged = verdict.ok and metric in verdict.parts
        rows.append(
            {
                **query,
                "sample": number,
                "response": rollout.text,
                "opened": prompt_opens_block("", scored.group.prompt.text),
                "status": verdict.status if judged or not verdict.ok else NOT_APPLICABLE,
                "score": float(verdict.parts[metric]) if judged else None,
                "reward": float(verdict.score) if verdict.ok else None,
                "detail": verdict.detail,
                "finish": rollout.finish,
                "length": len(rollout),
            }
        )
    return rows


def query_rows(prompts: Sequence[Prompt], responses: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a query: its columns, and ``pass_rate`` (None without an ok verdict) with its counts and interval.

    Raises:
        ConfigError: two queries of one id.
    """
    rates = measure(responses)
    rows = []
    for prompt in prompts:
        query = _query(prompt)
        rate = rates.get(query["id"], PassRate(0, 0))
        low, high = rate.interval()
        rows.append(
            {
                **query,
                "pass_rate": rate.rate if rate.num_samples else None,
                "pass_rate_interval": [low, high],
                "num_correct": rate.num_correct,
                "num_samples": rate.num_samples,
                "num_not_ok": rate.num_not_ok,
            }
        )
    doubled = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if doubled:
        raise ConfigError(f"queries: expected every query to have an id of its own, {doubled[:5]} came more than once")
    return rows


def sample_summary(
    queries: Sequence[Mapping[str, Any]], responses: Sequence[Mapping[str, Any]], groups: Sequence[ScoredGroup]
) -> dict[str, Any]:
    """What the results table shows of a sample stage; the whole list of pass rates is in ``queries.jsonl``."""
    rates = [query["pass_rate"] for query in queries if query["pass_rate"] is not None]
    return {
        "queries": len(queries),
        "responses": len(responses),
        "rejected": sum(group.group.num_rejected for group in groups),
        "statuses": dict(Counter(row["status"] for row in responses)),
        "pass_rate": float(np.mean(rates)) if rates else None,
        "solved": sum(query["num_correct"] > 0 for query in queries),
        "truncated": sum(row["finish"] == FINISH_LENGTH for row in responses),
        "length_mean": float(np.mean([row["length"] for row in responses])) if responses else 0.0,
        "pass_rates": dict(sorted(Counter(f"{rate:.3g}" for rate in rates).items(), key=lambda item: float(item[0]))),
    }
