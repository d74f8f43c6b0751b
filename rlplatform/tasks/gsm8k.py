"""GSM8K for a model that has never written a think block: worked examples in the format, then questions to train on.

prompt   the question and the instruction
answer   72
messages for the supervised warm-up: the dataset's own rationale inside <think>…</think>, then \\boxed{72}
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from rlplatform.config import DataConfig
from rlplatform.data import normalise
from rlplatform.datafiles import read_rows

Row = dict[str, Any]
INSTRUCTION = "Think inside <think> </think>, then give the final answer in \\boxed{}."
HUB_ID = "openai/gsm8k:main"


def think_format(
    seed: int,
    *,
    path: str = HUB_ID,
    num_sft: int = 1000,
    num_train: int = 2000,
    num_test: int = 200,
    max_rationale_chars: int = 320,
) -> dict[str, list[Row]]:
    """Splits ``sft`` and ``train`` from GSM8K's train split, ``test`` from its test split; no question is in two.

    ``path`` is the hub id or a folder with ``train.jsonl[.gz]`` and ``test.jsonl[.gz]``. Warm-up examples keep the
    dataset's rationale without its ``<<48/2=24>>`` annotations; longer ones than ``max_rationale_chars`` are passed
    over there, so that a short completion limit fits.

    Raises:
        DataError: the dataset cannot be read.
        ValueError: fewer questions than asked for.
    """
    rng = random.Random(f"gsm8k/{seed}")
    train, test = list(_rows(path, "train")), list(_rows(path, "test"))
    rng.shuffle(train)
    rng.shuffle(test)
    short = [row for row in train if len(row["rationale"]) <= max_rationale_chars][:num_sft]
    taken = {row["prompt"] for row in short}
    rest = [row for row in train if row["prompt"] not in taken][:num_train]
    splits = {"sft": short, "train": rest, "test": test[:num_test]}
    for name, wanted in (("sft", num_sft), ("train", num_train), ("test", num_test)):
        if len(splits[name]) < wanted:
            raise ValueError(f"gsm8k: expected {wanted} questions for split {name}, {path} has {len(splits[name])}")
    return {name: [_finish(row) for row in rows] for name, rows in splits.items()}


def _rows(path: str, split: str) -> Iterator[Row]:
    config = DataConfig(path=path, split=split, prompt="question", answer_regex=r"####\s*(.+)")
    for where, raw in read_rows(config):
        question, columns = normalise(raw, where, config)
        rationale = re.sub(r"<<.*?>>", "", raw["answer"].partition("####")[0]).strip()
        yield {
            "prompt": f"{question}\n{INSTRUCTION}",
            "answer": columns["answer"].replace(",", ""),
            "rationale": rationale,
        }


def _finish(row: Row) -> Row:
    text = f"<think>\n{row['rationale']}\n</think>\n\n\\boxed{{{row['answer']}}}"
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
    return {"prompt": row["prompt"], "answer": row["answer"], "messages": messages}
