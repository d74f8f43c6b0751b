"""The commands without a group: run and look at runs, talk to models, check the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlplatform.cli.base import STOPPED, guarded
from rlplatform.config import ConfigError

app = typer.Typer(
    help="Train reasoning models with reinforcement learning on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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

    loaded = guarded(lambda: load(config, overrides or []))
    if smoke:
        from rlplatform.smoke import shorten

        loaded = guarded(lambda: shorten(loaded))
    if dry_run:
        from rlplatform.dryrun import show

        guarded(lambda: show(loaded, start=start, only=only))
        return
    from rlplatform.pipeline import run_config

    guarded(lambda: run_config(loaded, fresh=fresh, start=start, only=only))


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

    guarded(check)
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
        guarded(lambda: run_config(load_values(values, overrides or []), fresh=True))
        return
    values = {
        "kind": "eval",
        "run_dir": out,
        "num_samples": num_samples or 4,
        "model": {"path": model},
        "data": {"path": data},
        "reward": {"functions": dict.fromkeys(reward or ["math"], 1.0)},
    }
    guarded(lambda: run_config(load_values(values, overrides or []), fresh=True))


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

    guarded(lambda: show(run_dir, step=step, status=status, sort=sort, rows=rows, held_out=held_out))


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

    code = guarded(
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

    guarded(
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

    guarded(lambda: serve_model(model, host=host, port=port, max_model_len=max_model_len, dtype=dtype, name=name))


@app.command()
def version() -> None:
    """Print the version."""
    import rlplatform

    typer.echo(rlplatform.__version__)
