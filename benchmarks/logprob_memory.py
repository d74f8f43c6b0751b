"""Peak memory of logprobs and entropy over Qwen3's vocabulary, forward and backward, plain and in chunks.

    .venv/bin/python -m benchmarks.logprob_memory [--tokens 2048] [--hidden 1024] [--vocabulary 151936]

Each variant runs in a process of its own and reports how far its resident memory rose above the inputs and the stored
gradients. The plain formula keeps several [tokens x vocabulary] float32 matrices; the chunked one at most two of
[chunk x vocabulary]. Either has one more gradient of the weight in flight.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any


def measure(variant: str, tokens: int, hidden_size: int, vocabulary: int, chunk: int, pipe: Any) -> None:
    import torch

    from model.logprobs import token_logprobs_and_entropy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, hidden_size)).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)  # resident before the count begins
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if variant == "plain":
        log_p = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
        logprobs, entropy = log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    else:
        logprobs, maybe = token_logprobs_and_entropy(hidden, weight, targets, chunk_tokens=chunk, with_entropy=True)
        assert maybe is not None
        entropy = maybe
    (logprobs.mean() + 0.01 * entropy.mean()).backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(((peak - before) / 2**20, seconds, float(logprobs.mean().detach()), float(weight.grad.norm())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1024, 256, 64])
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    options = parser.parse_args()
    if options.smoke:
        options.tokens, options.hidden, options.vocabulary, options.chunks = 256, 64, 8192, [64]
    whole = options.tokens * options.vocabulary * 4 / 2**30
    weight = options.vocabulary * options.hidden * 4 / 2**30
    print(f"{options.tokens} tokens x {options.vocabulary} words in float32: {whole:.2f} GiB a matrix")
    print(f"the gradient of the weight: {weight:.2f} GiB")
    print(f"{'':14}{'peak GiB':>10}{'seconds':>10}{'mean logprob':>14}{'|grad weight|':>15}")
    context = multiprocessing.get_context("spawn")
    for variant, chunk in [("plain", 0), *(("chunked", chunk) for chunk in options.chunks)]:
        ours, theirs = context.Pipe()
        arguments = (variant, options.tokens, options.hidden, options.vocabulary, chunk, theirs)
        process = context.Process(target=measure, args=arguments)
        process.start()
        theirs.close()
        try:
            peak, seconds, mean, norm = ours.recv()
            print(f"{variant} {chunk or '':<6}{peak:>10.2f}{seconds:>10.1f}{mean:>14.5f}{norm:>15.5f}", flush=True)
        except EOFError:
            print(f"{variant} {chunk or '':<6} did not finish (out of memory?)", flush=True)
        process.join()


if __name__ == "__main__":
    main()
