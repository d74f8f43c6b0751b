"""Held-out pair accuracy of reward models: on made-up rules, or on a file of preferences.

    .venv/bin/python -m benchmarks.preference_accuracy                              the rules of tasks/preferences.py
    .venv/bin/python -m benchmarks.preference_accuracy --data FILE --seeds 0 1 2    a file, another split a seed
    .venv/bin/python -m benchmarks.preference_accuracy --data FILE --model FOLDER   from a pretrained model

Without ``--model`` the backbone is a tiny Qwen3 with random weights and a tokenizer trained on the training pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import report
from model.init import init_model
from model.tokenizer import train_bpe
from pretrain.preference import run_preference
from rlplatform.config import DataConfig, LearnerConfig, ModelConfig, OptimizerConfig, PreferenceConfig
from rlplatform.datafiles import read_rows
from rlplatform.launch import ray_session
from rlplatform.preference_report import table
from rlplatform.tasks.preferences import pairs

RULES = ("shorter", "polite", "quality")


def texts_of(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Every string of the rows, whatever their form."""
    for row in rows:
        stack: list[Any] = list(row.values())
        while stack:
            value = stack.pop()
            if isinstance(value, str):
                yield value
            else:
                stack.extend(value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ())


def tiny(folder: Path, rows: Iterable[Mapping[str, Any]], vocab_size: int, shape: Mapping[str, Any]) -> Path:
    train_bpe(texts_of(rows), vocab_size, folder / "tokenizer")
    init_model(folder / "policy", folder / "tokenizer", shape, vocab_size)
    return folder / "policy"


def measure_rule(rule: Any, seed: int, folder: Path, *, smoke: bool) -> dict[str, Any]:
    splits = pairs(seed, rule=rule, num_train=2048, num_test=512)
    shape = {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 256}
    config = PreferenceConfig(
        seed=seed,
        run_dir=str(folder / "run"),
        num_steps=2 if smoke else 120,
        tokens_per_step=4096,
        max_tokens=160,
        centring=0.01,
        model=ModelConfig(path=str(tiny(folder, splits["train"], 384, shape))),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=10, decay="cosine"),
        learner=LearnerConfig(zero_stage=0),
    )
    summary = run_preference(config, rows=splits["train"], heldout_rows=splits["test"]).summary
    return {"rule": rule, "seed": seed, **summary}


def measure_file(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    data = DataConfig(path=arguments.data, prompt=arguments.prompt)
    model = arguments.model
    if not model:
        model = str(tiny(folder, (row for _, row in read_rows(data)), 2048, {}))
    config = PreferenceConfig(
        seed=seed,
        run_dir=str(folder / "run"),
        num_steps=arguments.steps,
        tokens_per_step=max(arguments.tokens_per_step, 2 * arguments.max_tokens),
        max_tokens=arguments.max_tokens,
        heldout_share=0.2,
        evaluate_every=arguments.evaluate_every,
        model=ModelConfig(path=model),
        data=data,
        optimizer=OptimizerConfig(lr=arguments.lr, warmup_steps=max(arguments.steps // 10, 1), decay="cosine"),
        learner=LearnerConfig(zero_stage=0, max_tokens_per_micro_batch=2 * arguments.max_tokens),
    )
    result = run_preference(config, progress=lambda row: print(json.dumps(row), flush=True))
    return {"data": Path(arguments.data).name, "seed": seed, **result.summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="file of preferences; without it the made-up rules")
    parser.add_argument("--prompt", default="conversations", help="its prompt column")
    parser.add_argument("--model", default="", help="pretrained policy; without it a tiny one with random weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--tokens-per-step", type=int, default=16384)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--evaluate-every", type=int, default=0, help="steps between held-out measurements")
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    arguments = parser.parse_args()
    with ray_session():
        for name in ("file",) if arguments.data else RULES[-1:] if arguments.smoke else RULES:
            for seed in arguments.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    if arguments.data:
                        found = measure_file(arguments, seed, Path(folder))
                    else:
                        found = measure_rule(name, seed, Path(folder), smoke=arguments.smoke)
                heldout = found.pop("heldout")
                for what, value in table(heldout):
                    print(f"  {what:28} {value}")
                del heldout["margin_histogram"], heldout["calibration"]["bins"]
                report("preference_accuracy", **found, heldout=heldout)


if __name__ == "__main__":
    main()
