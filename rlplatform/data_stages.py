"""The stages of a recipe that make data: ``sample``, ``filter`` and ``fusion``. Rows in, rows out, nothing lost.

    queries ─ sample ─► responses.jsonl ─ filter ─► train.jsonl ─ sft, rl
                        queries.jsonl     fusion ─► train.jsonl ─ sft

A response is a row with its query's columns and ``id``, ``sample``, ``prompt``, ``response``, ``opened``, ``status``,
``score``, ``detail``, ``finish`` and ``length``. What a filter needs beside its rows it takes from files
(``stage:NAME/responses.jsonl``). Rules and bounds are in ``rlplatform/stages``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import NOT_APPLICABLE, OK
from rewards.format import prompt_opens_block
from rlplatform.config import ConfigError, DataConfig, FilterConfig, FusionConfig, SampleConfig
from rlplatform.data import normalise, read_rows
from rlplatform.launch import Outcome, graded_fleet, graded_prompts, ray_session, sampling_params
from rlplatform.reward_checks import accuracy_metric
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.seeds import request_seed
from rlplatform.stages.annotation import export, never_solved, read_verdicts
from rlplatform.stages.checklists import check_responses
from rlplatform.stages.fusion import assemble, samples, usable
from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.stages.query_filters import HELD_OUT
from rlplatform.stages.records import Filter, Records, apply_filters, row_key, write_parquet
from rlplatform.stages.registry import bind
from rlplatform.types import (
    FINISH_LENGTH,
    GenerationRequest,
    Prompt,
    RolloutGroup,
    SamplingParams,
    ScoredGroup,
)

Row = dict[str, Any]
Generate = Callable[[Sequence[GenerationRequest], SamplingParams], list[RolloutGroup]]
Score = Callable[[Sequence[RolloutGroup]], list[ScoredGroup]]

RESPONSES, QUERIES, KEPT = "responses.jsonl", "queries.jsonl", "train.jsonl"
VALIDATION, NEVER_SOLVED, RECORDS = "validation.jsonl", "never_solved.jsonl", "records.parquet"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rows_of(path: str) -> list[Row]:
    """The rows of a file, as written."""
    return [row for _, row in read_rows(DataConfig(path=path))]


# --- sample ---------------------------------------------------------------------------------------------------------


def sample(config: SampleConfig) -> Outcome:
    """``num_samples`` graded completions of every query.

    Raises:
        ConfigError: data, model or rewards cannot be used; nothing was started.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    metric = accuracy_metric(config.reward, config.metric)
    prompts = graded_prompts(config, folder, "sample")
    with ray_session(), ExitStack() as stack:
        fleet, service = graded_fleet(config, folder, stack)
        groups = ask(
            prompts,
            generate=lambda requests, params: fleet.generate(requests, sampling=params),
            score=lambda scored: service.score(scored, step=0),
            sampling=sampling_params(config.sampling),
            num_samples=config.num_samples,
            seed=config.seed,
            demonstration=config.demonstration if config.use_demonstrations else "",
        )
        effective, graders = fleet.effective_sampling(), service.versions()
    rows = [row for group in groups for row in response_rows(group, metric)]
    queries = query_rows(prompts, rows)
    write_rows(folder.path / RESPONSES, rows)
    write_rows(folder.path / QUERIES, queries)
    summary = {"model": config.model.path, "data": config.data.path, **sample_summary(queries, rows, groups)}
    return Outcome(str(folder.path), summary | {"sampling": effective, "graders": graders})


def ask(
    prompts: Sequence[Prompt],
    *,
    generate: Generate,
    score: Score,
    sampling: SamplingParams,
    num_samples: int,
    seed: int,
    demonstration: str = "",
) -> list[ScoredGroup]:
    """The graded group of every prompt, in order. Seeds depend on the run's seed and the prompt's place alone."""
    requests = [
        GenerationRequest(prompt, num_samples, 0, index, request_seed(seed, 0, index, num_samples, stream="sample"))
        for index, prompt in enumerate(prompts)
    ]
    groups = generate(requests, sampling)
    if demonstration:
        groups = [with_demonstrations(group, demonstration) for group in groups]
    scored = sorted(score(groups), key=lambda group: group.group.index)
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
    rollouts = [
        replace(rollout, text=text, finish="stop") if k % 2 == 0 else rollout
        for k, rollout in enumerate(group.rollouts)
    ]
    return replace(group, rollouts=tuple(rollouts))


def _id(columns: Mapping[str, Any], otherwise: str) -> str:
    return otherwise if columns.get("id") in (None, "") else str(columns["id"])


