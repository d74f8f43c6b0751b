"""A planted fact in a text of four times S3's length, found by the model of configs/recipe/pretrain_mini.yaml.

    .venv/bin/python -m benchmarks.needle                     # trains what is missing: three seeds
    .venv/bin/python -m benchmarks.needle --lengths 512 2048  # what was trained is kept

Four ways to read beyond the trained length, decoded natively (model/generate.py): RoPE as trained, YaRN, Dual Chunk
Attention, both. Texts are stories with a password of six words somewhere in them, asked for at the end; the answer is
right where the next tokens spell all six. What it should show: with both at least 90 % at four times the length, in
every seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT, report

if TYPE_CHECKING:
    from model.config import Qwen3Config
    from rlplatform.tasks.corpus import Needle

RECIPE = ROOT / "configs/recipe/pretrain_mini.yaml"
WAYS = ("plain", "YaRN", "DCA", "both")
LOCAL = 8  # a dual chunk's local part is an eighth of the chunk
BATCH = 25  # texts decoded together


def trained(seed: int, folder: Path) -> Path:
    """The run folder of a seed; what is finished is not repeated."""
    from omegaconf import OmegaConf

    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config

    raw: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(RECIPE))  # type: ignore[assignment]
    run_config(load_values({**raw, "seed": seed, "run_dir": str(folder / f"seed{seed}")}))
    return folder / f"seed{seed}"


def reading(config: Qwen3Config, way: str, trained_tokens: int, length: int) -> Qwen3Config:
    """``config`` with the positions of one of ``WAYS`` for rows of ``length``; one that fits needs none."""
    from model.config import DualChunkConfig, YarnConfig

    if length <= trained_tokens:
        return config
    if way in ("YaRN", "both"):
        config = replace(config, yarn=YarnConfig(length / trained_tokens, trained_tokens))
    if way in ("DCA", "both"):
        config = replace(config, dual_chunk=DualChunkConfig(trained_tokens, trained_tokens // LOCAL))
    return config


def found(model: Path, texts: Sequence[Needle], way: str, trained_tokens: int, length: int) -> list[bool]:
    """Whether each answer was given, greedily."""
    from transformers import AutoTokenizer

    from model.generate import generate
    from model.hf import load_qwen3

    policy = load_qwen3(str(model)).eval()
    policy.config = reading(policy.config, way, trained_tokens, length)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    right = []
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        prompts = [tokenizer.encode(needle.text, add_special_tokens=False) for needle in batch]
        completions = generate(policy, prompts, max_new_tokens=24, temperature=0.0)
        for needle, one in zip(batch, completions, strict=True):
            right.append(tokenizer.decode(one.token_ids).startswith(f" {needle.answer}."))
    return right


def measured(seed: int, run: Path, lengths: Sequence[int], num: int) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    from rlplatform.stages.pass_rates import PassRate
    from rlplatform.tasks.corpus import needles

    model = run / "s3" / "model"
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    trained_tokens = json.loads((run / "tokens_s3" / "manifest.json").read_text())["row_tokens"]
    rows = []
    for length in lengths:
        texts = list(
            needles(1_000_003 + seed, num, length, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
        )
        for way in WAYS if length > trained_tokens else ("plain",):
            right = found(model, texts, way, trained_tokens, length)
            low, high = PassRate(sum(right), num).interval()
            depths = [[needle.depth, one] for needle, one in zip(texts, right, strict=True)]
            rows.append(
                {
                    "seed": seed,
                    "length": length,
                    "way": way,
                    "found": sum(right) / num,
                    "interval": [low, high],
                    "num": num,
                    "by_depth": [
                        sum(one for depth, one in depths if k <= 5 * depth < k + 1)
                        / max(1, sum(k <= 5 * depth < k + 1 for depth, _ in depths))
                        for k in range(5)
                    ],
                }
            )
            print(f"seed {seed}  length {length}  {way:6}  {100 * rows[-1]['found']:.1f} %", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--num", type=int, default=200, help="texts of each length")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "needle")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    seconds = {}
    for seed in args.seeds:
        run = trained(seed, args.out)
        seconds[seed] = round(sum(json.loads(file.read_text())["seconds"] for file in run.glob("*/done.json")))
        rows += measured(seed, run, args.lengths, args.num)
    longest = [row["found"] for row in rows if row["length"] == max(args.lengths) and row["way"] == "both"]
    report("needle", rows=rows, training_seconds=seconds, lowest_with_both=min(longest))


if __name__ == "__main__":
    main()
