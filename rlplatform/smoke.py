"""``--smoke``: the same path through the same code, two steps a stage, a handful of problems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlplatform.config import (
    BenchmarksConfig,
    CheckpointConfig,
    DPOConfig,
    EvalConfig,
    EvaluationConfig,
    FilterConfig,
    FusionConfig,
    PreferenceConfig,
    PretrainConfig,
    RecipeConfig,
    RLConfig,
    RunConfig,
    SampleConfig,
    SFTConfig,
)
from rlplatform.configfile import build, to_dict

STEPS, PROBLEMS = 2, 8


def shorten(config: RunConfig) -> RunConfig:
    """A short twin of ``config`` in a folder of its own (``…-smoke``)."""
    run_dir = f"{config.run_dir}-smoke"
    if isinstance(config, RecipeConfig):
        stages = {}
        for name, raw in config.stages.items():
            values = {"name": name, "seed": config.seed, "run_dir": f"{run_dir}/{name}", **raw}
            stages[name] = to_dict(_short(build(values, where=f"stages.{name}")))
        return replace(config, run_dir=run_dir, stages=stages)
    return replace(_short(config), run_dir=run_dir)


def _short(config: RunConfig) -> RunConfig:
    if isinstance(config, RLConfig):
        # an untrained policy earns equal rewards, so groups without variance are kept: the path is what is tested
        return replace(
            config,
            num_steps=STEPS,
            prompts_per_step=4,
            data=replace(config.data, curriculum_buckets=1),
            group_size=2,
            updates_per_step=1,
            algorithm=replace(config.algorithm, drop_zero_variance=False, dynamic_sampling=False),
            evaluation=_short_evaluation(config.evaluation),
            checkpoint=CheckpointConfig(every=1),
        )
    if isinstance(config, SFTConfig):
        return replace(config, num_steps=STEPS, tokens_per_step=config.max_tokens * config.learner.num_workers)
    if isinstance(config, PreferenceConfig):
        return replace(
            config,
            num_steps=STEPS,
            tokens_per_step=2 * config.max_tokens * config.learner.num_workers,
            evaluate_every=1,
        )
    if isinstance(config, DPOConfig):
        tokens = 2 * config.max_tokens * config.learner.num_workers
        return replace(config, num_steps=STEPS, tokens_per_step=tokens, evaluate_every=1)
    if isinstance(config, PretrainConfig):
        every = replace(config.completions, every=1)
        return replace(config, num_tokens=STEPS * config.tokens_per_step, evaluate_every=1, completions=every)
    if isinstance(config, SampleConfig):
        # an untrained model answers nothing right, so half of the answers are demonstrations where the data has some
        return replace(
            config,
            num_samples=2,
            data=replace(config.data, limit=PROBLEMS),
            use_demonstrations=bool(config.demonstration),
        )
    if isinstance(config, FilterConfig):
        return replace(config, steps={name: _short_step(step) for name, step in config.steps.items()})
    if isinstance(config, FusionConfig):
        return replace(config, num=PROBLEMS, repeat=True)
    if isinstance(config, BenchmarksConfig):
        return replace(config, num_samples=2, limit=PROBLEMS)
    if isinstance(config, EvalConfig):
        return replace(config, num_samples=2, data=replace(config.data, limit=PROBLEMS))
    return config


def _short_step(settings: dict[str, Any]) -> dict[str, Any]:
    """Wide bounds where half of two samples is right by construction."""
    return {**settings, **({"max_rate": 1.0} if "max_rate" in settings else {})}


def _short_evaluation(config: EvaluationConfig) -> EvaluationConfig:
    return replace(config, every=1, num_samples=min(config.num_samples, 2), data=replace(config.data, limit=PROBLEMS))
