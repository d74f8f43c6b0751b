"""From the command line to a composed reward: names, ``--arg key=value``, or the reward section of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rewards.base import RewardLoadError, nearest
from rewards.composition import Part, read_parts
from rlplatform.config import ConfigError, RecipeConfig, RewardConfig
from rlplatform.configfile import load, load_values, stages


@dataclass(frozen=True)
class Choice:
    """The reward that a command works with."""

    title: str  # for people
    parts: dict[str, Part]
    timeout_s: float
    num_processes: int = 1


def choose(
    functions: Sequence[str],
    config: Path | None = None,
    stage: str = "",
    args: Sequence[str] = (),
    timeout_s: float | None = None,
) -> Choice:
    """``functions``, with weight 1 each, or what ``config`` says; then ``args`` go to the functions.

    Args:
        config: a config of a run, or a file with a ``reward`` section alone.
        stage: of a recipe that has several stages with a reward.
        args: ``key=value`` where there is one function, else ``NAME.key=value``; the value is YAML.
        timeout_s: a row may take; None = as configured.

    Raises:
        ConfigError, RewardLoadError: neither or both are named, or one of them is wrong.
    """
    if bool(functions) == (config is not None):
        raise ConfigError(
            "expected reward functions or --config FILE, "
            + ("got both; a config names its own functions" if functions else "got neither")
        )
    section = RewardConfig() if config is None else reward_section(config, stage)
    if stage and config is None:
        raise ConfigError("--stage: expected together with --config")
    parts = read_parts(dict.fromkeys(functions, 1.0)) if functions else section.parts
    for text in args:
        name, key, value = _argument(text, list(parts))
        parts[name] = replace(parts[name], args={**parts[name].args, key: value})
    title = ", ".join(functions) if functions else f"{config}{f', stage {stage}' * bool(stage)}"
    return Choice(title, parts, section.timeout_s if timeout_s is None else timeout_s, section.processes_per_worker)


def reward_section(path: Path, stage: str = "") -> RewardConfig:
    """The ``reward`` section of a config, checked as a run checks it.

    Raises:
        ConfigError: the file is wrong, has no reward, or is a recipe in which ``stage`` does not say which one.
    """
    config = _load(path)
    if isinstance(config, RecipeConfig):
        built = {name: one for name, one in stages(config).items() if getattr(one, "reward", None)}
        if stage not in built and (stage or len(built) != 1):
            known = ", ".join(built) or "of which there are none"
            raise ConfigError(f"{path}: expected --stage to be one of its stages with a reward, {known}; got {stage!r}")
        config = built[stage] if stage else next(iter(built.values()))
    elif stage:
        raise ConfigError(f"{path}: it is no recipe and has no stages; leave --stage out")
    reward: RewardConfig | None = getattr(config, "reward", None)
    if reward is None or not reward.functions:
        raise ConfigError(
            f"{path}: expected reward.functions, e.g. reward: {{functions: {{math: 1.0}}}}; there are none"
        )
    return reward


def _load(path: Path) -> Any:
    try:
        raw = OmegaConf.load(path) if path.is_file() else None
    except Exception:
        raw = None  # `load` says what is wrong with the file
    if isinstance(raw, DictConfig) and set(raw) == {"reward"}:
        return load_values({"kind": "eval", "reward": raw["reward"]}, where=str(path))
    return load(path)


def _argument(text: str, names: Sequence[str]) -> tuple[str, str, Any]:
    left, equals, right = text.partition("=")
    name, dot, key = left.partition(".")
    if len(names) == 1 and (not dot or name != names[0]):
        name, key = names[0], left
    if not equals or not key:
        form = "key=value" if len(names) == 1 else "NAME.key=value"
        raise RewardLoadError(f"--arg {text!r}: expected {form}, with NAME one of {', '.join(names)}")
    if name not in names:
        raise RewardLoadError(
            f"--arg {text!r}: expected one of {', '.join(names)} before the dot{nearest(name, names)}"
        )
    try:
        return name, key, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={right}"]))["value"]  # type: ignore
    except Exception as error:
        raise RewardLoadError(f"--arg {text!r}: expected a YAML value: {error}") from error
