"""The command line. Exit codes: 0 done; 1 the run stopped or a check failed; 2 the command or its config is wrong."""

from __future__ import annotations

import logging
import os

from rlplatform.cli.commands import app
from rlplatform.cli.reward import reward_app
from rlplatform.cli.views import model_app, tokens_app
from rlplatform.environment import prepare

app.add_typer(reward_app, name="reward")
app.add_typer(tokens_app, name="tokens")
app.add_typer(model_app, name="model")


def main() -> None:
    prepare()
    logging.basicConfig(
        level=os.environ.get("RLPLATFORM_LOG_LEVEL", "WARNING"), format="%(levelname)s %(name)s: %(message)s"
    )
    app(prog_name="rlplatform")
