"""SFT without Ray: rows to examples, the order of rows, and a loss that does not depend on how rows are cut."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.hf import load_policy
from model.init import init_model
from model.logprobs import TokenScorer
from model.tokenizer import chat_texts, train_bpe
from pretrain.examples import Examples, load_examples, pack
from pretrain.step import micro_batch_loss, plan_steps, rank_micro_batches
from rlplatform.config import DataConfig
from rlplatform.datafiles import DataError
from rlplatform.tasks.arithmetic import problems

MESSAGES = DataConfig(prompt="messages")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return problems(0, num_sft=40, num_train=0, num_test=0, digits={1: 1, 2: 1, 4: 1})["sft"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_bpe(chat_texts(row["messages"] for row in rows), 320, folder / "tokenizer")
    init_model(folder, folder / "tokenizer", {"num_hidden_layers": 2, "hidden_size": 64}, seed=1)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))


@pytest.fixture(scope="module")
def examples(tokenizer, rows: list[dict]) -> Examples:
    return load_examples(MESSAGES, tokenizer, rows=rows, max_tokens=128)[0]


# --- examples -------------------------------------------------------------------------------------------------------


def test_examples_are_the_rows_end_to_end_and_the_mask_is_the_target(examples: Examples, tokenizer, rows) -> None:
    assert len(examples) == len(rows)
    assert examples.ids == tuple(row["id"] for row in rows)
    for index, row in enumerate(rows):
        span = slice(examples.cu_seqlens[index], examples.cu_seqlens[index + 1])
        targets = examples.token_ids[span][examples.loss_mask[span]]
        assert tokenizer.decode(targets) == row["messages"][1]["content"] + "<|im_end|>"
        assert examples.loss_tokens[index] == len(targets)


def test_prompt_and_completion_columns_give_the_same_as_messages(examples: Examples, tokenizer, rows) -> None:
    flat = [{"id": r["id"], "prompt": r["prompt"], "target": r["messages"][1]["content"]} for r in rows]
    same, _ = load_examples(DataConfig(), tokenizer, rows=flat, completion="target", max_tokens=128)
    assert same.fingerprint() == examples.fingerprint()
    parts = [{**r, "prompt": [{"role": "user", "content": r["prompt"]}]} for r in flat]
    assert load_examples(DataConfig(), tokenizer, rows=parts, completion="target", max_tokens=128)[0].ids == same.ids


def test_plain_text_without_a_template(tokenizer) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}]
    got, _ = load_examples(DataConfig(chat=False), tokenizer, rows=rows, max_tokens=128)
    assert tokenizer.decode(got.token_ids) == "1+1=2<|im_end|>"
    assert tokenizer.decode(got.token_ids[got.loss_mask]) == "2<|im_end|>"


def test_rows_too_long_are_dropped_and_named_at_the_exact_boundary(examples: Examples, tokenizer, rows) -> None:
    limit = int(sorted(examples.lengths)[20])
    kept, dropped = load_examples(MESSAGES, tokenizer, rows=rows, max_tokens=limit)
    longer = {examples.ids[i] for i in np.flatnonzero(examples.lengths > limit)}
    assert {d["id"] for d in dropped} == longer
    assert set(kept.ids) == set(examples.ids) - longer
    assert all(d["tokens"] > d["max_tokens"] == limit for d in dropped)
    assert kept.lengths.max() == limit


def test_with_the_templates_history_every_answer_is_a_row(tokenizer) -> None:
    turn = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\n2\n</think>\n\n2"}]
    rows = [{"id": "a", "messages": [*turn, *turn]}, {"id": "b", "messages": turn}]
    apart, dropped = load_examples(MESSAGES, tokenizer, rows=rows, max_tokens=128, history="template")
    together, _ = load_examples(MESSAGES, tokenizer, rows=rows, max_tokens=128)
    assert (apart.ids, together.ids, dropped) == (("a/0", "a/1", "b/0"), ("a", "b"), [])
    assert apart.loss_tokens.tolist() == [apart.loss_tokens[0]] * 3
    assert together.loss_tokens[0] == 2 * apart.loss_tokens[0]
    second = tokenizer.decode(apart.token_ids[apart.cu_seqlens[1] : apart.cu_seqlens[2]])
    assert second.count("<think>") == 1  # the earlier thought is not shown


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "row 2: column 'messages' is missing"),
        ({"messages": 3}, "row 2: column 'messages': expected a string or a list of messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "row 2: expected the target text in column 'completion'"),
        ({"messages": "x", "completion": None}, "row 2: expected the target text in column 'completion'"),
    ],
)
def test_an_unusable_row_is_named(tokenizer, rows, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(MESSAGES, tokenizer, rows=[rows[0], row], max_tokens=128)


def test_no_usable_row_is_an_error_with_the_numbers(tokenizer, rows) -> None:
    with pytest.raises(DataError, match=r"at most max_tokens=5 tokens, got none \(40 were too long; the shortest has"):
        load_examples(MESSAGES, tokenizer, rows=rows, max_tokens=5)
    with pytest.raises(DataError, match="at least one row"):
        load_examples(MESSAGES, tokenizer, rows=[], max_tokens=5)


def test_a_targeted_first_token_is_refused() -> None:
    row = ("a", np.array([1, 2], dtype=np.int32), np.array([True, True]))
    with pytest.raises(ValueError, match="first token is a target"):
        pack([row])


def test_fingerprint_sees_tokens_mask_and_boundaries() -> None:
    def build(tokens: list[int], mask: list[bool], cut: int) -> str:
        pairs = [("a", tokens[:cut], mask[:cut]), ("b", tokens[cut:], mask[cut:])]
        return pack([(i, np.array(t, dtype=np.int32), np.array(m, dtype=bool)) for i, t, m in pairs]).fingerprint()

    base = build([1, 2, 3, 4], [False, True, False, True], 2)
    assert base == build([1, 2, 3, 4], [False, True, False, True], 2)
    assert base != build([1, 2, 3, 5], [False, True, False, True], 2)
    assert base != build([1, 2, 3, 4], [False, True, False, False], 2)
    assert build([1, 2, 3, 4], [False, True, False, False], 2) != build([1, 2, 3, 4], [False, True, False, False], 3)


# --- order of rows --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 60), st.integers(0, 3), st.booleans())
def test_every_epoch_sees_every_row_once_and_no_step_overflows(lengths, tokens_per_step, seed, shuffle) -> None:
    array = np.array(lengths)
    steps = list(islice(plan_steps(array, seed=seed, tokens_per_step=tokens_per_step, shuffle=shuffle), 40))
    assert all(array[step].sum() <= tokens_per_step for step in steps)
    for step, following in pairwise(steps):
        assert array[step].sum() + array[following[0]] > tokens_per_step  # no step stops early
    stream = np.concatenate(steps)
    for epoch in range(len(stream) // len(array)):
        seen = stream[epoch * len(array) : (epoch + 1) * len(array)]
        assert sorted(seen.tolist()) == list(range(len(array)))
        if not shuffle:
            assert seen.tolist() == list(range(len(array)))


def test_a_resumed_plan_continues_the_uninterrupted_one_across_epochs() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, size=17)
    whole = list(islice(plan_steps(lengths, seed=5, tokens_per_step=64), 30))
    for start in (1, 7, 29):
        resumed = islice(plan_steps(lengths, seed=5, tokens_per_step=64, start=start), 30 - start)
        assert [s.tolist() for s in resumed] == [s.tolist() for s in whole[start:]]
    other = islice(plan_steps(lengths, seed=6, tokens_per_step=64), 30)
    assert [s.tolist() for s in other] != [s.tolist() for s in whole]


def test_a_row_that_does_not_fit_into_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="none longer than tokens_per_step=8, got 2 rows, the longest with 9"):
        plan_steps(np.array([3, 9]), seed=0, tokens_per_step=8)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 80))
def test_every_row_is_on_exactly_one_rank_and_ranks_have_equally_many_micro_batches(lengths, world_size, limit) -> None:
    array = np.array(lengths)
    rows = np.arange(len(array))[::-1].copy()
    ranks = [
        rank_micro_batches(rows, array, rank=rank, world_size=world_size, max_tokens=limit)
        for rank in range(world_size)
    ]
    assert len({len(micro) for micro in ranks}) == 1
    flat = [part for micro in ranks for part in micro]
    assert Counter(row for part in flat for row in part.tolist()) == Counter(rows.tolist())
    assert all(array[part].sum() <= limit or len(part) == 1 for part in flat if len(part))


# --- the loss -------------------------------------------------------------------------------------------------------


def gradients(model: Path, examples: Examples, rows: np.ndarray, world_size: int, max_tokens: int):
    scorer = TokenScorer(load_policy(str(model)))
    denominator = int(examples.loss_tokens[rows].sum())
    total = 0.0
    for rank in range(world_size):
        for part in rank_micro_batches(rows, examples.lengths, rank=rank, world_size=world_size, max_tokens=max_tokens):
            loss, _ = micro_batch_loss(scorer, examples, part, denominator=denominator, chunk_tokens=50)
            loss.backward()
            total += float(loss.detach())
    return total, {name: p.grad for name, p in scorer.policy.hf_named_parameters()}


def test_loss_and_gradients_do_not_depend_on_ranks_micro_batches_or_packing(model: Path, examples: Examples) -> None:
    """Against transformers' own loss on padded rows. With 8 ranks and 7 rows one rank has none."""
    from transformers import AutoModelForCausalLM

    rows = np.array([3, 11, 0, 25, 7, 8, 30])
    reference = AutoModelForCausalLM.from_pretrained(str(model))
    width = int(examples.lengths[rows].max())
    token_ids, labels = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
    attention = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        span = slice(examples.cu_seqlens[row], examples.cu_seqlens[row + 1])
        ids = torch.from_numpy(examples.token_ids[span]).long()
        token_ids[place, : len(ids)], attention[place, : len(ids)] = ids, 1
        labels[place, : len(ids)] = torch.where(torch.from_numpy(examples.loss_mask[span]), ids, -100)
    expected = reference(input_ids=token_ids, attention_mask=attention, labels=labels).loss
    expected.backward()
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    longest = int(examples.lengths.max())
    for world_size, max_tokens in ((1, 10_000), (1, longest), (2, 2 * longest), (3, longest), (8, 10_000)):
        loss, grads = gradients(model, examples, rows, world_size, max_tokens)
        assert math.isclose(loss, float(expected.detach()), rel_tol=1e-5)
        assert grads.keys() == wanted.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_a_micro_batch_without_rows_costs_nothing_and_changes_nothing(model: Path, examples: Examples) -> None:
    scorer = TokenScorer(load_policy(str(model)))
    loss, probabilities = micro_batch_loss(scorer, examples, np.zeros(0, dtype=np.int64), denominator=7)
    assert len(probabilities) == 0
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in scorer.parameters())


