"""A recipe is a list of stages: run in order, each skipped when it is finished, resumed where it stopped.

    runs/NAME/
      config.yaml                 the recipe
      STAGE/done.json             key, output, summary, seconds: written last, when the stage is finished
      STAGE/started.json          key and config of the attempt that is under way
      STAGE/model/README.md       the model card, with the lineage (see lineage.py)
      results.json  report/       what came out

What runs, and why, is decided in ``plan.py``: before anything starts, ``run --dry-run`` shows it.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlplatform.config import (
    ConfigError,
    EvalConfig,
    ModelConfig,
    RecipeConfig,
    RLConfig,
    RolloutConfig,
    RunConfig,
    SampleConfig,
)
from rlplatform.configfile import inputs, stages, to_dict
from rlplatform.corpus_runs import check_settings
from rlplatform.data_marks import DONE, MARKS, STARTED, data_hashes
from rlplatform.launch import engine_pool, ray_session
from rlplatform.lineage import write_card
from rlplatform.plan import (
    FINISHED,
    LEFT_OUT,
    Choice,
    Planned,
    attempts,
    changes,
    check_choice,
    finished_mark,
    is_started,
    plan_recipe,
    read_mark,
    resolve_inputs,
    stage_key,
    stands_on,
)
from rlplatform.runs import RunFolder, alone_in, write_atomically
from rlplatform.stage_runs import STAGES
from rlplatform.trackers import say


def run_config(config: RunConfig, *, fresh: bool = False, start: str = "", only: str = "") -> dict[str, Any]:
    """Run a configuration of any kind to its end, and return what ``results.json`` or ``done.json`` says.

    Args:
        fresh: remove the run's folder first.
        start: of a recipe: this stage and all behind it start over.
        only: of a recipe: run this stage alone; what it needs must be finished.

    Raises:
        ConfigError: the config cannot run, its folder holds a different run, or ``start`` and ``only`` name no stage.
        RunStopped, StallError: a stage stopped; the same command again goes on from there.
    """
    folder = Path(config.run_dir)
    choice = Choice(start, only)
    check_choice(config, choice)
    if fresh and folder.exists():
        if not any((folder / mark).exists() for mark in MARKS) and any(folder.iterdir()):
            raise ConfigError(f"{folder}: --fresh removes run folders only, and this one has none of {MARKS}")
        with alone_in(folder):
            shutil.rmtree(folder)
    with alone_in(folder):
        return _run(config, choice)


def _run(config: RunConfig, choice: Choice) -> dict[str, Any]:
    folder = Path(config.run_dir)
    if isinstance(config, RecipeConfig):
        return _run_recipe(config, choice)
    done = _run_stage(config, {}, alone=True)
    if isinstance(config, EvalConfig):
        from rlplatform import report

        report.print_evaluation(done["summary"])
    say(f"finished: {folder}")
    return done


def _run_recipe(recipe: RecipeConfig, choice: Choice) -> dict[str, Any]:
    from contextlib import ExitStack

    from rlplatform import report

    folder = RunFolder(recipe.run_dir)
    plan = stages(recipe)
    for config in plan.values():
        check_settings(config)
    planned = plan_recipe(recipe, choice)
    folder.begin(recipe)
    for name, config in plan.items():
        if planned[name].forced:
            _set_aside(Path(config.run_dir), f"{name}: starts over")
    finished: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        if any(row.state != FINISHED for row in planned.values()):
            stack.enter_context(ray_session())
            stack.enter_context(engine_pool(_row_lengths(plan, planned)))
        for name, config in plan.items():
            if planned[name].included:
                finished[name] = _run_stage(config, finished, alone=False)
            elif (done := finished_mark(config, finished)) is not None:
                finished[name] = done
    if len(finished) < len(plan):
        say(f"{len(finished)} of {len(plan)} stages are finished; the same command without --only runs the others")
        return {"stages": {name: done["summary"] for name, done in finished.items()}}
    results = report.recipe_results(recipe, plan, finished)
    folder.save_json("results.json", results)
    page = report.write_recipe_report(folder, plan, results)
    report.print_results(results, page)
    return results


def _row_lengths(
    plan: Mapping[str, RunConfig], planned: Mapping[str, Planned]
) -> list[tuple[ModelConfig, RolloutConfig, int]]:
    """What the stages that are to run need of their engines: see ``EnginePool``."""
    return [
        (config.model, config.rollout, config.max_model_len)
        for name, config in plan.items()
        if isinstance(config, (RLConfig, EvalConfig, SampleConfig)) and planned[name].state not in (FINISHED, LEFT_OUT)
    ]


def _run_stage(config: RunConfig, finished: Mapping[str, dict[str, Any]], *, alone: bool) -> dict[str, Any]:
    """Run one stage, or return what it said when it was finished."""
    name, folder = config.name, Path(config.run_dir)
    resolved = resolve_inputs(config, finished)
    key = stage_key(config, resolved, finished)
    if done := finished_mark(config, finished):
        say(f"{name}: finished before ({done['seconds']:.0f} s): {folder}")
        return done
    _make_way(folder, config, key, finished, alone=alone)
    started = {"key": key, "config": to_dict(config), "attempts": attempts(config, finished)}
    write_atomically(folder / STARTED, json.dumps(started, indent=1))
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
        "data": data_hashes(resolved),
        "attempt": uuid.uuid4().hex[:12],
        "attempts": attempts(config, finished),
    }
    write_card(resolved, done, finished)
    write_atomically(folder / DONE, json.dumps(done, indent=1))
    if isinstance(config, RLConfig):
        from rlplatform import report

        report.write_run_report(RunFolder(folder))
    return done


def _make_way(
    folder: Path, config: RunConfig, key: str, finished: Mapping[str, dict[str, Any]], *, alone: bool
) -> None:
    """Leave the folder ready for this attempt: resumed, set aside because something changed, or refused."""
    started = read_mark(folder / STARTED)
    if started is None or not is_started(folder):
        return
    changed = changes(started["config"], config)
    if not changed and (alone or (started["key"] == key and stands_on(started, finished))):
        (folder / DONE).unlink(missing_ok=True)
        return
    what = "; ".join(changed[:8]) or "its inputs"
    if alone:
        raise ConfigError(
            f"{folder} holds a run with another config ({what}); choose another name or run_dir, or start over "
            "with --fresh"
        )
    _set_aside(folder, f"{config.name}: changed ({what}); starts over")


def _set_aside(folder: Path, why: str) -> None:
    if not folder.exists():
        return
    say(f"{why}, the old folder is kept as {folder.name}.previous")
    previous = folder.with_name(f"{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)
