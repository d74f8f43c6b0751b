"""What each kind of stage does: a configuration with its inputs filled in comes, an ``Outcome`` goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rlplatform.config import (
    BenchmarksConfig,
    ConfigError,
    DatasetConfig,
    DPOConfig,
    InitModelConfig,
    PreferenceConfig,
    PretrainConfig,
    SFTConfig,
)
from rlplatform.corpus_runs import CORPUS_STAGES
from rlplatform.data_stages import filter_rows, fusion
from rlplatform.launch import Outcome, make_room, ray_session, run_eval, run_rl
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.sample_stage import sample
from rlplatform.trackers import say


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


def dpo(config: DPOConfig) -> Outcome:
    from pretrain.dpo import run_dpo

    def line(row: Mapping[str, Any]) -> str:
        held_out = f"  held out {row['heldout/dpo/accuracy']:.1%}" if "heldout/dpo/accuracy" in row else ""
        return f"loss {row['loss']:.3f}  margin {row['dpo/margin']:.3f}{held_out}"

    return _train(config, partial(run_dpo, config), line)


def pretrain(config: PretrainConfig) -> Outcome:
    from pretrain.pretraining import run_pretraining

    def line(row: Mapping[str, Any]) -> str:
        held_out = f"  held out {row['heldout/loss']:.3f}" if "heldout/loss" in row else ""
        return f"loss {row['loss']:.3f}{held_out}  {row.get('tokens_per_s', 0):,.0f} tok/s"

    return _train(config, partial(run_pretraining, config), line)


def _train(
    config: SFTConfig | PreferenceConfig | DPOConfig | PretrainConfig,
    run: Callable[..., Any],
    line: Callable[[Mapping[str, Any]], str],
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


STAGES: dict[str, Callable[[Any], Outcome]] = {
    "dataset": make_dataset,
    "init_model": init_model,
    "sft": sft,
    "preference": preference,
    "dpo": dpo,
    "rl": run_rl,
    "eval": run_eval,
    "benchmarks": benchmarks,
    "sample": sample,
    "filter": filter_rows,
    "fusion": fusion,
    "pretrain": pretrain,
    **CORPUS_STAGES,
}