def in_transformers(policy, folder: Path):
    from transformers import AutoModelForCausalLM

    policy.save_pretrained(folder, policy.to_checkpoint((n, p.detach()) for n, p in policy.hf_named_parameters()))
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def test_target_probability_is_that_of_the_whole_target_given_the_prompt(
    model: Path, examples: Examples, tmp_path: Path
) -> None:
    """Against transformers, one row at a time; a fresh model gives about 320 ** -targets, so train a little first."""
    scorer = TokenScorer(load_policy(str(model)))
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=5e-3)
    rows = np.array([2, 9, 17])
    for _ in range(60):
        optimizer.zero_grad()
        micro_batch_loss(scorer, examples, rows, denominator=int(examples.loss_tokens[rows].sum()))[0].backward()
        optimizer.step()
    _, probabilities = micro_batch_loss(scorer, examples, rows, denominator=1)
    hf = in_transformers(scorer.policy, tmp_path)
    for row, probability in zip(rows, probabilities.tolist(), strict=True):
        span = slice(examples.cu_seqlens[row], examples.cu_seqlens[row + 1])
        ids, mask = torch.from_numpy(examples.token_ids[span]).long(), examples.loss_mask[span]
        with torch.no_grad():
            each = hf(ids[None]).logits[0].softmax(-1)
        expected = math.prod(float(each[t - 1, ids[t]]) for t in np.flatnonzero(mask))
        assert 1e-12 < expected < 1.0
        assert probability == pytest.approx(expected, rel=1e-3)


def test_one_overfitted_row_is_generated_again_with_its_end(
    model: Path, examples: Examples, tokenizer, tmp_path: Path
) -> None:
    scorer = TokenScorer(load_policy(str(model)))
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=5e-3)
    row = np.array([4])
    for _ in range(60):
        optimizer.zero_grad()
        loss, probability = micro_batch_loss(scorer, examples, row, denominator=int(examples.loss_tokens[4]))
        assert float(probability) == pytest.approx(math.exp(-float(loss.detach()) * examples.loss_tokens[4]), rel=1e-4)
        loss.backward()
        optimizer.step()
    span = slice(examples.cu_seqlens[4], examples.cu_seqlens[5])
    token_ids, mask = examples.token_ids[span], examples.loss_mask[span]
    prompt = torch.from_numpy(token_ids[: mask.argmax()]).long()[None]
    hf = in_transformers(scorer.policy, tmp_path)
    generated = hf.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=100)
    assert generated[0, prompt.shape[1] :].tolist() == token_ids[mask].tolist()
    assert generated[0, -1] == tokenizer.eos_token_id
