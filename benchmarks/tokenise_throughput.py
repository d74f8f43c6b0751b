"""Tokenised and packed tokens per second of the kind ``tokens``, divided by the bare tokenizers library.

    .venv/bin/python -m benchmarks.tokenise_throughput

The same documents, the same tokenizer, the same two cores. Bare is one call of ``encode_batch_fast`` over all texts in
memory, which uses every core and keeps nothing. Ours reads parquet shards on Ray Data, tokenises, orders, packs, hashes
and writes rows; starting Ray and its first worker is not counted. Both in turns, the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--packing", default="concatenate", choices=("concatenate", "best_fit"))
    args = parser.parse_args()

    import ray
    from tokenizers import Tokenizer

    from model.tokenizer import train_bpe
    from pretrain.data.document import document, write_shards
    from pretrain.data.shards import Workers
    from pretrain.data.tokens import TokenSettings, write_tokens
    from rlplatform.tasks.corpus import documents

    made = documents(0, num_sums=1, num_stories=args.documents // 2, num_facts=args.documents // 2, num_long=1)
    texts = [row["text"] for name in ("stories", "facts") for row in made[name]]
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_bpe(texts[:2000], 2048, folder / "tokenizer")
        rows = [document("made", str(k), f"made:{k}", text) for k, text in enumerate(texts)]
        write_shards(rows, folder / "documents", per_shard=-(-len(rows) // args.shards))
        write_shards(rows[:200], folder / "few", per_shard=100)
        bare = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        settings = TokenSettings(row_tokens=4096, packing=args.packing)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # of this process: what Ray started keeps one thread a worker
        workers = Workers(num_workers=2)
        write_tokens(folder / "few", folder / "warm", str(folder / "tokenizer"), settings, workers=workers)
        tokens = 0
        for repeat in range(args.repeats):
            began = time.perf_counter()
            manifest = write_tokens(
                folder / "documents", folder / f"out{repeat}", str(folder / "tokenizer"), settings, workers=workers
            )
            seconds["ours"].append(time.perf_counter() - began)
            began = time.perf_counter()
            tokens = sum(map(len, bare.encode_batch_fast(texts, add_special_tokens=False)))
            seconds["bare"].append(time.perf_counter() - began)
            if manifest.num_tokens != tokens + len(texts):
                raise SystemExit(f"not the same tokens: {manifest.num_tokens} and {tokens} + {len(texts)} separators")
        ray.shutdown()
    median = {arm: statistics.median(times) for arm, times in seconds.items()}
    report(
        "tokenise_throughput",
        tokens=tokens,
        packing=args.packing,
        tokens_per_s={arm: round(tokens / spent) for arm, spent in median.items()},
        seconds=seconds,
        ratio=median["bare"] / median["ours"],
    )


if __name__ == "__main__":
    main()
