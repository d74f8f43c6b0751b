"""Model FLOPs utilisation and peak memory of forward and backward, packed rows, random weights.

    .venv/bin/python -m benchmarks.mfu --presets Qwen3-0.6B Qwen3-1.7B Qwen3-8B --checkpointing none selective full

FLOPs are those of the model, not of what is computed again: 6 a parameter and token for every matrix (the embedding is
a lookup, the head a matrix) plus causal attention, 6 * heads * head_dim * (n + 1) a layer and token of a row of n
tokens, forward and backward. They are divided by ``--peak-tflops`` (an H200 gives about 790 in dense bfloat16). The
optimiser's step is left out: it does not depend on the number of tokens. With ``--profile`` the dearest operators are
listed: what bounds the rest.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from benchmarks.common import report
from model.config import PRESETS, Qwen3Config
from model.logprobs import TokenScorer
from model.qwen3 import Qwen3


def training_flops(config: Qwen3Config, lengths: np.ndarray) -> float:
    """Forward and backward of rows of ``lengths`` tokens; the backward pass is twice the forward."""
    matrices = config.num_active_parameters() - (
        0 if config.tie_word_embeddings else config.num_embedding_parameters() / 2
    )
    norms = config.num_hidden_layers * (2 * config.hidden_size + 2 * config.head_dim) + config.hidden_size
    tokens = float(lengths.sum())
    width = config.num_attention_heads * config.head_dim
    # Two products of width x (n + 1) / 2 keys on average, 2 FLOPs each, times three for the backward pass.
    attention = config.num_hidden_layers * float((6 * width * (lengths + 1) * lengths).sum())
    return 6 * (matrices - norms) * tokens + attention


def document_lengths(tokens: int, seed: int = 0) -> np.ndarray:
    """Log-normal document lengths (median about 500) that fill ``tokens`` exactly."""
    rng, lengths = np.random.default_rng(seed), []
    while sum(lengths) < tokens:
        lengths.append(int(np.clip(rng.lognormal(6.2, 1.0), 16, tokens)))
    lengths[-1] -= sum(lengths) - tokens
    return np.array([length for length in lengths if length > 0])


def measure(name: str, config: Qwen3Config, mode: str, options: argparse.Namespace) -> dict[str, float]:
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    lengths = np.concatenate([document_lengths(options.tokens, seed) for seed in range(options.rows)])
    with torch.device(device):
        policy = Qwen3(config, activation_checkpointing=mode).to(torch.bfloat16).init_weights(seed=0)
    if options.compile:
        policy.compile_layers()
    scorer = TokenScorer(policy)
    positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).to(device)
    token_ids = torch.randint(config.vocab_size, (int(lengths.sum()),), device=device)
    cu_seqlens = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(device)
    scored = torch.nonzero(positions)[:, 0]

    def step() -> None:
        logprobs, _ = scorer(token_ids, positions, cu_seqlens, scored, chunk_tokens=2048)[:2]
        (-logprobs.mean()).backward()
        scorer.zero_grad(set_to_none=False)

    for _ in range(2):
        step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    if options.profile:
        with torch.profiler.profile() as profiler:
            step()
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=60))
    seconds = statistics.median(times)
    tflops = training_flops(config, lengths) / seconds / 1e12
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    print(
        f"{name:16}{mode:11}{int(lengths.sum()) / seconds:>11,.0f} tokens/s{tflops:>8.1f} TFLOP/s  "
        f"MFU {tflops / options.peak_tflops:6.1%}  peak {peak:6.1f} GiB"
    )
    return {"seconds": seconds, "tflops": tflops, "mfu": tflops / options.peak_tflops, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"], choices=list(PRESETS))
    parser.add_argument("--checkpointing", nargs="+", default=["selective"], choices=["none", "selective", "full"])
    parser.add_argument("--tokens", type=int, default=4096, help="of one packed sequence")
    parser.add_argument("--rows", type=int, default=4, help="packed sequences a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=790.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="the tiny presets, whatever the device")
    options = parser.parse_args()
    if options.smoke:
        options.presets, options.tokens, options.rows, options.repeats = ["tiny", "tiny-moe"], 128, 1, 1
    elif options.device == "cpu":
        raise SystemExit("benchmarks.mfu: expected a GPU; on a CPU use --smoke, or benchmarks.native_vs_transformers")
    results = {
        f"{name}/{mode}": measure(name, PRESETS[name], mode, options)
        for name in options.presets
        for mode in options.checkpointing
    }
    report("mfu", device=options.device, results=results)


if __name__ == "__main__":
    main()
