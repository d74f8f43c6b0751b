"""Runs of kind ``benchmarks``: every benchmark, mode and budget on one engine, by the runner that training uses.

    RUN/rows/NAME.jsonl                  the prepared rows: what was asked, and what the reward read
    RUN/NAME-MODE/eval/step-000000.parquet   every rollout with its verdict (`rlplatform inspect --held-out`)
    RUN/results.json  RUN/report/*.png   see ``results.py`` and ``budget_sweep.py``

All data is read and every reward tried before the engine starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlplatform.config import BenchmarksConfig, ConfigError, DataConfig, EnvironmentConfig, RewardConfig, SamplingConfig
from rlplatform.configfile import to_dict
from rlplatform.environment_checks import check_environment
from rlplatform.evaluation import budget_sweep, results, think_follow
from rlplatform.evaluation.benchmarks import NON_THINKING, SAMPLING, THINKING, Benchmark, select
from rlplatform.evaluation.budget_sweep import Point, with_budget
from rlplatform.evaluation.prompts import Row
from rlplatform.evaluation.rows import rows_of, write_rows
from rlplatform.evaluation.runner import Evaluation, Generate
from rlplatform.launch import Outcome, evaluator, prompts_of, ray_session, sampling_params
from rlplatform.recorded import FOLDER, Recorded, weights_mark
from rlplatform.reward_checks import accuracy_metric, check_columns, probe
from rlplatform.runs import RunFolder, versions
from rlplatform.servable import check_servable, tokenizer_of
from rlplatform.types import Prompt, SamplingParams

DIALOGUE = "dialogue"  # the mode of a multi-turn benchmark: its flags say when to think


@dataclass(frozen=True)
class Task:
    """One benchmark, ready to be measured."""

    benchmark: Benchmark
    rows: tuple[Row, ...]
    data_hash: str  # SHA-256 of the file of prepared rows
    num_samples: int
    prompts: dict[str, tuple[Prompt, ...]]  # by mode; none for dialogues
    left_out: dict[str, int]  # by mode: prompts longer than max_prompt_tokens
    reward: RewardConfig
    sampling: dict[str, SamplingParams]  # by mode

    @property
    def metric(self) -> str:
        return next(iter(self.reward.functions), self.benchmark.metric)


def sampling_of(config: BenchmarksConfig, benchmark: Benchmark, mode: str) -> SamplingParams:
    """The report's sampling of a mode (dialogues: thinking mode's), with what the config changes."""
    values = {"max_new_tokens": benchmark.max_new_tokens, **SAMPLING.get(mode, SAMPLING[THINKING]), **config.sampling}
    return sampling_params(SamplingConfig(**values))


def modes_of(config: BenchmarksConfig, benchmark: Benchmark) -> tuple[str, ...]:
    if benchmark.multi_turn:
        return (DIALOGUE,)
    return tuple(dict.fromkeys([*config.modes, *([THINKING] if config.budgets else [])]))


def environment_of(config: BenchmarksConfig, benchmark: Benchmark) -> EnvironmentConfig:
    """That of the config for the user's own problems; the table's others are of one turn."""
    return config.environment if benchmark.name == "own" else EnvironmentConfig()


def max_model_len(config: BenchmarksConfig) -> int:
    """Tokens, prompt and completion together: the longest of the chosen benchmarks."""
    longest = max(
        sampling_of(config, one, mode).max_new_tokens
        for one in select(config.benchmarks)
        for mode in modes_of(config, one)
    )
    return config.model.max_model_len or config.max_prompt_tokens + longest


def prepare(config: BenchmarksConfig, tokenizer: Any, folder: RunFolder) -> list[Task]:
    """Read, render and check everything.

    Raises:
        ConfigError, DataError: a set that is not there, a row or a reward that cannot be used.
    """
    return [_task(config, benchmark, tokenizer, folder) for benchmark in select(config.benchmarks)]


def _task(config: BenchmarksConfig, benchmark: Benchmark, tokenizer: Any, folder: RunFolder) -> Task:
    path = config.paths.get(benchmark.name, "")
    rows = rows_of(benchmark, data_dir=config.data_dir, path=path, seed=config.seed, limit=config.limit)
    file = write_rows(rows, folder.path / "rows" / f"{benchmark.name}.jsonl")
    modes = modes_of(config, benchmark)
    environment = environment_of(config, benchmark)
    functions = {"environment": 1.0} if environment else dict(benchmark.functions)
    reward = replace(config.reward, functions={} if benchmark.multi_turn else functions)
    sampling = {mode: sampling_of(config, benchmark, mode) for mode in modes}
    prompts: dict[str, tuple[Prompt, ...]] = {}
    left_out: dict[str, int] = {}
    for mode in () if benchmark.multi_turn else modes:
        data = DataConfig(
            path=str(file),
            split="test",
            shuffle=False,
            enable_thinking=mode == THINKING,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        found = prompts_of(data, tokenizer, folder, f"{benchmark.name}-{mode}")
        prompts[mode], left_out[mode] = found.prompts, len(found.too_long)
    _check_fits(config, benchmark, prompts, sampling)
    if prompts:
        asked = next(iter(prompts.values()))
        check_environment(environment, asked)
        check_columns(reward, asked)
        with probe(reward) as rewards:
            rewards.check(asked)
    num_samples = 1 if benchmark.multi_turn else config.num_samples or benchmark.num_samples
    hashed = results.file_hash(file)
    return Task(benchmark, tuple(rows), hashed, num_samples, prompts, left_out, reward, sampling)


def _check_fits(
    config: BenchmarksConfig,
    benchmark: Benchmark,
    prompts: Mapping[str, Sequence[Prompt]],
    sampling: Mapping[str, SamplingParams],
) -> None:
    """Raises ConfigError where a prompt and its answer are longer than the engine's sequences."""
    limit = max_model_len(config)
    for mode, own in prompts.items():
        longest = max(len(prompt.token_ids) for prompt in own)
        if longest + sampling[mode].max_new_tokens > limit:
            raise ConfigError(
                f"{benchmark.name}: the longest prompt has {longest} tokens, and with sampling.max_new_tokens="
                f"{sampling[mode].max_new_tokens} it does not fit into {limit}; raise model.max_model_len, or lower "
                "sampling.max_new_tokens or max_prompt_tokens (longer prompts are then left out)"
            )


