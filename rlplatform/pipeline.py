"""A recipe is a list of stages: run in order, each skipped when it is finished, resumed where it stopped.

    runs/NAME/
      config.yaml                 the recipe
      STAGE/done.json             key, output, summary, seconds: written last, when the stage is finished
      STAGE/started.json          key and config of the attempt that is under way
      results.json  report/       what came out

A stage's *key* hashes its config, the keys of the stages it takes inputs from, and the content of its data files: what
changed runs again, and so does everything that stands on it. The folder it leaves is kept as ``STAGE.previous``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rlplatform.config import (
    ConfigError,
    DatasetConfig,
    EvalConfig,
    InitModelConfig,
    PreferenceConfig,
    RecipeConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from rlplatform.configfile import flat, inputs, stages, to_dict
from rlplatform.launch import Outcome, ray_session, run_eval, run_rl
from rlplatform.reads import reads_do_not_count
from rlplatform.runs import RunFolder, write_atomically

MARKS = ("config.yaml", "started.json", "done.json")  # a folder with none of these is not ours to remove
WORK = ("done.json", "metrics.jsonl", "checkpoints")  # an attempt that left none of these left nothing to lose
MAY_CHANGE = ("num_steps", "run_dir", "name", "tracker.", "checkpoint.", "evaluation.every")  # a run goes on with these


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_config(config: RunConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Run a configuration of any kind to its end, and return what ``results.json`` or ``done.json`` says.

    Raises:
        ConfigError: the config cannot run, or its folder holds a different run.
        RunStopped, StallError: a stage stopped; the same command again goes on from there.
    """
    folder = Path(config.run_dir)
    if fresh and folder.exists():
        if not any((folder / mark).exists() for mark in MARKS) and any(folder.iterdir()):
            raise ConfigError(f"{folder}: --fresh removes run folders only, and this one has none of {MARKS}")
        shutil.rmtree(folder)
    if isinstance(config, RecipeConfig):
        return _run_recipe(config)
    done = _run_stage(config, {}, alone=True)
    if isinstance(config, EvalConfig):
        from rlplatform import report

        report.print_evaluation(done["summary"])
    say(f"finished: {folder}")
    return done


def _run_recipe(recipe: RecipeConfig) -> dict[str, Any]:
    from rlplatform import report

    folder = RunFolder(recipe.run_dir)
    plan = stages(recipe)
    folder.begin(recipe)
    finished: dict[str, dict[str, Any]] = {}
    with reads_do_not_count():
        todo = [name for name, config in plan.items() if not (Path(config.run_dir) / "done.json").exists()]
    if todo:
        with ray_session():
            for name, config in plan.items():
                finished[name] = _run_stage(config, finished, alone=False)
    else:
        for name, config in plan.items():
            finished[name] = _run_stage(config, finished, alone=False)
    results = report.recipe_results(recipe, plan, finished)
    folder.save_json("results.json", results)
    page = report.write_recipe_report(folder, plan, results)
    report.print_results(results, page)
    return results


def _run_stage(config: RunConfig, finished: Mapping[str, dict[str, Any]], *, alone: bool) -> dict[str, Any]:
    """Run one stage, or return what it said when it was finished."""
    name, folder = config.name, Path(config.run_dir)
    resolved = resolve_inputs(config, finished)
    key = stage_key(config, resolved, finished)
    done = _read(folder / "done.json")
    if done and done["key"] == key:
        say(f"{name}: finished before ({done['seconds']:.0f} s): {folder}")
        return done
    _make_way(folder, config, key, alone=alone)
    write_atomically(folder / "started.json", json.dumps({"key": key, "config": to_dict(config)}, indent=1))
    say(f"{name}: {config.kind}")
    began = time.perf_counter()
    outcome = STAGES[config.kind](resolved)
    seconds = time.perf_counter() - began
    done = {
        "key": key,
        "kind": config.kind,
        "output": outcome.output,
        "summary": dict(outcome.summary),
        "seconds": round(seconds, 1),
        "inputs": {needed: finished[needed]["key"] for needed in sorted(set(inputs(config)))},
    }
    write_atomically(folder / "done.json", json.dumps(done, indent=1))
    if isinstance(config, RLConfig):
        from rlplatform import report

        report.write_run_report(RunFolder(folder))
    return done


