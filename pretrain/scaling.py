"""The ``scaling_law`` stage: a grid of small runs on Ray Tune, the laws through it, a prediction, a picture.

sizes x data budgets x batch sizes x learning rates ─ run_points ─► losses ─ scaling_fit ─► law.json, scaling.png

Sizes of ``check`` are swept like the others and not fitted: their optimum against what the law says of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.token_store import TokenStore
from pretrain.proxies import SmallRun, TextRows, run_points, size_of_model, train_small
from pretrain.scaling_fit import Optimum, PowerLaw, fit_power_law, optimum
from pretrain.step import plan_steps
from rlplatform.config import ConfigError, ScalingLawConfig
from rlplatform.runs import RunFolder

Cell = tuple[str, int, int]  # size, data budget (tokens), rows of a step


def find_law(config: ScalingLawConfig, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Leaves ``law.json`` (every run, every optimum, the laws, the checks) and ``scaling.png``; returns the summary.

    N is the number of parameters without the embedding, D the tokens a run trained on, B the rows of a step.

    Raises:
        ConfigError: more tokens are asked for than the packed rows hold.
        ProxyError: a small run failed.
    """
    folder = RunFolder(config.run_dir)
    store, heldout = TokenStore(config.tokens), TokenStore(config.heldout)
    if max(config.num_tokens) > store.manifest.num_tokens:
        raise ConfigError(
            f"num_tokens: expected at most the {store.manifest.num_tokens:,} tokens of {config.tokens}, got "
            f"{max(config.num_tokens):,}"
        )
    vocab_size = 1 + max(int(in_memory(one, np.arange(len(one))).token_ids.max()) for one in (store, heldout))
    sizes = {**config.sizes, **config.check}
    seeds = range(config.seed, config.seed + config.num_seeds)
    cells = [
        ((size, tokens, batch), lr, seed)
        for size, tokens, batch, lr, seed in product(sizes, config.num_tokens, config.rows_per_step, config.lrs, seeds)
    ]
    found = run_points(
        one_run,
        [
            {"architecture": sizes[size], "num_tokens": tokens, "rows_per_step": batch, "lr": lr, "seed": seed}
            for (size, tokens, batch), lr, seed in cells
        ],
        folder.path,
        shared={
            "tokens": str(Path(config.tokens).resolve()),
            "heldout": str(Path(config.heldout).resolve()),
            "vocab_size": vocab_size,
        },
        key=json.dumps([asdict(store.manifest), asdict(heldout.manifest)], default=str),
        num_parallel=config.num_parallel,
        progress=progress,
    )
    parameters = {size: size_of_model(architecture, vocab_size) for size, architecture in sizes.items()}
    curves: dict[Cell, dict[float, float]] = {}  # mean over seeds; nan where one diverged
    for (cell, lr, _), result in zip(cells, found, strict=True):
        curve = curves.setdefault(cell, {})
        curve[lr] = curve.get(lr, 0.0) + result["loss"] / config.num_seeds
    optima = {cell: optimum(*zip(*sorted(curve.items()), strict=True)) for cell, curve in curves.items()}
    fitted = {cell: best for cell, best in optima.items() if cell[0] in config.sizes}
    batches = best_batches(fitted)
    laws = laws_of(fitted, batches, parameters)
    checks = checked({cell: best for cell, best in optima.items() if cell[0] in config.check}, laws["lr"], parameters)
    predicted = prediction(config, laws, vocab_size)
    report = {
        "runs": [
            {"size": size, "num_tokens": tokens, "rows_per_step": batch, "lr": lr, "seed": seed, **result}
            for ((size, tokens, batch), lr, seed), result in zip(cells, found, strict=True)
        ],
        "parameters": parameters,
        "optima": [
            {"size": size, "num_tokens": tokens, "rows_per_step": batch, **asdict(best)}
            for (size, tokens, batch), best in optima.items()
        ],
        "best_batches": [
            {"size": size, "num_tokens": tokens, **asdict(best)} for (size, tokens), best in batches.items()
        ],
        "laws": {name: asdict(law) for name, law in laws.items()},
        "checks": checks,
        "predicted": predicted,
    }
    folder.save_json("law.json", report)
    draw(curves, optima, laws, parameters, config.check, folder.path / "scaling.png")
    return {
        "runs": len(cells),
        "at_edge": {
            "lr": sum(best.at_edge for best in optima.values()),
            "rows_per_step": sum(best.at_edge for best in batches.values()),
        },
        "exponents": {name: {k: round(v, 4) for k, v in law.exponents.items()} for name, law in laws.items()},
        "spread": {name: round(law.spread, 4) for name, law in laws.items()},
        "checks": checks,
        "predicted": predicted,
    }


def in_memory(store: TokenStore, rows: np.ndarray) -> TextRows:
    batch = store.read(rows)
    return TextRows(batch.token_ids, batch.cu_pieces, batch.cu_rows)


