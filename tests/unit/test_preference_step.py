"""Preferences without Ray: rows to pairs, the loss by hand, and gradients that do not depend on how pairs are cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.init import init_model
from model.reward_head import RewardModel, load_reward_model
from model.tokenizer import train_bpe
from pretrain.preference_data import EQUAL, TOO_LONG, PairColumns, Pairs, held_out, load_pairs
from pretrain.preference_step import members, micro_batch_pair_loss, pair_losses, pair_scores
from pretrain.step import plan_steps, rank_micro_batches
from rlplatform.config import ConfigError, DataConfig, PreferenceConfig
from rlplatform.configfile import load_values
from rlplatform.datafiles import DataError
from rlplatform.preference_text import RewardText
from rlplatform.tasks.preferences import pairs as made_up

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "preference"
TEXT = RewardText(max_tokens=256)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return made_up(0, num_train=24, num_test=1)["train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    train_bpe((row[name] for row in rows for name in ("prompt", "chosen", "rejected")), 320, folder / "tokenizer")
    init_model(folder, folder / "tokenizer", {"num_hidden_layers": 2, "hidden_size": 48, "head_dim": 16}, seed=1)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def model(folder: Path) -> RewardModel:
    return load_reward_model(str(folder), seed=2)


@pytest.fixture(scope="module")
def pairs(tokenizer, rows: list[dict]) -> Pairs:
    margins = [{**row, "gap": 0.1 * (index % 4)} for index, row in enumerate(rows)]
    return load_pairs(DataConfig(), tokenizer, text=TEXT, columns=PairColumns(margin="gap"), rows=margins)[0]


def read(tokenizer, rows: list[dict], config: DataConfig | None = None, **columns) -> tuple[Pairs, list[dict]]:
    return load_pairs(config or DataConfig(), tokenizer, text=TEXT, columns=PairColumns(**columns), rows=rows)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_conversation_ends_with_the_token_that_ends_its_turn(pairs: Pairs, tokenizer, rows: list[dict]) -> None:
    assert len(pairs) == len(rows)
    assert pairs.ids == tuple(row["id"] for row in rows)
    for index, row in enumerate(rows):
        for side, name in enumerate(("chosen", "rejected")):
            at = 2 * index + side
            span = slice(pairs.examples.cu_seqlens[at], pairs.examples.cu_seqlens[at + 1])
            ids, mask = pairs.examples.token_ids[span], pairs.examples.loss_mask[span]
            assert np.flatnonzero(mask).tolist() == [len(ids) - 1]
            assert tokenizer.decode(ids[-1]) == "<|im_end|>"
            text = tokenizer.decode(ids)
            assert text == tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}],
                tokenize=False,
            ).removesuffix("\n")
            own = tokenizer.decode(ids[-pairs.completion_tokens[at] :])
            assert own.removeprefix("<think>\n\n</think>\n\n") == row[name] + "<|im_end|>"
    assert pairs.lengths[3] == pairs.examples.lengths[6] + pairs.examples.lengths[7]


def test_every_form_of_a_row_gives_the_same_tokens(tokenizer) -> None:
    user, good, bad = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}, "No."
    worse = {"role": "assistant", "content": bad}
    expected = read(tokenizer, [{"prompt": "Hi?", "chosen": "Yes.", "rejected": bad}])[0].fingerprint()
    forms = [
        {"prompt": [user], "chosen": [good], "rejected": [worse]},
        {"prompt": [user], "chosen": good, "rejected": bad},
        {"chosen": [user, good], "rejected": [user, worse]},
    ]
    assert [read(tokenizer, [form])[0].fingerprint() for form in forms] == [expected] * 3
    llama_factory = {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": bad},
    }
    got = read(tokenizer, [llama_factory], DataConfig(prompt="conversations"))[0]
    assert got.fingerprint() == expected
    asked = read(tokenizer, [forms[0] | {"chosen": "Y", "better": "Yes."}], chosen="better")[0]
    assert asked.fingerprint() == expected


def test_thoughts_are_stripped_or_kept(tokenizer) -> None:
    row = {"prompt": "Hi?", "chosen": "<think>\nhm\n</think>\n\nYes.", "rejected": "No."}
    plain = {**row, "chosen": "Yes."}
    assert read(tokenizer, [row])[0].fingerprint() == read(tokenizer, [plain])[0].fingerprint()
    keep = RewardText(thoughts="keep")
    kept, _ = load_pairs(DataConfig(), tokenizer, text=keep, columns=PairColumns(), rows=[row])
    assert "hm" in tokenizer.decode(kept.examples.token_ids)
    open_thought = keep.write(tokenizer, "Hi?", "<think>\nhm")
    assert "hm" in tokenizer.decode(open_thought.token_ids)
    assert "hm" not in tokenizer.decode(TEXT.write(tokenizer, "Hi?", "<think>\nhm").token_ids)


def test_the_end_is_scored_where_pad_is_eos(tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    same = AutoTokenizer.from_pretrained(str(folder))
    same.pad_token = same.eos_token
    expected = TEXT.write(tokenizer, "Hi?", "Yes.").token_ids
    assert TEXT.write(same, "Hi?", "Yes.").token_ids.tolist() == expected.tolist()
    assert expected[-1] == same.pad_token_id


def test_rows_too_long_or_equal_are_dropped_and_named(tokenizer) -> None:
    base = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    rows = [
        {**base, "id": "good"},
        {**base, "id": "same", "rejected": "Yes."},
        {**base, "id": "thoughts only", "rejected": "<think>\nx\n</think>\n\nYes."},
        {**base, "id": "long", "rejected": "No. " * 200},
    ]
    pairs, dropped = read(tokenizer, rows)
    assert pairs.ids == ("good",)
    assert [(d["id"], d["why"]) for d in dropped] == [("same", EQUAL), ("thoughts only", EQUAL), ("long", TOO_LONG)]
    assert dropped[-1]["tokens"] > dropped[-1]["max_tokens"] == 256
    longest = RewardText(max_tokens=dropped[-1]["tokens"])
    assert len(load_pairs(DataConfig(), tokenizer, text=longest, columns=PairColumns(), rows=rows)[0]) == 2
    with pytest.raises(DataError, match=r"got none \(1 too long, 2 chosen and rejected are equal\)"):
        read(tokenizer, rows[1:])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "y"}, "column 'rejected' is missing"),
        ({"prompt": 3, "chosen": "y", "rejected": "z"}, "column 'prompt': expected a string or messages, got '3'"),
        ({"prompt": "x", "chosen": ["y"], "rejected": "z"}, "column 'chosen': expected a string or messages"),
        ({"chosen": "y", "rejected": "z"}, "whole conversations that differ in the last message only"),
        ({"prompt": [{"from": "tool", "value": "x"}], "chosen": "y", "rejected": "z"}, r"with from \(human, user"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "y", "rejected": "z"}, "expected a prompt"),
        ({"prompt": "x", "chosen": [{"role": "user", "content": "x"}], "rejected": "z"}, "ends with the assistant's"),
    ],
)
def test_an_unusable_row_is_named(tokenizer, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        read(tokenizer, [row])


@pytest.mark.parametrize("margin", [None, "1", float("nan"), True])
def test_a_margin_is_a_finite_number(tokenizer, margin) -> None:
    with pytest.raises(DataError, match="row 1: column 'gap': expected a finite number"):
        read(tokenizer, [{"prompt": "x", "chosen": "y", "rejected": "z", "gap": margin}], margin="gap")


def test_all_pairs_of_a_prompt_are_on_one_side_of_the_split() -> None:
    sides = [held_out(f"prompt {i}", seed=0, share=0.25) for i in range(2000)]
    assert 0.21 < np.mean(sides) < 0.29
    assert sides == [held_out(f"prompt {i}", seed=0, share=0.25) for i in range(2000)]
    assert sides != [held_out(f"prompt {i}", seed=1, share=0.25) for i in range(2000)]
    assert not any(held_out(f"prompt {i}", seed=0, share=0.0) for i in range(100))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tokens_per_step=2047", "expected at least 2 x max_tokens x learner.num_workers = 2048"),
        ("data.chat=false", "a reward model reads conversations"),
        ("heldout_share=1.0", "heldout_share: expected in"),
        ("learner.lora.rank=4", "reward models are trained whole"),
        ("centring=-1.0", "centring: expected >= 0"),
    ],
)
def test_a_config_that_cannot_run_says_why(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_values({"kind": "preference"}, [override])
    with pytest.raises(ConfigError, match="expected one of the two"):
        PreferenceConfig(margin=1.0, margin_column="gap")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/preference is not here")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shared_preferences_are_read(tokenizer, language: str) -> None:
    config = DataConfig(path=str(SHARED / f"dpo_{language}_demo.jsonl.gz"), prompt="conversations", limit=40)
    text = RewardText(max_tokens=100_000)
    pairs, dropped = load_pairs(config, tokenizer, text=text, columns=PairColumns())
    assert len(pairs) + len(dropped) == 40
    assert all(entry["why"] == EQUAL for entry in dropped)


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0])
    margins = torch.tensor([0.5, 0.0])
    expected = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(1.0))]
    assert pair_losses(chosen, rejected, margins).tolist() == pytest.approx(expected, rel=1e-6)
    centred = pair_losses(chosen, rejected, margins, centring=0.01)
    assert centred.tolist() == pytest.approx([expected[0] + 0.0625, expected[1] + 0.01], rel=1e-6)
    equal = pair_losses(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    assert float(equal) == pytest.approx(math.log(2))
    far = pair_losses(torch.tensor([-400.0]), torch.tensor([400.0]), torch.zeros(1))
    assert float(far) == pytest.approx(800.0)  # no overflow


def test_the_gradient_is_that_of_finite_differences() -> None:
    scores = torch.tensor([[0.3, -0.2], [1.0, 1.5]], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor([0.1, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: pair_losses(s[:, 0], s[:, 1], margins, centring=0.05), (scores,))


def test_the_margin_moves_the_gradient_and_the_level_of_scores_does_not() -> None:
    def gradient(shift: float, margin: float) -> float:
        chosen = torch.tensor([1.0 + shift], requires_grad=True)
        pair_losses(chosen, torch.tensor([0.5 + shift]), torch.tensor([margin])).sum().backward()
        assert chosen.grad is not None
        return float(chosen.grad)

    assert gradient(0.0, 0.0) == pytest.approx(gradient(7.0, 0.0), rel=1e-5)
    assert gradient(0.0, 0.0) == pytest.approx(-1 / (1 + math.exp(0.5)), rel=1e-6)
    assert gradient(0.0, 1.0) < gradient(0.0, 0.0)  # a demanded margin pulls harder


def gradients(model: RewardModel, pairs: Pairs, rows: np.ndarray, world_size: int, max_tokens: int):
    model.zero_grad()
    total = 0.0
    for rank in range(world_size):
        for part in rank_micro_batches(rows, pairs.lengths, rank=rank, world_size=world_size, max_tokens=max_tokens):
            scores = pair_scores(model, pairs, part)
            assert scores.shape == (len(part), 2)
            loss = micro_batch_pair_loss(scores, pairs, part, denominator=len(rows), centring=0.01)
            loss.backward()
            total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.hf_named_parameters()}


def padded_reference(folder: Path, pairs: Pairs, rows: np.ndarray):
    """transformers' classifier with the same head, one unpadded conversation at a time, and torch's own logsigmoid."""
    from transformers import Qwen3ForSequenceClassification

    ours = load_reward_model(str(folder), seed=2)
    theirs = Qwen3ForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    theirs.score.weight.data.copy_(ours.score.weight.data)
    losses = []
    for pair in rows:
        scores = []
        for at in (2 * pair, 2 * pair + 1):
            ids = pairs.examples.token_ids[pairs.examples.cu_seqlens[at] : pairs.examples.cu_seqlens[at + 1]]
            scores.append(theirs.score(theirs.model(torch.from_numpy(ids).long()[None]).last_hidden_state[0, -1])[0])
        difference = scores[0] - scores[1] - float(pairs.margins[pair])
        losses.append(torch.log1p(torch.exp(-difference)) + 0.01 * (scores[0] + scores[1]) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in theirs.named_parameters()}


def test_loss_and_gradients_equal_transformers_however_pairs_are_cut(
    model: RewardModel, folder: Path, pairs: Pairs
) -> None:
    """Micro-batches x ranks x order. With 8 ranks and 7 pairs one rank has none."""
    rows = np.array([3, 11, 0, 20, 7, 8, 15])
    expected, wanted = padded_reference(folder, pairs, rows)
    longest = int(pairs.lengths.max())
    for world_size, max_tokens in ((1, 10_000), (1, longest), (2, 10_000), (2, longest), (8, 10_000)):
        for order in (rows, rows[::-1].copy()):
            loss, grads = gradients(model, pairs, order, world_size, max_tokens)
            assert math.isclose(loss, expected, rel_tol=1e-5)
            assert grads.keys() == wanted.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_mean_is_over_pairs_of_the_step_not_of_a_micro_batch(model: RewardModel, pairs: Pairs) -> None:
    """Micro-batches of 1 and 6 pairs: a mean of local means would weigh the lone pair six times."""
    rows = np.arange(7)
    with torch.no_grad():
        each = [
            float(micro_batch_pair_loss(pair_scores(model, pairs, r), pairs, r, denominator=1)) for r in rows[:, None]
        ]
        cut = [rows[:1], rows[1:]]
        total = sum(float(micro_batch_pair_loss(pair_scores(model, pairs, r), pairs, r, denominator=7)) for r in cut)
    assert total == pytest.approx(np.mean(each), rel=1e-5)


def test_a_micro_batch_without_pairs_costs_nothing_and_changes_nothing(model: RewardModel, pairs: Pairs) -> None:
    none = np.zeros(0, dtype=np.int64)
    model.zero_grad()
    loss = micro_batch_pair_loss(pair_scores(model, pairs, none), pairs, none, denominator=5, centring=0.01)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 80))
def test_both_halves_of_a_pair_are_on_one_rank_in_one_micro_batch(lengths, world_size, limit) -> None:
    array = np.array(lengths)
    rows = next(plan_steps(array, seed=1, tokens_per_step=max(int(array.sum()), 1)))
    parts = [
        part
        for rank in range(world_size)
        for part in rank_micro_batches(rows, array, rank=rank, world_size=world_size, max_tokens=limit)
    ]
    assert sorted(member for part in parts for member in members(part)) == sorted(members(rows).tolist())
    for part in parts:
        found = members(part).tolist()
        assert found[1::2] == [chosen + 1 for chosen in found[::2]]
        assert all(chosen % 2 == 0 for chosen in found[::2])


def test_fingerprint_sees_margins(pairs: Pairs, tokenizer, rows: list[dict]) -> None:
    plain = read(tokenizer, rows)[0]
    assert plain.fingerprint() != pairs.fingerprint()
    assert plain.fingerprint() == read(tokenizer, json.loads(json.dumps(rows)))[0].fingerprint()
