"""TRL's side of ``grpo_vs_trl.py``; runs in an environment of its own. Prints one JSON line.

Same model, prompts, group size, completion length, one optimiser step a batch, no reference model, HF generate.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "prompts", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "prompts-per-step", "group-size", "max-new-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rows = [json.loads(line) for line in Path(args.prompts).read_text().splitlines()]
    dataset = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    config = GRPOConfig(
        output_dir=args.out,
        max_steps=args.steps + 1,
        per_device_train_batch_size=args.prompts_per_step * args.group_size,
        num_generations=args.group_size,
        max_completion_length=args.max_new_tokens,
        gradient_accumulation_steps=1,
        learning_rate=1e-6,
        beta=0.0,
        temperature=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )

    def distinct_tokens(completions: list[str], **_: object) -> list[float]:
        return [len(set(text)) / max(len(text), 1) for text in completions]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=distinct_tokens,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = ends[-1] - ends[0]  # the first step warms up
    samples = args.steps * args.prompts_per_step * args.group_size
    print(json.dumps({"seconds": seconds, "samples_per_s": samples / seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
