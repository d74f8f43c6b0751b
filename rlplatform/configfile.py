"""Reading, checking, printing and saving configurations (OmegaConf; the dataclasses are in ``config/``)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlplatform.config import KINDS, ConfigError, RecipeConfig, RunConfig
from rlplatform.reads import reads_do_not_count


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in ``path`` with ``key=value`` overrides applied.

    Raises:
        ConfigError: the file is absent or no YAML mapping, a key is unknown (the nearest valid one is named), a value
            has the wrong type, or a dataclass refuses it.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}")
    try:
        raw = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path}: expected YAML, got an error: {error}") from error
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(raw).__name__}")
    return load_values(raw, overrides, where=str(path))


def load_values(
    values: Mapping[str, Any] | DictConfig, overrides: Sequence[str] = (), *, where: str = "config"
) -> RunConfig:
    """As ``load``, from values at hand."""
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {text!r}: expected key=value, e.g. optimizer.lr=1e-5")
    merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(overrides)))  # type: ignore[arg-type]
    return build(OmegaConf.to_container(merged, resolve=False), where=where)  # type: ignore[arg-type]


def build(raw: Mapping[str, Any], *, where: str) -> RunConfig:
    """A checked configuration from a plain mapping; ``where`` names it in errors."""
    kind = raw.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {kind!r}{hint}")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(KINDS[kind]), OmegaConf.create(dict(raw)))
        config: RunConfig = OmegaConf.to_object(typed)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_lines(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if isinstance(config, RecipeConfig):
        stages(config)  # every stage is checked before anything starts
    return config


def _first_lines(error: Exception) -> str:
    """OmegaConf's message and the full key, without its internal type names."""
    lines = [line.strip() for line in str(error).splitlines()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {lines[0]}" if key else lines[0]


def stages(recipe: RecipeConfig) -> dict[str, RunConfig]:
    """The stages of a recipe in order. A stage inherits the recipe's seed and lives in a folder of the run's."""
    built: dict[str, RunConfig] = {}
    for name, raw in recipe.stages.items():
        if not isinstance(raw, Mapping):
            raise ConfigError(f"stages.{name}: expected a mapping with a `kind`, got {raw!r}")
        filled = {"name": name, "seed": recipe.seed, "run_dir": f"{recipe.run_dir}/{name}", **raw}
        if filled.get("kind") == "recipe":
            raise ConfigError(f"stages.{name}: a recipe inside a recipe; list its stages here instead")
        built[name] = build(filled, where=f"stages.{name}")
    for name, config in built.items():
        for needed in inputs(config):
            known = list(built)[: list(built).index(name)]
            if needed not in known:
                raise ConfigError(
                    f"stages.{name}: needs stage:{needed}, which does not come before it; before it come {known}"
                )
    return built


def inputs(config: Any) -> list[str]:
    """Names of the stages a configuration takes anything from (``stage:NAME``, ``stage:NAME/part``)."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            for entry in fields(value):
                walk(getattr(value, entry.name))
        elif isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif isinstance(value, str) and value.startswith("stage:"):
            found.append(value.removeprefix("stage:").partition("/")[0])

    with reads_do_not_count():
        walk(config)
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (lists, no tuples, as JSON and YAML would give back), for printing, saving and hashing."""
    with reads_do_not_count():
        container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    plain: dict[str, Any] = json.loads(json.dumps(container))
    return plain


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def difference_to_defaults(config: RunConfig) -> dict[str, Any]:
    """Dotted keys whose value is not the default's -> value."""
    default = json.loads(json.dumps(OmegaConf.to_container(OmegaConf.structured(type(config)), resolve=False)))
    return {
        key: value
        for key, value in flat(to_dict(config)).items()
        if value != flat(default).get(key)  # type: ignore[arg-type]
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def derived(config: RunConfig) -> list[tuple[str, str]]:
    """The batch arithmetic that follows from the user's knobs, as (quantity, how it comes about)."""
    from rlplatform.config import PreferenceConfig, RLConfig, SFTConfig

    if isinstance(config, RLConfig):
        rows, updates, ranks = config.rows_per_step, config.updates_per_step, config.learner.num_workers
        return [
            ("rollouts a step", f"{config.prompts_per_step} prompts x {config.group_size} samples = {rows}"),
            ("rows an optimiser step", f"{rows} / {updates} updates = {rows // updates}"),
            ("rows a rank and optimiser step", f"{rows // updates} / {ranks} ranks = {rows / updates / ranks:g}"),
            ("optimiser steps in all", f"{config.num_steps} steps x {updates} = {config.num_optimizer_steps}"),
            (
                "tokens an engine must hold",
                f"{config.data.max_prompt_tokens} prompt + {config.sampling.max_new_tokens} new"
                + (f", model.max_model_len {config.model.max_model_len}" if config.model.max_model_len else ""),
            ),
            (
                "groups an engine runs at once",
                f"{config.rollout.max_num_seqs} / {config.group_size} = "
                f"{config.rollout.max_num_seqs // config.group_size}",
            ),
        ]
    if isinstance(config, SFTConfig | PreferenceConfig):
        return [
            ("tokens a rank and step", f"{config.tokens_per_step} / {config.learner.num_workers} ranks"),
            (
                "tokens in all",
                f"{config.num_steps} x {config.tokens_per_step} = {config.num_steps * config.tokens_per_step}",
            ),
        ]
    return []


def placement(config: RunConfig) -> list[tuple[str, int, float, float]]:
    """(actor, count, CPUs each, GPUs each) that a run asks Ray for."""
    from rlplatform.config import BenchmarksConfig, EvalConfig, PreferenceConfig, RLConfig, SampleConfig, SFTConfig

    wanted: list[tuple[str, int, float, float]] = []
    if isinstance(config, RLConfig | EvalConfig | BenchmarksConfig | SampleConfig):
        rollout = config.rollout
        wanted.append(("rollout worker", rollout.num_workers, rollout.cpus_per_worker, rollout.gpus_per_worker))
        wanted.append(("reward service", config.reward.num_workers, 0.0, 0.0))
        own = [part for part in (config.reward.parts.values() if config.reward.functions else ()) if part.has_workers]
        wanted += [(f"reward {part.name}", part.workers or 1, 0.0, part.gpus) for part in own]
    if isinstance(config, RLConfig | SFTConfig | PreferenceConfig):
        learner = config.learner
        wanted.append(("learner", learner.num_workers, learner.cpus_per_worker, learner.gpus_per_worker))
    if isinstance(config, RLConfig) and config.teacher.path:
        teacher = config.teacher
        wanted.append(("teacher", teacher.num_workers, teacher.cpus_per_worker, teacher.gpus_per_worker))
    return wanted