def one_run(
    tokens: str,
    heldout: str,
    vocab_size: int,
    architecture: Mapping[str, Any],
    num_tokens: int,
    rows_per_step: int,
    lr: float,
    seed: int,
) -> dict[str, float]:
    """One small run; its held-out loss (nan where it diverged), parameters and tokens."""
    store, measured = TokenStore(tokens), TokenStore(heldout)
    order = next(plan_steps(store.lengths, seed=seed, tokens_per_step=max(num_tokens, store.manifest.row_tokens)))
    run = SmallRun(architecture, vocab_size, rows_per_step, lr, seed)
    trained = train_small(run, in_memory(store, order), {"heldout": in_memory(measured, np.arange(len(measured)))})
    return {"loss": trained.heldout["heldout"], "parameters": trained.parameters, "tokens": trained.tokens}


def best_batches(optima: Mapping[Cell, Optimum]) -> dict[tuple[str, int], Optimum]:
    """Of every size and budget the batch with the lowest loss at its best rate; {} where fewer than three ran."""
    cells: dict[tuple[str, int], dict[int, float]] = {}
    for (size, tokens, batch), one in optima.items():
        cells.setdefault((size, tokens), {})[batch] = one.loss
    if min(len(losses) for losses in cells.values()) < 3:
        return {}
    return {cell: optimum(*zip(*sorted(losses.items()), strict=True)) for cell, losses in cells.items()}


def at_best_batch(optima: Mapping[Cell, Optimum]) -> dict[tuple[str, int], Optimum]:
    """Of every size and budget the optimum at the batch that ended lowest."""
    best: dict[tuple[str, int], Optimum] = {}
    for (size, tokens, _), one in optima.items():
        best[size, tokens] = min(best.get((size, tokens), one), one, key=lambda each: each.loss)
    return best


def laws_of(
    optima: Mapping[Cell, Optimum], batches: Mapping[tuple[str, int], Optimum], parameters: Mapping[str, int]
) -> dict[str, PowerLaw]:
    """``lr`` over (N, D) at each size's and budget's best batch; ``rows_per_step`` where there were several."""
    best = at_best_batch(optima)
    variables = {"N": [parameters[size] for size, _ in best], "D": [tokens for _, tokens in best]}
    laws = {"lr": fit_power_law(variables, [one.value for one in best.values()])}
    if batches:
        laws["rows_per_step"] = fit_power_law(variables, [batches[cell].value for cell in best])
    return laws


def checked(
    optima: Mapping[Cell, Optimum], law: PowerLaw, parameters: Mapping[str, int]
) -> list[dict[str, str | float | bool]]:
    """Of every size and budget that was swept and not fitted: its optimum, the law's, and the law's over its own."""
    found: list[dict[str, str | float | bool]] = []
    for (size, tokens), own in at_best_batch(optima).items():
        said = law(N=parameters[size], D=tokens)
        found.append(
            {
                "size": size,
                "N": parameters[size],
                "D": tokens,
                "lr": own.value,
                "at_edge": own.at_edge,
                "predicted": said,
                "ratio": said / own.value,
            }
        )
    return found


def prediction(config: ScalingLawConfig, laws: Mapping[str, PowerLaw], vocab_size: int) -> dict[str, float]:
    """What the laws say of the target; {} without one."""
    if not config.target:
        return {}
    size = size_of_model(config.target, vocab_size)
    tokens = config.target_tokens or max(config.num_tokens)
    return {"N": size, "D": tokens, **{name: law(N=size, D=tokens) for name, law in laws.items()}}


def draw(
    curves: Mapping[Cell, Mapping[float, float]],
    optima: Mapping[Cell, Optimum],
    laws: Mapping[str, PowerLaw],
    parameters: Mapping[str, int],
    check: Container[str],
    path: Path,
) -> None:
    """Losses over the learning rate with the optima, the law through the optima, and its residuals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for cell, curve in curves.items():
        size, tokens, batch = cell
        label = (
            f"{size} ({parameters[size]:,}{', not fitted' if size in check else ''}), {tokens:,} tokens, batch {batch}"
        )
        (line,) = left.plot(*zip(*sorted(curve.items()), strict=True), marker=".", label=label)
        left.plot(optima[cell].value, optima[cell].loss, marker="*", markersize=11, color=line.get_color())
        marker = "D" if size in check else "*"
        middle.plot(parameters[size], optima[cell].value, marker=marker, markersize=11, color=line.get_color())
    left.set(xscale="log", xlabel="learning rate", ylabel="held-out loss, nats", title="runs, and the optimum of each")
    left.legend(fontsize=6)
    law = laws["lr"]
    sizes = np.geomspace(min(parameters.values()), 2 * max(parameters.values()), 50)
    for tokens in sorted({cell[1] for cell in curves}):
        middle.plot(sizes, [law(N=size, D=tokens) for size in sizes], linestyle="--", label=f"law, {tokens:,} tokens")
    middle.set(xscale="log", yscale="log", xlabel="parameters", ylabel="learning rate", title="the law")
    middle.legend(fontsize=7)
    right.axhline(0.0, color="grey")
    right.plot(range(len(law.residuals)), law.residuals, "o")
    right.set(xlabel="fitted point", ylabel="log(optimum / law)", title=f"residuals; spread x{law.spread:.2f}")
    figure.savefig(path, dpi=120)
