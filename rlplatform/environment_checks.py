"""What is checked of a run's environments before a worker starts: names, settings, and that all rows can be played."""

from __future__ import annotations

from collections.abc import Sequence

from rlplatform.config import ConfigError, EnvironmentConfig
from rlplatform.environments.base import load_environment
from rlplatform.environments.contract import EnvironmentLoadError
from rlplatform.types import Prompt


def check_environment(environment: EnvironmentConfig | None, prompts: Sequence[Prompt]) -> None:
    """Load every environment that the rows will be played with.

    Raises:
        ConfigError: one cannot be found or does not take its settings, a row names none by something else than text or
            null, no row names any, or a prompt is no conversation.
    """
    if not environment:
        return
    named: dict[str, str] = {}  # environment -> the first row that names it
    for prompt in prompts:
        name = prompt.columns.get(environment.column) if environment.column else environment.name
        if name is None or name == "":
            continue
        if not isinstance(name, str):
            raise ConfigError(
                f"prompt {prompt.prompt_id}: column {environment.column}: expected an environment's name or null, got "
                f"{name!r}"
            )
        if not prompt.messages:
            raise ConfigError(f"prompt {prompt.prompt_id}: expected data.chat=true with environment {name!r}")
        named.setdefault(name, prompt.prompt_id)
    if not named:
        raise ConfigError(
            f"environment.column={environment.column!r}: no row names an environment there; the rows have "
            f"{', '.join(sorted({column for prompt in prompts for column in prompt.columns})) or 'no columns'}"
        )
    for name, prompt_id in named.items():
        where = f"prompt {prompt_id}: " if environment.column else "environment.name: "
        try:
            load_environment(name, **environment.args)
        except EnvironmentLoadError as error:
            raise ConfigError(f"{where}{error}") from error
