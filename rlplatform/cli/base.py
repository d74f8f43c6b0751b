"""What every command shares: exit codes, and errors that speak for themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from rewards.base import RewardLoadError
from rlplatform.config import ConfigError
from rlplatform.roles import RunStopped, StallError

STOPPED, WRONG = 1, 2


def guarded(action: Callable[[], Any]) -> Any:
    """Errors that speak for themselves are printed without a traceback."""
    try:
        return action()
    except (ConfigError, RewardLoadError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG) from error
    except (RunStopped, StallError) as error:
        typer.echo(f"stopped: {error}", err=True)
        raise typer.Exit(STOPPED) from error
