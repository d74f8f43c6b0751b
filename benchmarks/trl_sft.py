"""TRL's side of ``sft_vs_trl.py``; runs in an environment of its own. Prints one JSON line.

Padded batches without packing: the mode that keeps conversations apart on a CPU. One process with all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "rows", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "rows-per-step", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rows = [json.loads(line) for line in Path(args.rows).read_text().splitlines()]
    ends: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    config = SFTConfig(
        output_dir=args.out,
        max_steps=args.steps + 2,
        per_device_train_batch_size=args.rows_per_step,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        max_length=256,
        packing=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    collate = trainer.data_collator

    def counted(features: list[dict[str, object]]) -> object:
        batch = collate(features)
        tokens.append(sum(len(one["input_ids"]) for one in features))  # type: ignore[arg-type]
        return batch

    trainer.data_collator = counted
    trainer.train()
    seconds = [after - before for before, after in pairwise(ends[1:])]  # the first two warm up
    per_step = sum(tokens[2 : 2 + len(seconds)]) / len(seconds)
    print(
        json.dumps(
            {
                "tokens_per_s": per_step / statistics.median(seconds),
                "tokens_per_step": per_step,
                "seconds": statistics.median(seconds),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
