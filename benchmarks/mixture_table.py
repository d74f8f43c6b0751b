"""Instance-level mixture against domain-level and uniform, at equal tokens, over three seeds.

    .venv/bin/python -m benchmarks.mixture_table

Three domains, half of whose documents have their words in disorder; held out are documents in order. No label says it:
a small model, trained on three hundred curated documents, labels every document with bits per byte. The
domain arm knows the domain, the instance arm the bits per byte too; each is searched with as many proxies (kind
mixture_search) on the held-out sets, then all are trained over seeds and measured on test sets that decided nothing.
Whatever comes out is the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, report
from benchmarks.corpora import DOMAINS

ARMS = ("uniform", "domain", "instance")


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    def documents(*names: str) -> dict[str, Any]:
        return {"kind": "documents", "sources": {name: {"path": [f"stage:raw/{name}.jsonl"]} for name in names}}

    def tokens(documents: str) -> dict[str, Any]:
        return {"kind": "tokens", "documents": f"stage:{documents}", "tokenizer": "stage:init", "row_tokens": 128}

    measured = [f"{split}_{name}" for split in ("heldout", "test") for name in DOMAINS]
    return {
        "kind": "recipe",
        "name": "mixture_table",
        "seed": args.seed,
        "run_dir": str(args.out),
        "stages": {
            "raw": {"kind": "dataset", "function": "benchmarks.corpora:half_spoilt"},
            "documents": documents(*DOMAINS),
            "curated": documents("curated"),
            **{f"{name}_documents": documents(name) for name in measured},
            "init": {
                "kind": "init_model",
                "data": {"path": "stage:raw", "split": "curated", "prompt": "text", "chat": False},
                "vocab_size": 768,
            },
            "curated_tokens": tokens("curated"),
            "judge": {
                "kind": "pretrain",
                "num_tokens": 300_000,
                "tokens_per_step": 2048,
                "warmup_tokens": 20_000,
                "model": {"path": "stage:init"},
                "data": {"tokens": "stage:curated_tokens"},
                "optimizer": {"lr": 3.0e-3, "weight_decay": 0.1, "decay": "cosine"},
                "learner": {"num_workers": 2, "cpus_per_worker": 0.5, "zero_stage": 0},
            },
            "labelled": {
                "kind": "annotate",
                "documents": "stage:documents",
                "labellers": {"perplexity": {"model": "stage:judge"}},
            },
            "tokens": tokens("labelled"),
            **{name: tokens(f"{name}_documents") for name in measured},
            "search": {
                "kind": "mixture_search",
                "documents": "stage:labelled",
                "tokens": "stage:tokens",
                "heldout": {name: f"stage:heldout_{name}" for name in DOMAINS},
                "test": {name: f"stage:test_{name}" for name in DOMAINS},
                "numbers": ["bits_per_byte"],
                "num_proxies": args.num_proxies,
                "num_seeds": args.num_seeds,
                "proxy_tokens": args.proxy_tokens,
                "architecture": {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 192},
            },
        },
    }


def main() -> None:
    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of corpus and search")
    parser.add_argument("--num-proxies", type=int, default=16)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--proxy-tokens", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mixture-table")
    args = parser.parse_args()
    run_config(load_values(recipe(args)))
    summary = json.loads((args.out / "search" / "done.json").read_text())["summary"]
    losses = json.loads((args.out / "search" / "search.json").read_text())["heldout_loss"]
    rows = {
        arm: {name: [round(one[name], 4) for one in losses[arm]] for name in DOMAINS}
        | {"mean": [round(float(np.mean(list(one.values()))), 4) for one in losses[arm]]}
        for arm in ARMS
    }
    report(
        "mixture_table",
        test_loss=rows,
        rank_correlation=summary["rank_correlation"],
        ratio=float(np.mean(rows["instance"]["mean"]) / np.mean(rows["uniform"]["mean"])),
    )


if __name__ == "__main__":
    main()