def _query(prompt: Prompt) -> Row:
    """A query's own columns; its id is column ``id``, else its place in the dataset."""
    messages = [dict(message) for message in prompt.messages]
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return {
        **{key: value for key, value in prompt.columns.items() if key != "messages"},
        "id": _id(prompt.columns, prompt.prompt_id),
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


# --- filter ---------------------------------------------------------------------------------------------------------


def filter_rows(config: FilterConfig) -> Outcome:
    """The steps in order; what they keep goes on.

    Raises:
        ConfigError: rows or settings that a filter cannot use, or nothing is left.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    rows = input_rows(config.data)
    try:
        rows = judged_by_people(rows, config.verdicts)
        records = apply_filters(config.name, rows, bound_steps(config))
        write_parquet(records, folder.path / RECORDS)
    except ValueError as error:
        raise ConfigError(f"stage {config.name}: {error}") from error
    kept = [dict(row) for row in records.kept]
    if not kept:
        raise ConfigError(f"stage {config.name}: nothing is left; {folder.path / RECORDS} says why\n{records.table()}")
    write_rows(folder.path / KEPT, [conversation(row) if config.messages else row for row in kept])
    held_out = records.dropped(HELD_OUT)
    if held_out:
        write_rows(folder.path / VALIDATION, held_out)
    summary = {**filter_summary(records), "held_out": len(held_out)}
    if unsolved := unsolved_responses(rows):
        export(unsolved, folder.path / NEVER_SOLVED)
        summary["never_solved"] = len({row["id"] for row in unsolved})
    return Outcome(str(folder.path), summary)


def input_rows(data: DataConfig) -> list[Row]:
    """The dataset's rows with ``id`` and ``prompt``, columns renamed and answers extracted as ``data`` says."""
    rows = []
    for index, (where, row) in enumerate(read_rows(data)):
        if data.limit and index >= data.limit:
            break
        prompt, columns = normalise(row, where, data)
        name = columns.get("id")
        rows.append(
            {**columns, "id": str(name) if name not in (None, "") else f"{data.split}-{index}", "prompt": prompt}
        )
    return rows


def bound_steps(config: FilterConfig) -> dict[str, Filter]:
    return {name: bind(name, step, seed=config.seed, read=rows_of) for name, step in config.steps.items()}


def unsolved_responses(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Responses of queries without a correct one; none where the rows are not judged responses."""
    judged = bool(rows) and all("response" in row and "status" in row and "sample" in row for row in rows)
    return never_solved(rows) if judged else []


def judged_by_people(rows: list[Row], verdicts: str) -> list[Row]:
    """The rows with people's verdicts in place of the grader's, where ``verdicts`` names their file."""
    if not verdicts:
        return rows
    said = {row_key(row): dict(row) for row in read_verdicts(Path(verdicts), unsolved_responses(rows))}
    return [said.get(row_key(row), row) for row in rows]


def conversation(row: Mapping[str, Any]) -> Row:
    """A response row with ``messages``: the question, and the answer as the model should write it.

    Raises:
        ConfigError: the row is no response.
    """
    if not isinstance(row.get("response"), str):
        raise ConfigError(f"row {row.get('id')!r}: messages: expected a column response with text")
    prompt = row["prompt"]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    text = row["response"].removesuffix("<|im_end|>")
    content = f"<think>\n{text}" if row.get("opened") is True else text
    return {**row, "messages": [*asked, {"role": "assistant", "content": content}]}


def filter_summary(records: Records) -> dict[str, Any]:
    """Rows in, kept and dropped, and how many each filter dropped for which reason."""
    dropped: dict[str, dict[str, int]] = {}
    for (name, reason), count in sorted(records.counts.items()):
        if reason:
            dropped.setdefault(name, {})[reason] = count
    kept = len(records.kept)
    return {"rows": len(records.records), "kept": kept, "dropped": len(records.records) - kept, "by_filter": dropped}


# --- fusion ---------------------------------------------------------------------------------------------------------


def fusion(config: FusionConfig) -> Outcome:
    """Conversations of both modes.

    Raises:
        ConfigError: a pool that runs out, or rows that are no responses.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    pools: dict[str, Records] = {}
    try:
        for mode, paths in (("thinking", config.thinking), ("plain", config.plain)):
            rows = keyed(paths)
            if config.task:
                rows = [{"task": config.task, **row} for row in rows]
            steps: dict[str, Filter] = {"usable": partial(usable, thinking=mode == "thinking")}
            if mode == "plain" and config.check:
                steps["checklist"] = check_responses
            pools[mode] = apply_filters(f"{config.name}: {mode}", rows, steps)
            write_parquet(pools[mode], folder.path / f"{mode}.parquet")
        conversations = assemble(
            samples(pools["thinking"].kept, thinking=True),
            samples(pools["plain"].kept, thinking=False),
            num=config.num,
            seed=config.seed,
            shares=config.fusion_shares,
            low_resource=frozenset(config.low_resource),
            systems=config.systems,
            system_share=config.system_share,
            repeat=config.repeat,
        )
    except ValueError as error:
        raise ConfigError(f"stage {config.name}: {error}") from error
    write_rows(folder.path / KEPT, conversations)
    modes = Counter(mode for row in conversations for mode in row["thinking"])
    summary = {
        "conversations": len(conversations),
        "turns": sum(modes.values()),
        "thinking_turns": modes[True],
        **{mode: filter_summary(records) for mode, records in pools.items()},
    }
    return Outcome(str(folder.path), summary)


def keyed(paths: Sequence[str]) -> list[Row]:
    """The rows of several files; where a response stands in two of them, the later gets the file's place in its id."""
    rows, seen = [], set()
    for place, path in enumerate(paths):
        for row in rows_of(path):
            if row_key(row) in seen:
                row = {**row, "id": f"{row['id']}@{place}"}
            seen.add(row_key(row))
            rows.append(row)
    return rows


def headline(kind: str, summary: Mapping[str, Any]) -> str:
    """One line for the results table; "" for kinds that have a table of their own."""
    if kind == "sample":
        rate = "no verdict" if summary["pass_rate"] is None else f"pass rate {summary['pass_rate']:.1%}"
        not_ok = sum(count for status, count in summary["statuses"].items() if status != OK)
        more = f", {not_ok} verdicts not ok" if not_ok else ""
        return f"{summary['queries']} queries, {summary['responses']} responses, {rate}{more}"
    if kind == "filter":
        reasons = [f"{reason} {count}" for found in summary["by_filter"].values() for reason, count in found.items()]
        return f"{summary['kept']} of {summary['rows']} kept" + (f"; {', '.join(reasons)}" if reasons else "")
    if kind == "fusion":
        return (
            f"{summary['conversations']} conversations, {summary['thinking_turns']} of {summary['turns']} turns think"
        )
    if kind == "eval":
        return f"pass@1 {summary['accuracy']:.1%} ± {summary['accuracy_ci95']:.1%}"
    return ""