# --- measuring ------------------------------------------------------------------------------------------------------

Measure = Callable[[Task, Sequence[Prompt], SamplingParams, str], Evaluation]  # the last: the name of its folder


def measure_all(
    config: BenchmarksConfig,
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    measure: Measure,
    generate: Generate,
    folder: RunFolder,
) -> dict[str, Any]:
    """Entries of all tasks in all modes and budgets, and the checks of the sweeps; rollouts and plots lie there."""
    entries: list[results.Record] = []
    sweeps: dict[str, Any] = {}
    for task in tasks:
        if task.benchmark.multi_turn:
            driven = think_follow.drive(
                task.rows,
                tokenizer=tokenizer,
                generate=generate,
                sampling=task.sampling[DIALOGUE],
                seed=config.seed,
                max_model_len=max_model_len(config),
            )
            turns = think_follow.scored(task.rows, driven)
            RunFolder(folder.path / f"{task.benchmark.name}-{DIALOGUE}").write_rollouts(turns, step=0, kind="eval")
            found = {"num_samples": 1, **think_follow.summary(task.rows, driven)}
            entries.append(_entry(config, task, DIALOGUE, None, found))
            continue
        for mode in config.modes:
            entries.append(_one(config, task, mode, None, tokenizer, measure)[0])
        if config.budgets:
            points = []
            for budget in sorted(config.budgets):
                entry, point = _one(config, task, THINKING, budget, tokenizer, measure)
                entries.append(entry)
                points.append(point)
            name = task.benchmark.name
            sweeps[name] = budget_sweep.check(points)
            other = [e for e in entries if e["benchmark"] == name and e["mode"] == NON_THINKING]
            line = (other[0]["accuracy"], other[0]["accuracy_ci95"]) if other else None
            budget_sweep.plot(points, folder.report / f"budget_{name}.png", title=name, non_thinking=line)
    return {"entries": entries, "sweeps": sweeps}


