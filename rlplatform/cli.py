"""The command line. Exit codes: 0 done; 1 the run stopped or a check failed; 2 the command or its config is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rewards.base import RewardLoadError
from rlplatform.config import ConfigError
from rlplatform.environment import prepare
from rlplatform.roles import RunStopped, StallError

app = typer.Typer(
    help="Train reasoning models with reinforcement learning on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reward_app = typer.Typer(help="Work with reward functions.", no_args_is_help=True)
app.add_typer(reward_app, name="reward")
tokens_app = typer.Typer(help="Look at conversations as tokens and loss masks.", no_args_is_help=True)
app.add_typer(tokens_app, name="tokens")
model_app = typer.Typer(help="Look at a model without loading it.", no_args_is_help=True)
app.add_typer(model_app, name="model")

STOPPED, WRONG = 1, 2


def _guarded(action: Callable[[], Any]) -> Any:
    """Errors that speak for themselves are printed without a traceback."""
    try:
        return action()
    except (ConfigError, RewardLoadError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG) from error
    except (RunStopped, StallError) as error:
        typer.echo(f"stopped: {error}", err=True)
        raise typer.Exit(STOPPED) from error


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/recipe/demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …, e.g. optimizer.lr=1e-5")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print resolved config, batch arithmetic and placement; start nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove the run folder and start over.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same path, two steps a stage, few problems.")] = False,
    start: Annotated[str, typer.Option("--from", help="Of a recipe: this stage and those behind it start over.")] = "",
    only: Annotated[str, typer.Option("--only", help="Of a recipe: run this stage alone.")] = "",
) -> None:
    """Run a config. The same command again continues an interrupted run."""
    from rlplatform.configfile import load

    loaded = _guarded(lambda: load(config, overrides or []))
    if smoke:
        from rlplatform.smoke import shorten

        loaded = _guarded(lambda: shorten(loaded))
    if dry_run:
        from rlplatform.dryrun import show

        _guarded(lambda: show(loaded, start=start, only=only))
        return
    from rlplatform.pipeline import run_config

    _guarded(lambda: run_config(loaded, fresh=fresh, start=start, only=only))


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or hub id.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value … of kind eval, or benchmarks")] = None,
    data: Annotated[str, typer.Option(help="JSONL, parquet, folder or hub id with held-out problems.")] = "",
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Instead of --data: of the table in docs/evaluation.md, or `all`.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="With --benchmark: thinking budgets to sweep, e.g. 8,16,32.")] = "",
    data_dir: Annotated[str, typer.Option(help="With --benchmark: a folder with the sets; else the hub.")] = "",
    reward: Annotated[list[str] | None, typer.Option(help="Reward function(s); the first is the accuracy.")] = None,
    num_samples: Annotated[
        int | None, typer.Option("-n", "--num-samples", help="Samples a problem; default 4, or the table's.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for results.json and the rollouts.")] = "runs/eval",
) -> None:
    """Pass@1 and pass@k of a model on problems of yours, or on benchmarks in both modes and at thinking budgets."""
    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config

    def check() -> None:
        if bool(data) == bool(benchmark):
            raise ConfigError("eval: expected --data PATH or --benchmark NAME, one of the two")
        if benchmark and reward:
            raise ConfigError("eval: --reward goes with --data; a benchmark brings its own")
        if not benchmark and (budgets or data_dir):
            raise ConfigError("eval: --budgets and --data-dir go with --benchmark")
        if not all(one.strip().isdecimal() for one in budgets.split(",") if budgets):
            raise ConfigError(f"eval: --budgets: expected numbers of tokens, e.g. 8,16,32, got {budgets!r}")

    _guarded(check)
    values: dict[str, Any] = {
        "kind": "benchmarks",
        "run_dir": out,
        "benchmarks": [] if benchmark == ["all"] else benchmark,
        "budgets": [int(one) for one in budgets.split(",") if one],
        "num_samples": num_samples or 0,
        "data_dir": data_dir,
        "model": {"path": model},
    }
    if benchmark:
        _guarded(lambda: run_config(load_values(values, overrides or []), fresh=True))
        return
    values = {
        "kind": "eval",
        "run_dir": out,
        "num_samples": num_samples or 4,
        "model": {"path": model},
        "data": {"path": data},
        "reward": {"functions": dict.fromkeys(reward or ["math"], 1.0)},
    }
    _guarded(lambda: run_config(load_values(values, overrides or []), fresh=True))


@app.command()
def inspect(
    run_dir: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo/rl.")],
    step: Annotated[int | None, typer.Option(help="Only this step.")] = None,
    status: Annotated[str | None, typer.Option(help="Only verdicts of this status, e.g. timeout.")] = None,
    sort: Annotated[str, typer.Option(help="best, worst, longest, or order (as sampled).")] = "best",
    rows: Annotated[int, typer.Option("-n", "--rows", help="How many rollouts to show.")] = 5,
    held_out: Annotated[bool, typer.Option("--held-out", help="The evaluation's rollouts.")] = False,
) -> None:
    """Look at rollouts: best, worst, by step, by status, and how the run went."""
    from rlplatform.inspection import show

    _guarded(lambda: show(run_dir, step=step, status=status, sort=sort, rows=rows, held_out=held_out))


@app.command()
def doctor() -> None:
    """Check this machine: python, torch, vLLM, DeepSpeed's op, Ray, sandbox, shared memory, disk."""
    from rlplatform.doctor import render, run_checks

    checks = run_checks()
    render(checks)
    raise typer.Exit(0 if all(check.ok for check in checks) else STOPPED)


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="A YAML file inside --working-dir.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    address: Annotated[str, typer.Option(help="The head's dashboard address.")] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="The folder to ship.")] = Path(),
    python: Annotated[str, typer.Option(help="Interpreter on the cluster; empty = this one, if the head has it.")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern to leave out; may be given again.")] = None,
    max_mib: Annotated[float, typer.Option(help="Refuse to ship more than this.")] = 100.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the job is accepted.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps a stage.")] = False,
) -> None:
    """Run a config as a Ray job: ships the folder, streams the logs, returns the job's exit code."""
    from rlplatform.submit import submit as submit_job

    code = _guarded(
        lambda: submit_job(
            config,
            overrides or [],
            address,
            working_dir=working_dir,
            entrypoint_args=["--smoke"] if smoke else [],
            excludes=exclude or [],
            max_mib=max_mib,
            no_wait=no_wait,
            python=python,
        )
    )
    raise typer.Exit(code)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or hub id.")],
    budget: Annotated[int | None, typer.Option(min=0, help="Tokens of thought, then it must answer.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer, thought included.")] = 1024,
    max_model_len: Annotated[int, typer.Option(help="Of the whole conversation, in tokens.")] = 4096,
    temperature: Annotated[
        float | None, typer.Option(help="Default: the Qwen3 report's sampling for the mode in force.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Talk to a model in the terminal: /think, /no_think, a thinking budget. `:help` lists commands."""
    from rlplatform.chat import talk_to

    _guarded(
        lambda: talk_to(
            model,
            budget=budget,
            max_new_tokens=max_new_tokens,
            max_model_len=max_model_len,
            temperature=temperature,
            dtype=dtype,
        )
    )


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or hub id.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8000,
    max_model_len: Annotated[int, typer.Option(help="Tokens, prompt and answer together.")] = 4096,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    name: Annotated[str, typer.Option(help="What clients call the model; default: the folder's name.")] = "",
) -> None:
    """An OpenAI-compatible endpoint with this model's template, thoughts apart, and a thinking budget a request."""
    from rlplatform.endpoint import serve as serve_model

    _guarded(lambda: serve_model(model, host=host, port=port, max_model_len=max_model_len, dtype=dtype, name=name))


@app.command()
def version() -> None:
    """Print the version."""
    import rlplatform

    typer.echo(rlplatform.__version__)


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

    _guarded(lambda: list_rewards(as_json=as_json))


@reward_app.command("show")
def reward_show(
    function: Annotated[str, typer.Argument(help="A name (math, format), package.module:fn, or path/file.py:fn.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a reward function says, its columns, settings and source, and examples graded now."""
    from rlplatform.reward_show import show_reward

    _guarded(lambda: show_reward(function, as_json=as_json))


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

    _guarded(serve)


@tokens_app.command("render")
def tokens_render(
    tokenizer: Annotated[str, typer.Option(help="A folder with tokenizer.json, or a hub id.")],
    data: Annotated[Path, typer.Option(help="JSONL rows with `messages` (and tools, kwargs, …), or with `text`.")],
    out: Annotated[Path, typer.Option(help="Where the rows go, with text, token_ids and loss_mask.")],
    training: Annotated[
        bool, typer.Option("--training", help="The training rendering: every turn as produced, exact masks.")
    ] = False,
) -> None:
    """Render and encode the conversations of a file."""
    from rlplatform.tokens import render_file

    _guarded(lambda: render_file(tokenizer, data, out, training=training))


@tokens_app.command("show")
def tokens_show(
    file: Annotated[Path, typer.Argument(help="Conversations (JSONL, JSON, parquet), `tokens render`'s, or rollouts.")],
    tokenizer: Annotated[
        str, typer.Option(help="A folder or hub id; else what lies beside the file; else Qwen3's from the hub.")
    ] = "",
    stock: Annotated[
        bool, typer.Option("--stock", help="As the tokenizer's own template writes it, not as it is trained.")
    ] = False,
    line: Annotated[int | None, typer.Option(min=1, help="The first row to show, counted from 1.")] = None,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows to show.")] = 1,
) -> None:
    """Print the tokens of a conversation, coloured by role and loss mask."""
    from rlplatform.tokens_show import show_file

    _guarded(lambda: show_file(file, tokenizer=tokenizer, stock=stock, line=line, rows=rows))


@model_app.command("show")
def model_show(
    preset_or_path: Annotated[str, typer.Argument(help="A preset, e.g. Qwen3-0.6B, a model folder or a hub id.")],
    ranks: Annotated[list[int] | None, typer.Option(help="Training ranks; may be given again.")] = None,
) -> None:
    """Parameters, shapes, and memory by dtype and ZeRO stage."""
    from rlplatform.model_show import show

    _guarded(lambda: show(preset_or_path, ranks=ranks or (1, 8, 64)))


def main() -> None:
    prepare()
    logging.basicConfig(
        level=os.environ.get("RLPLATFORM_LOG_LEVEL", "WARNING"), format="%(levelname)s %(name)s: %(message)s"
    )
    app(prog_name="rlplatform")


if __name__ == "__main__":
    main()
