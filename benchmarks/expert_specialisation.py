"""Do experts specialise by domain? A tiny mixture of experts, balanced over the whole step or over each micro-batch.

    .venv/bin/python -m benchmarks.expert_specialisation [--seeds 0 1 2]

Same tokens, same start, same coefficient; rows are of one domain and a micro-batch is one row. Measured on held-out:
which experts each domain's tokens go to. Specialisation is the mutual information of domain and expert, mean over
layers, in bits; at most log2(3) = 1.58 with three domains. Qiu et al. 2025 (arXiv 2501.11873) saw it with the balance
over the global batch only; Qwen3 was trained with that (arXiv 2505.09388, section 2).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, report
from benchmarks.corpora import DOMAINS

ARMS = {"global_batch": "balanced over the step", "micro_batch": "balanced over each micro-batch"}
ROW = 128


def recipe(seed: int, folder: Path, *, num_tokens: int, coef: float) -> dict[str, Any]:
    sources = {name: {"path": [f"stage:raw/{name}.jsonl"]} for name in DOMAINS}
    heldout = {name: {"path": [f"stage:raw/heldout_{name}.jsonl"]} for name in DOMAINS}
    arm = {
        "kind": "pretrain",
        "num_tokens": num_tokens,
        "tokens_per_step": 16 * ROW,
        "warmup_tokens": 40_000,
        "model": {"path": "stage:init"},
        "data": {"tokens": "stage:tokens", "heldout": "stage:heldout"},
        "optimizer": {"lr": 3.0e-3, "weight_decay": 0.1, "decay": "cosine"},
    }
    learner = {
        "num_workers": 2,
        "cpus_per_worker": 0.5,
        "zero_stage": 0,
        "max_tokens_per_micro_batch": ROW,
        "router_balance_coef": coef,
    }
    return {
        "kind": "recipe",
        "name": "expert_specialisation",
        "seed": seed,
        "run_dir": str(folder / f"seed{seed}"),
        "stages": {
            "raw": {"kind": "dataset", "function": "benchmarks.corpora:long_domains"},
            "documents": {"kind": "documents", "sources": sources},
            "heldout_documents": {"kind": "documents", "sources": heldout},
            "init": {
                "kind": "init_model",
                "data": {"path": "stage:raw", "split": "stories", "prompt": "text", "chat": False},
                "vocab_size": 768,
                "architecture": {"preset": "tiny-moe"},
            },
            "tokens": {
                "kind": "tokens",
                "documents": "stage:documents",
                "tokenizer": "stage:init",
                "row_tokens": ROW,
            },
            "heldout": {
                "kind": "tokens",
                "documents": "stage:heldout_documents",
                "tokenizer": "stage:init",
                "row_tokens": ROW,
            },
            **{name: {**arm, "learner": {**learner, "router_balance": name}} for name in ARMS},
        },
    }


def expert_shares(model: Path, tokens: Path) -> tuple[np.ndarray, list[str]]:
    """float64 [layers, domains, experts]: of a domain's held-out token-expert pairs, the share of each expert."""
    import torch

    from model.hf import load_qwen3
    from model.moe import RouterRecord
    from pretrain.data.token_store import TokenStore
    from pretrain.step import model_inputs

    policy, store = load_qwen3(str(model)).eval(), TokenStore(tokens)
    names, codes = store.groups("source")
    shape = (policy.config.num_hidden_layers, len(names), policy.config.num_experts)
    counts = np.zeros(shape)
    for row in range(len(store)):
        batch = store.read([row])
        of_row = {int(codes[document]) for document in batch.document}
        if len(of_row) > 1:
            continue  # the end of one domain and the beginning of another
        record = RouterRecord()
        with torch.no_grad():
            policy(*model_inputs(batch.token_ids, batch.cu_pieces, "cpu")[:3], router=record)
        counts[:, of_row.pop()] += torch.stack(record.counts).numpy()
    return counts / counts.sum(axis=2, keepdims=True), list(names)


def mutual_information(shares: np.ndarray) -> float:
    """Bits, of domain and expert with domains equally frequent, mean over layers."""
    mean = shares.mean(axis=1, keepdims=True)
    ratio = np.where(shares > 0, shares / np.where(mean > 0, mean, 1), 1)
    return float((shares * np.log2(ratio)).sum(axis=2).mean())


def draw(found: dict[str, list[dict[str, Any]]], names: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained")
    for row, (arm, label) in enumerate(ARMS.items()):
        for layer, axis in enumerate(axes[row]):
            image = axis.imshow(np.array(found[arm][0]["shares"])[layer], vmin=0, vmax=0.35, aspect="auto")
            axis.set_yticks(range(len(names)), names)
            axis.set_title(f"layer {layer}" if row == 0 else "")
        axes[row][0].set_ylabel(label, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("expert")
    figure.colorbar(image, ax=axes, label="share of the domain's tokens")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-tokens", type=int, default=400_000)
    parser.add_argument("--coef", type=float, default=0.05, help="of a balance loss that is 1 when balanced")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "expert-specialisation")
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    names: list[str] = []
    for seed in args.seeds:
        raw = recipe(seed, args.out, num_tokens=args.num_tokens, coef=args.coef)
        run_config(load_values(raw))
        folder = Path(raw["run_dir"])
        for arm in ARMS:
            shares, names = expert_shares(folder / arm / "model", folder / "heldout")
            last = json.loads((folder / arm / "metrics.jsonl").read_text().splitlines()[-1])
            found[arm].append(
                {
                    "seed": seed,
                    "bits": mutual_information(shares),
                    "heldout_loss": last["heldout/loss"],
                    "balance_loss": last["router/balance_loss"],
                    "shares": shares.round(4).tolist(),
                }
            )
    draw(found, names, ROOT / "docs" / "images" / "expert_specialisation.png")
    rows = {arm: [{k: v for k, v in one.items() if k != "shares"} for one in own] for arm, own in found.items()}
    bits = {arm: float(np.mean([one["bits"] for one in own])) for arm, own in found.items()}
    report("expert_specialisation", rows=rows, bits=bits, ratio=bits["global_batch"] / bits["micro_batch"])


if __name__ == "__main__":
    main()
