"""The stages of a recipe that make data from rows: ``filter`` and ``fusion``. Rows in, rows out, nothing lost.

    queries ─ sample ─► responses.jsonl ─ filter ─► train.jsonl ─ sft, rl
                        queries.jsonl     fusion ─► train.jsonl ─ sft

What a filter needs beside its rows it takes from files (``stage:NAME/responses.jsonl``). Rules and bounds are in
``rlplatform/stages``; responses come from ``sample_stage.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlplatform.config import ConfigError, DataConfig, FilterConfig, FusionConfig
from rlplatform.data import normalise
from rlplatform.datafiles import read_rows
from rlplatform.launch import Outcome
from rlplatform.runs import RunFolder
from rlplatform.sample_stage import Row, write_rows
from rlplatform.stages.annotation import export, never_solved, read_verdicts
from rlplatform.stages.checklists import check_responses
from rlplatform.stages.fusion import assemble, samples, usable
from rlplatform.stages.query_filters import HELD_OUT
from rlplatform.stages.records import Filter, Records, apply_filters, row_key, write_parquet
from rlplatform.stages.registry import bind

KEPT, VALIDATION, NEVER_SOLVED = "train.jsonl", "validation.jsonl", "never_solved.jsonl"
RECORDS = "records.parquet"


def rows_of(path: str) -> list[Row]:
    """The rows of a file, as written."""
    return [row for _, row in read_rows(DataConfig(path=path))]


# --- filter ---------------------------------------------------------------------------------------------------------


def filter_rows(config: FilterConfig) -> Outcome:
    """The steps in order; what they keep goes on.

    Raises:
        ConfigError: rows or settings that a filter cannot use, or nothing is left.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    for name in (KEPT, VALIDATION, NEVER_SOLVED):  # an attempt that stopped may have left them
        (folder.path / name).unlink(missing_ok=True)
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
