"""Do the functions that a config names by file reach the cluster with the submitted folder?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewards.base import split_convention
from rlplatform.config import AnnotateConfig, ConfigError, DatasetConfig, EnvironmentConfig, RecipeConfig, RewardConfig
from rlplatform.configfile import stages


def function_files(config: Any, where: str = "") -> Iterator[tuple[str, Path]]:
    """(key of the config, file) of every function and environment that is named by a file, stages included."""
    if isinstance(config, RecipeConfig):
        for name, stage in stages(config).items():
            yield from function_files(stage, f"stages.{name}.")
        return
    named = {}
    reward = getattr(config, "reward", None)
    if isinstance(reward, RewardConfig):
        named = {f"{where}reward.functions.{name}": part.function for name, part in reward.parts.items()}
    environment = getattr(config, "environment", None)
    if isinstance(environment, EnvironmentConfig):
        named[f"{where}environment.name"] = environment.name
    if isinstance(config, DatasetConfig):
        named[f"{where}function"] = config.function
    if isinstance(config, AnnotateConfig):
        labellers = {name: str((settings or {}).get("use", name)) for name, settings in config.labellers.items()}
        named |= {f"{where}labellers.{name}": used for name, used in labellers.items()}
    for key, function in named.items():
        source = split_convention(function)[1].rpartition(":")[0]
        if source.endswith(".py"):
            yield key, Path(source).expanduser()


def check_function_files(config: Any, files: Mapping[str, Path], working_dir: Path) -> list[tuple[str, Path]]:
    """Those that are named by an absolute path, which the cluster must have under the same name.

    Raises:
        ConfigError: a relative one is not among the ``files`` that are shipped: it lies elsewhere, or is ignored.
    """
    absolute = []
    shipped = {path.resolve() for path in files.values()}
    for key, source in function_files(config):
        if source.is_absolute():
            absolute.append((key, source))
            continue
        path = (working_dir / source).resolve()
        if path in shipped:
            continue
        if not path.is_file():
            here = f"; {source.resolve()} is there, and is not shipped" if source.is_file() else ""
            reason = f"there is no file {path}{here}"
        elif path.is_relative_to(working_dir):
            reason = "an ignore file or --exclude leaves it out"
        else:
            reason = f"{path} lies outside --working-dir {working_dir}"
        raise ConfigError(
            f"{key}: {source} would not reach the cluster: {reason}. A job runs in a copy of --working-dir, and paths "
            "are relative to it: move the file there, or name the folder that holds it with --working-dir"
        )
    return absolute


def check_absolute(absolute: list[tuple[str, Path]], *, shares_folder: bool, working_dir: Path) -> None:
    """Raises ConfigError when the head does not share this machine's folders, so absolute paths lead nowhere there."""
    if absolute and not shares_folder:
        key, source = absolute[0]
        try:
            hint = f"write it relative to --working-dir: {source.relative_to(working_dir)}"
        except ValueError:
            hint = f"copy it into {working_dir}, which is shipped, and name it relative to that"
        raise ConfigError(f"{key}: {source} is a path of this machine, and the head does not share its folders; {hint}")
