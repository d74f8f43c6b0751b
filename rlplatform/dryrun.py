"""``run --dry-run``: what would run, and what it would ask for. Starts nothing."""

from __future__ import annotations

import os

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from rlplatform.config import RecipeConfig, RunConfig
from rlplatform.configfile import derived, difference_to_defaults, placement, stages, to_yaml
from rlplatform.corpus_runs import check_settings
from rlplatform.plan import Choice, check_choice, plan_recipe
from rlplatform.servable import check_now


def show(config: RunConfig, *, start: str = "", only: str = "") -> None:
    """Print the resolved config, the batch arithmetic and the placement, stage by stage for a recipe; then its plan.

    Raises:
        ConfigError: the engine cannot compute a model that is already there, or ``start`` or ``only`` is no stage.
    """
    console = Console()
    choice = Choice(start, only)
    check_choice(config, choice)
    parts = stages(config) if isinstance(config, RecipeConfig) else {config.name: config}
    for name, part in parts.items():
        check_now(part)
        check_settings(part)
        console.rule(f"{name} ({part.kind})")
        console.print(Syntax(to_yaml(part), "yaml", background_color="default"))
        changed = difference_to_defaults(part)
        console.print(f"{len(changed)} keys differ from the defaults: {', '.join(changed)}\n")
        if arithmetic := derived(part):
            table = Table("quantity", "value", title="derived")
            for row in arithmetic:
                table.add_row(*row)
            console.print(table)
        if wanted := placement(part):
            table = Table("actor", "count", "CPUs each", "GPUs each", title="placement")
            for actor, count, cpus, gpus in wanted:
                table.add_row(actor, str(count), f"{cpus:g}", f"{gpus:g}")
            total = sum(count * cpus for _, count, cpus, _ in wanted)
            table.caption = f"{total:g} CPUs in all; this machine has {os.cpu_count()}"
            console.print(table)
    if isinstance(config, RecipeConfig):
        table = Table("stage", "kind", "takes from", "will", "because", title=f"plan of {config.name}")
        for stage in plan_recipe(config, choice).values():
            table.add_row(stage.name, stage.kind, ", ".join(stage.inputs) or "-", stage.state, stage.reason)
        console.print(table)
