from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.config import ConfigError, DataConfig
from rlplatform.data import ShuffledPrompts, load_prompts, normalise
from rlplatform.datafiles import DataError, read_rows
from rlplatform.types import Prompt


class Characters:
    """A tokenizer of one token a character, with a template one can read."""

    chat_template = "[role]content"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_a_template_would_leave_out_is_named(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How many?"}]
    path = write(tmp_path / "train.jsonl", [{"prompt": [{"role": "user", "content": parts}]}])
    with pytest.raises(DataError, match=r"train.jsonl:1: column 'prompt': message 0: user: expected content to be a"):
        load_prompts(DataConfig(path=str(path)), Characters())  # type: ignore[arg-type]


def test_gsm8k_is_a_regex_away(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [{"question": "How many?", "answer": "48/2 = 24\n#### 72"}])
    config = DataConfig(path=str(path), prompt="question", answer_regex=r"#### (.+)", system="Think.")
    [prompt] = load_prompts(config, Characters()).prompts  # type: ignore[arg-type]
    assert prompt.columns["answer"] == "72"
    assert prompt.text == "[system]Think.[user]How many?[assistant]"
    assert prompt.messages == ({"role": "system", "content": "Think."}, {"role": "user", "content": "How many?"})


def test_verl_parquet_reads_as_is(tmp_path: Path) -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "split": "train"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    [prompt] = load_prompts(DataConfig(path=str(tmp_path / "train.parquet")), Characters()).prompts  # type: ignore[arg-type]
    assert prompt.columns["answer"] == "2"
    assert prompt.columns["data_source"] == "openai/gsm8k"
    assert prompt.text == "[user]1+1?[assistant]"


def test_gzip_folder_and_split(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": "held out"}) + "\n")
    write(tmp_path / "train.jsonl", [{"prompt": "train"}])
    rows = [row for _, row in read_rows(DataConfig(path=str(tmp_path), split="test"))]
    assert rows == [{"prompt": "held out"}]
    with pytest.raises(DataError, match="no file of split 'dev'"):
        list(read_rows(DataConfig(path=str(tmp_path), split="dev")))


def test_a_split_is_not_another_whose_name_goes_on(tmp_path: Path) -> None:
    for name in ("test", "test_plain", "train-00000-of-00002", "train-00001-of-00002", "train_hard", "dev_easy"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    read = {
        split: [row["prompt"] for _, row in read_rows(DataConfig(path=str(tmp_path), split=split))]
        for split in ("test", "test_plain", "train", "dev")
    }
    assert read["test"] == ["test"]
    assert read["test_plain"] == ["test_plain"]  # an underscore may stand in a split's name
    assert read["train"] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert read["dev"] == ["dev_easy"]  # no file has the name itself
    with pytest.raises(DataError, match="no file of split 'tes'"):
        list(read_rows(DataConfig(path=str(tmp_path), split="tes")))


def test_rename_struct_column_and_template(tmp_path: Path) -> None:
    config = DataConfig(columns={"gold": "meta.answer"}, template="{prompt} Put it in \\boxed{{}}.")
    prompt, columns = normalise({"prompt": "1+1?", "meta": {"answer": 2}}, "here", config)
    assert prompt == "1+1? Put it in \\boxed{}."
    assert columns["gold"] == 2


@pytest.mark.parametrize(
    ("text", "config", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', {}, "train.jsonl:2: expected one JSON object"),
        ("[1]\n", {}, "train.jsonl:1: expected a JSON object, got list"),
        ('{"question": "a"}\n', {}, "train.jsonl:1: column 'prompt' is missing; columns there: ['question']"),
        ('{"prompt": "a"}\n', {"answer": "gold"}, "column 'gold' is missing"),
        ('{"prompt": "a", "answer": "b"}\n', {"answer_regex": "#### (.+)"}, "does not match 'b'"),
        ('{"prompt": 3}\n', {}, "expected a string or a list of messages"),
        ("", {}, "expected at least one row"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, config: dict[str, Any], said: str) -> None:
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(DataError) as error:
        load_prompts(DataConfig(path=str(tmp_path / "train.jsonl"), **config), Characters())  # type: ignore[arg-type]
    assert said in str(error.value)


def test_a_missing_file_is_not_taken_for_a_hub_id() -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(DataConfig(path="./nowhere.jsonl")))


def test_prompts_too_long_are_dropped_and_reported_never_cut(tmp_path: Path) -> None:
    exact, over = "x" * (20 - len("[user][assistant]")), "x" * (21 - len("[user][assistant]"))
    path = write(tmp_path / "train.jsonl", [{"prompt": exact}, {"prompt": over}])
    found = load_prompts(DataConfig(path=str(path), max_prompt_tokens=20), Characters())  # type: ignore[arg-type]
    assert [len(p.token_ids) for p in found.prompts] == [20]
    assert found.too_long == (("train-1", 21),)
    with pytest.raises(DataError, match="all 2 prompts are longer"):
        load_prompts(DataConfig(path=str(path), max_prompt_tokens=5), Characters())  # type: ignore[arg-type]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (), np.array([i + 1], dtype=np.int32), str(i)) for i in range(count)]


@given(st.integers(1, 12), st.integers(1, 7), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_holds_every_prompt_once_and_a_resume_continues(
    count: int, per_step: int, steps: int, seed: int
) -> None:
    whole = ShuffledPrompts(prompts(count), seed=seed, group_size=2)
    order = [r.prompt.prompt_id for s in range(steps) for r in whole.next_requests(per_step, step=s)]
    for epoch in range(len(order) // count):
        assert Counter(order[epoch * count : (epoch + 1) * count]) == Counter(p.prompt_id for p in prompts(count))
    cut = steps // 2
    first = ShuffledPrompts(prompts(count), seed=seed, group_size=2)
    ids = [r.prompt.prompt_id for s in range(cut) for r in first.next_requests(per_step, step=s)]
    second = ShuffledPrompts(prompts(count), seed=seed, group_size=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ids += [r.prompt.prompt_id for s in range(cut, steps) for r in second.next_requests(per_step, step=s)]
    assert ids == order


def test_no_two_samples_of_a_run_share_a_seed() -> None:
    stream = ShuffledPrompts(prompts(5), seed=0, group_size=4)
    requests = [r for step in range(6) for r in stream.next_requests(3, step=step) + stream.next_requests(2, step=step)]
    seeds = [r.seed + k for r in requests for k in range(r.num_samples)]
    assert len(seeds) == len(set(seeds)) == 6 * 5 * 4


def test_a_checkpoint_of_other_data_is_refused() -> None:
    stream = ShuffledPrompts(prompts(5), seed=0, group_size=4)
    with pytest.raises(ConfigError, match="prompt order would differ"):
        stream.load_state_dict({"drawn": 3, "num_prompts": 6, "seed": 0})