def _one(
    config: BenchmarksConfig, task: Task, mode: str, budget: int | None, tokenizer: Any, measure: Measure
) -> tuple[results.Record, Point]:
    metric, sampling = task.metric, task.sampling[mode]
    folder = f"{task.benchmark.name}-{mode}" if budget is None else f"{task.benchmark.name}-budget-{budget}"
    evaluation = measure(task, with_budget(task.prompts[mode], budget), sampling, folder)
    counts = budget_sweep.token_counts(evaluation.sampled, tokenizer, sampling.thinking_stop_text)
    found = results.record(task.benchmark, evaluation, metric=metric, num_samples=task.num_samples)
    point = Point(budget or 0, budget_sweep.problem_means(evaluation.sampled, metric, task.num_samples), counts)
    return _entry(config, task, mode, budget, {**found, **counts, "left_out": task.left_out[mode]}), point


def _entry(
    config: BenchmarksConfig, task: Task, mode: str, budget: int | None, found: results.Record
) -> results.Record:
    sampling = vars(task.sampling[mode])
    return {
        "benchmark": task.benchmark.name,
        "mode": mode,
        "budget": budget,
        **found,
        "report": results.published(task.benchmark, config.report_model, mode) if budget is None else None,
        "data": task.data_hash,
        "sampling": {**sampling, "stop_token_ids": list(sampling["stop_token_ids"])},
    }


def config_hash(config: BenchmarksConfig) -> str:
    """SHA-256 of the resolved config without its name and place."""
    values = {key: value for key, value in to_dict(config).items() if key not in ("name", "run_dir")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def run_benchmarks(config: BenchmarksConfig) -> Outcome:
    """Measure a model on the table; ``results.json`` holds everything needed to repeat it."""
    from actors.reward_service import RewardService
    from actors.rollout_fleet import RolloutFleet

    folder = RunFolder(config.run_dir)
    folder.begin(config)
    tokenizer = tokenizer_of(config.model.path, trust_remote_code=config.model.trust_remote_code)
    check_servable(config.model.path, config.model, max_model_len(config))
    tasks = prepare(config, tokenizer, folder)
    graders: dict[str, Any] = {}
    os.environ["RLPLATFORM_LOG_DIR"] = str(folder.logs.resolve())
    with ray_session(), ExitStack() as stack:
        first = next(iter(tasks[0].sampling.values()))
        fleet = RolloutFleet(config.model.path, config.model, config.rollout, first, max_model_len(config), config.seed)
        stack.callback(fleet.close)
        services, current = stack.enter_context(ExitStack()), list[Any]([None])

        def measure(task: Task, prompts: Sequence[Prompt], sampling: SamplingParams, name: str) -> Evaluation:
            print(f"{name}: {len(prompts)} problems x {task.num_samples}", file=sys.stderr, flush=True)
            fleet.environment = environment_of(config, task.benchmark)
            if task.benchmark.name not in graders:  # one service a benchmark, for its modes and budgets
                services.close()
                service = services.enter_context(closing(RewardService(task.reward, folder.path)))
                graders[task.benchmark.name], current[0] = service.versions(), service
            functions = {"functions": task.reward.functions, "environment": asdict(fleet.environment)}
            recorded = Recorded(folder.path / FOLDER, fleet, current[0], about={**about, **functions})
            return evaluator(
                prompts,
                fleet=recorded,
                service=recorded,
                sampling=sampling,
                num_samples=task.num_samples,
                metric=accuracy_metric(task.reward, task.metric),
                seed=config.seed,
                greedy=False,
                folder=RunFolder(folder.path / name),
            )(0)

        def generate(requests: Any, sampling: SamplingParams) -> Any:
            fleet.environment = EnvironmentConfig()
            return Recorded(folder.path / FOLDER, fleet, about=about).generate(requests, sampling)

        about = {"model": [config.model.path, weights_mark(config.model.path), asdict(config.model)]}
        found = measure_all(config, tasks, tokenizer, measure=measure, generate=generate, folder=folder)
        effective = {
            f"{task.benchmark.name}-{mode}": fleet.effective_sampling(sampling)
            for task in tasks
            for mode, sampling in task.sampling.items()
        }
    summary = {
        "model": config.model.path,
        "lineage": results.lineage_key(config.model.path),
        "seed": config.seed,
        "config": config_hash(config),
        "template": results.template_hash(tokenizer),
        "report_model": config.report_model,
        **found,
        "effective_sampling": effective,
        "graders": graders,
        "versions": versions(),
    }
    output = folder.save_json("results.json", summary)
    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)
    results.plot(summary, folder.report / "benchmarks.png")
    results.print_results(summary, folder.path)
    return Outcome(str(output), summary)
