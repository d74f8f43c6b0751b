"""What each kind of stage does: a configuration with its inputs filled in comes, an ``Outcome`` goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rlplatform.config import (
    BenchmarksConfig,
    CleanConfig,
    ConfigError,
    DatasetConfig,
    DocumentsConfig,
    InitModelConfig,
    PreferenceConfig,
    SFTConfig,
)
from rlplatform.data_stages import filter_rows, fusion
from rlplatform.launch import Outcome, make_room, ray_session, run_eval, run_rl
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.sample_stage import sample


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_dataset(config: DatasetConfig) -> Outcome:
    """Call the generator and write one JSONL file a split."""
    from rewards.base import load_function

    folder = Path(config.run_dir)
    function = load_function(config.function, f"stage {config.name}: function")
    splits = function(seed=config.seed, **config.args)
    counts = {}
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        if not lines:
            raise ConfigError(f"{config.function}: split {split!r} has no rows")
        write_atomically(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
        counts[split] = len(lines)
    return Outcome(str(folder), {"rows": counts})


def init_model(config: InitModelConfig) -> Outcome:
    """Train a tokenizer on the dataset's text, then write a model with random weights beside it."""
    from model.init import init_model as write_model
    from model.tokenizer import chat_texts, train_bpe
    from rlplatform.data import normalise, read_rows

    folder = Path(config.run_dir)
    tokenizer = config.tokenizer
    if not tokenizer:
        tokenizer = str(folder / "tokenizer")
        values = (normalise(row, where, config.data)[0] for where, row in read_rows(config.data))
        texts = ([value] if isinstance(value, str) else chat_texts([value]) for value in values)
        train_bpe(chain.from_iterable(texts), config.vocab_size, tokenizer)
    parameters = write_model(folder / "model", tokenizer, config.architecture, config.vocab_size, config.seed)
    return Outcome(str(folder / "model"), {"parameters": parameters})


def sft(config: SFTConfig) -> Outcome:
    from pretrain.sft import run_sft

    def line(row: Mapping[str, Any]) -> str:
        return f"loss {row['loss']:.3f}  {row.get('tokens_per_s', 0):,.0f} tok/s"

    return _train(config, partial(run_sft, config, stop_at_probability=config.stop_at_probability), line)


def preference(config: PreferenceConfig) -> Outcome:
    from pretrain.preference import run_preference
    from rlplatform.preference_report import table

    def line(row: Mapping[str, Any]) -> str:
        held_out = f"  held out {row['eval/pair_accuracy']:.1%}" if "eval/pair_accuracy" in row else ""
        return f"loss {row['loss']:.3f}  accuracy {row['preference/accuracy']:.1%}{held_out}"

    outcome = _train(config, partial(run_preference, config), line)
    for what, value in table(outcome.summary["heldout"]) if "heldout" in outcome.summary else ():
        say(f"  {what:28} {value}")
    return outcome


def _train(
    config: SFTConfig | PreferenceConfig, run: Callable[..., Any], line: Callable[[Mapping[str, Any]], str]
) -> Outcome:
    """``run(progress=...)`` in a Ray session; about twenty lines of progress."""
    from rlplatform.trackers import Progress

    RunFolder(config.run_dir).begin(config)
    progress = Progress(config.name, config.num_steps)

    def show(row: dict[str, Any]) -> None:
        if row["step"] % max(config.num_steps // 20, 1) == 0 or row["step"] == config.num_steps:
            progress.step(int(row["step"]), line(row))

    progress.phase("starting Ray Train")
    with ray_session():
        make_room(config.learner)
        result = run(progress=show)
    progress.close()
    return Outcome(str(result.model), dict(result.summary))


def benchmarks(config: BenchmarksConfig) -> Outcome:
    from rlplatform.evaluation.suite import run_benchmarks

    return run_benchmarks(config)


def documents(config: DocumentsConfig) -> Outcome:
    """Raw files of all sources to documents."""
    from pretrain.data.documents import make_documents

    RunFolder(config.run_dir).begin(config)
    with ray_session():
        summary = make_documents(config, progress_of(config.name, "tasks"))
    return Outcome(config.run_dir, summary)


def check_settings(config: Any) -> None:
    """Raises ConfigError for settings that only the functions behind them can judge; before anything starts."""
    if isinstance(config, CleanConfig):
        from pretrain.data.clean_steps import steps_of

        steps_of(config.steps)


def clean(config: CleanConfig) -> Outcome:
    """Documents through the steps of the config; what was kept, dropped and changed, and the flow."""
    from pretrain.data.cleaning import clean_documents
    from rlplatform.evaluation.contents import items_of

    check_settings(config)
    RunFolder(config.run_dir).begin(config)
    with ray_session():
        cleaned = clean_documents(
            config,
            items=lambda step: items_of(step.settings),
            progress=lambda name: progress_of(f"{config.name}: {name}", "tasks"),
        )
    say(cleaned.table)
    return Outcome(config.run_dir, cleaned.summary)


def progress_of(name: str, what: str) -> Callable[[int, int], None]:
    """About twenty lines of progress for a stage that works on ``what``: (finished, in all)."""

    def show(finished: int, num: int) -> None:
        if finished and (finished % max(num // 20, 1) == 0 or finished == num):
            say(f"{name}: {finished} of {num} {what}")

    return show


STAGES: dict[str, Callable[[Any], Outcome]] = {
    "dataset": make_dataset,
    "init_model": init_model,
    "sft": sft,
    "preference": preference,
    "rl": run_rl,
    "eval": run_eval,
    "benchmarks": benchmarks,
    "sample": sample,
    "filter": filter_rows,
    "fusion": fusion,
    "documents": documents,
    "clean": clean,
}