def _make_way(folder: Path, config: RunConfig, key: str, *, alone: bool) -> None:
    """Leave the folder ready for this attempt: resumed, set aside because something changed, or refused."""
    started = _read(folder / "started.json")
    if started is None or not any((folder / work).exists() for work in WORK):
        return
    before, now = flat(started["config"]), flat(to_dict(config))
    changed = sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name) and not name.startswith(MAY_CHANGE)
    )
    if not changed and (alone or started["key"] == key):
        (folder / "done.json").unlink(missing_ok=True)
        return
    what = "; ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:8]) or "its inputs"
    if alone:
        raise ConfigError(
            f"{folder} holds a run with another config ({what}); choose another name or run_dir, or start over "
            "with --fresh"
        )
    say(f"{config.name}: changed ({what}); starts over, the old folder is kept as {folder.name}.previous")
    previous = folder.with_name(f"{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --- inputs ---------------------------------------------------------------------------------------------------------


def resolve_inputs(config: Any, finished: Mapping[str, dict[str, Any]]) -> Any:
    """The config with every ``stage:NAME[/part]`` replaced by the path that stage left.

    Also inside the settings of reward functions, at any depth; there the path is absolute, for processes elsewhere.
    """

    def resolve(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("stage:"):
            name, _, part = value.removeprefix("stage:").partition("/")
            output = Path(finished[name]["output"])
            return str(output / part if part else output)
        return value

    def resolve_all(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: resolve_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [resolve_all(item) for item in value]
        path = resolve(value)
        return path if path == value else str(Path(path).resolve())

    with reads_do_not_count():
        changes: dict[str, Any] = {}
        for section in ("model", "data", "heldout", "evaluation"):
            part = getattr(config, section, None)
            if part is None:
                continue
            if section == "evaluation":
                changes[section] = replace(part, data=replace(part.data, path=resolve(part.data.path)))
            else:
                changes[section] = replace(part, path=resolve(part.path))
        if isinstance(config, RLConfig | EvalConfig):
            changes["reward"] = replace(config.reward, functions=resolve_all(config.reward.functions))
        if isinstance(config, InitModelConfig):
            changes["tokenizer"] = resolve(config.tokenizer)
        return replace(config, **changes) if changes else config


def stage_key(config: Any, resolved: Any, finished: Mapping[str, dict[str, Any]]) -> str:
    """Hash of what the stage's result depends on."""
    values = {k: v for k, v in to_dict(config).items() if k not in ("run_dir", "name", "tracker", "checkpoint")}
    parents = {needed: finished[needed]["key"] for needed in sorted(set(inputs(config)))}
    with reads_do_not_count():
        paths = [getattr(getattr(resolved, "data", None), "path", "")]
        if isinstance(resolved, RLConfig):
            paths.append(resolved.evaluation.data.path)
        if isinstance(resolved, PreferenceConfig):
            paths.append(resolved.heldout.path)
    files = {path: _content(Path(path)) for path in paths if path and Path(path).exists()}
    text = json.dumps([values, parents, sorted(files.values())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name not in MARKS:
            digest.update(file.name.encode())
            with open(file, "rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


# --- the stages -----------------------------------------------------------------------------------------------------


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
        result = run(progress=show)
    progress.close()
    return Outcome(str(result.model), dict(result.summary))


STAGES: dict[str, Callable[[Any], Outcome]] = {
    "dataset": make_dataset,
    "init_model": init_model,
    "sft": sft,
    "preference": preference,
    "rl": run_rl,
    "eval": run_eval,
}
