"""`rlplatform tokens ...` and `rlplatform model ...`: looking at conversations and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlplatform.cli.base import guarded

tokens_app = typer.Typer(help="Look at conversations as tokens and loss masks.", no_args_is_help=True)
model_app = typer.Typer(help="Look at a model without loading it.", no_args_is_help=True)


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

    guarded(lambda: render_file(tokenizer, data, out, training=training))


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

    guarded(lambda: show_file(file, tokenizer=tokenizer, stock=stock, line=line, rows=rows))


@model_app.command("show")
def model_show(
    preset_or_path: Annotated[str, typer.Argument(help="A preset, e.g. Qwen3-0.6B, a model folder or a hub id.")],
    ranks: Annotated[list[int] | None, typer.Option(help="Training ranks; may be given again.")] = None,
) -> None:
    """Parameters, shapes, and memory by dtype and ZeRO stage."""
    from rlplatform.model_show import show

    guarded(lambda: show(preset_or_path, ranks=ranks or (1, 8, 64)))
