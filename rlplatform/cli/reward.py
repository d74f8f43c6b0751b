"""`rlplatform reward ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlplatform.cli.base import guarded

reward_app = typer.Typer(help="Work with reward functions.", no_args_is_help=True)

_Functions = Annotated[
    list[str] | None,
    typer.Argument(help="Names (math, format), package.module:fn or path/file.py:fn; verl:FILE:fn for verl's."),
]
_Config = Annotated[Path | None, typer.Option("--config", help="A config instead of names: its composed reward.")]
_Stage = Annotated[str, typer.Option(help="Of a recipe with several rewards.")]
_Args = Annotated[
    list[str] | None, typer.Option("--arg", help="A setting, key=value (YAML); NAME.key=value with several functions.")
]
_Timeout = Annotated[float | None, typer.Option(help="Seconds a row may take; by default 10, or as configured.")]


@reward_app.command("list")
def reward_list(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """The built-in reward functions and those of installed packages."""
    from rlplatform.reward_show import list_rewards

    guarded(lambda: list_rewards(as_json=as_json))


@reward_app.command("show")
def reward_show(
    function: Annotated[str, typer.Argument(help="A name (math, format), package.module:fn, or path/file.py:fn.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a reward function says, its columns, settings and source, and examples graded now."""
    from rlplatform.reward_show import show_reward

    guarded(lambda: show_reward(function, as_json=as_json))


@reward_app.command("test")
def reward_test(
    data: Annotated[Path, typer.Option(help="JSONL rows with `completion` and any columns, e.g. prompt, answer.")],
    functions: _Functions = None,
    out: Annotated[Path | None, typer.Option(help="Where the verdicts go, one JSON row each.")] = None,
    config: _Config = None,
    stage: _Stage = "",
    arg: _Args = None,
    timeout: _Timeout = None,
    rows: Annotated[int, typer.Option(help="Only the first N rows; 0 = all.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 where a row has no ok verdict.")] = False,
) -> None:
    """Grade completions in a file: no model, no cluster. Exit code 1 where column `expect` says something else."""
    from rlplatform.reward_test import run_reward_test

    code = run_reward_test(
        functions or [],
        data,
        out,
        config=config,
        stage=stage,
        args=arg or [],
        timeout_s=timeout,
        limit=rows,
        strict=strict,
    )
    raise typer.Exit(code)


@reward_app.command("serve")
def reward_serve(
    functions: _Functions = None,
    config: _Config = None,
    stage: _Stage = "",
    arg: _Args = None,
    timeout: _Timeout = None,
    port: Annotated[int, typer.Option(help="Of the HTTP server.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback only where you say so.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the token that clients send; without, one is made and printed once.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that take requests.")] = 1,
    processes: Annotated[int | None, typer.Option(min=1, help="Rows graded at a time, in each replica.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows that may wait at a replica; beyond, 429.")] = 4096,
    max_body_mib: Annotated[float, typer.Option(min=0.001, help="Largest request; beyond, 413.")] = 32.0,
) -> None:
    """Serve rewards over HTTP, for other trainers and machines: POST /score, GET /health, GET /version."""
    from rlplatform.reward_choice import choose
    from rlplatform.serving import Options, serve_rewards

    def serve() -> None:
        choice = choose(functions or [], config, stage, arg or [], timeout)
        options = Options(
            host=host,
            port=port,
            token_file=token_file,
            replicas=replicas,
            processes=processes or choice.num_processes,
            max_rows=max_rows,
            max_body_mib=max_body_mib,
        )
        serve_rewards(choice, options)

    guarded(serve)
