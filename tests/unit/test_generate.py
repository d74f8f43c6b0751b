"""Cached decoding against transformers' generate, against the training forward, and against known distributions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from model import generate as module
from model.config import DualChunkConfig, Qwen3Config, YarnConfig
from model.generate import Completion, generate
from model.hf import write_folder
from model.logprobs import token_logprobs_and_entropy
from model.qwen3 import Qwen3
from model.sampling import Sampler, uniforms

SMALL = Qwen3Config(64, 96, 2, 4, 2, head_dim=32, vocab_size=96, max_position_embeddings=64, rope_theta=10_000.0)
MOE = replace(SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
YARN = YarnConfig(factor=4.0, original_max_position_embeddings=16)
DUAL = DualChunkConfig(12, 4)
CONFIGS = {
    "dense": SMALL,
    "moe": MOE,
    "yarn": replace(SMALL, yarn=YARN, tie_word_embeddings=True),
}
DUAL_CONFIGS = {
    "dense": replace(SMALL, dual_chunk=DUAL),
    "moe": replace(MOE, dual_chunk=DUAL),
    "yarn and length scale": replace(SMALL, yarn=YARN, dual_chunk=DualChunkConfig(12, 4, 10)),
}


def policy_of(config: Qwen3Config, seed: int = 0) -> Qwen3:
    """Weights large enough that logits are far from flat and greedy rows differ."""
    policy = Qwen3(config).init_weights(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return policy


def ragged(num: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (num,), generator=generator).tolist()
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in lengths]


def forward_logits(policy: Qwen3, rows: list[list[int]]) -> list[torch.Tensor]:
    """The training forward: logits [L, V] of each row."""
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    with torch.no_grad():
        hidden = policy(torch.tensor([token for row in rows for token in row]), positions, cu_seqlens)
        return list((hidden @ policy.lm_head_weight.T).split(lengths))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path) -> None:
    """24 ragged prompts, 40 tokens each, one of them a stop token: up to 70 tokens, past YaRN's 16 and 64."""
    policy = policy_of(CONFIGS[name])
    write_folder(policy.config, policy.to_checkpoint(policy.hf_named_parameters()), tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = ragged(24)
    free = generate(policy, prompts, max_new_tokens=40, temperature=0.0)
    stop = Counter(token for row in free for token in row.token_ids).most_common(1)[0][0]
    ours = generate(policy, prompts, max_new_tokens=40, temperature=0.0, stop_token_ids=[stop])
    reversed_rows = [torch.tensor(prompt[::-1]) for prompt in prompts]
    ids = pad_sequence(reversed_rows, batch_first=True, padding_value=0).flip(1)
    mask = pad_sequence([torch.ones(len(p), dtype=torch.long) for p in prompts], batch_first=True).flip(1)
    theirs = hf.generate(
        ids, attention_mask=mask, max_new_tokens=40, do_sample=False, eos_token_id=stop, pad_token_id=0
    )[:, ids.shape[1] :]
    assert {row.finish for row in ours} == {"stop", "length"}
    assert len({tuple(row.token_ids) for row in ours}) > 12
    for row, other in zip(ours, theirs.tolist(), strict=True):
        end = other.index(stop) + 1 if stop in other else len(other)
        assert row.token_ids == other[:end]
        assert row.finish == ("stop" if stop in other else "length")


@pytest.mark.parametrize("name", sorted(DUAL_CONFIGS))
def test_dual_chunk_decoding_equals_the_whole_forward_at_every_step(name: str) -> None:
    """Rows of up to 60 tokens in chunks of 8."""
    policy = policy_of(DUAL_CONFIGS[name])
    prompts = ragged(16)
    rows = generate(policy, prompts, max_new_tokens=30, temperature=0.0)
    for prompt, row in zip(prompts, rows, strict=True):
        known = list(prompt)
        for token, logprob in zip(row.token_ids, row.logprobs, strict=True):
            expected = forward_logits(policy, [known])[0][-1].log_softmax(dim=-1)
            assert int(expected.argmax()) == token
            assert float(expected[token]) == pytest.approx(logprob, abs=2e-5)
            known.append(token)
    plain = generate(policy_of(replace(policy.config, dual_chunk=None)), prompts, max_new_tokens=30, temperature=0.0)
    assert plain != rows


@pytest.mark.parametrize("config", [*CONFIGS.values(), *DUAL_CONFIGS.values()])
def test_logprobs_of_samples_equal_those_of_the_packed_forward(config: Qwen3Config) -> None:
    policy, temperature = policy_of(config), 0.8
    prompts = ragged(12)
    rows = generate(policy, prompts, max_new_tokens=25, temperature=temperature, seed=3)
    whole = [prompt + row.token_ids for prompt, row in zip(prompts, rows, strict=True)]
    for logits, prompt, row in zip(forward_logits(policy, whole), prompts, rows, strict=True):
        expected = (logits / temperature).log_softmax(dim=-1)[len(prompt) - 1 : -1]
        picked = expected.gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(row.logprobs), picked, atol=2e-5, rtol=0)


def test_logprobs_are_those_of_the_learners_own_function() -> None:
    policy = policy_of(SMALL)
    (row,) = generate(policy, [[5, 6, 7]], max_new_tokens=20, temperature=0.7, seed=1)
    tokens = torch.tensor([5, 6, 7, *row.token_ids])
    with torch.no_grad():
        hidden = policy(tokens, torch.arange(23), torch.tensor([0, 23], dtype=torch.int32))
        logprobs, _ = token_logprobs_and_entropy(
            hidden[2:-1], policy.lm_head_weight, tokens[3:], temperature=0.7, chunk_tokens=4
        )
    torch.testing.assert_close(torch.tensor(row.logprobs), logprobs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", [SMALL, MOE, DUAL_CONFIGS["dense"]], ids=["dense", "moe", "dual chunk"])
def test_a_rows_tokens_do_not_depend_on_its_batch_mates(config: Qwen3Config) -> None:
    policy = policy_of(config)
    prompts, seeds = ragged(9), [11, 4, 4, 9, 2**40, 0, 7, 8, 5]
    stop = [int(token) for token in range(3, 12)]  # rows end at different times, so the cache is compacted
    arguments: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.2, "stop_token_ids": stop}
    together = generate(policy, prompts, seed=seeds, **arguments)
    alone = [generate(policy, [p], seed=[s], **arguments)[0] for p, s in zip(prompts, seeds, strict=True)]
    shuffled = generate(policy, prompts[::-1], seed=seeds[::-1], max_prefill_tokens=1, **arguments)[::-1]
    assert len({len(row.token_ids) for row in together}) > 3
    for rows in (alone, shuffled):
        assert [row.token_ids for row in rows] == [row.token_ids for row in together]
        assert [row.finish for row in rows] == [row.finish for row in together]
        for one, other in zip(rows, together, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_one_seed_counts_up_and_equal_seeds_sample_alike() -> None:
    policy, prompt = policy_of(SMALL), [9, 8, 7]
    counted = generate(policy, [prompt] * 4, max_new_tokens=12, seed=5)
    assert counted == generate(policy, [prompt] * 4, max_new_tokens=12, seed=[5, 6, 7, 8])
    assert len({tuple(row.token_ids) for row in counted}) == 4
    same = generate(policy, [prompt] * 3, max_new_tokens=12, seed=[5, 5, 5])
    assert [row.token_ids for row in same] == [counted[0].token_ids] * 3


@pytest.mark.parametrize(("top_k", "top_p"), [(-1, 1.0), (7, 1.0), (-1, 0.6), (20, 0.7)])
def test_samples_follow_the_models_distribution(top_k: int, top_p: float) -> None:
    """4,000 first tokens against the distribution of the forward, truncated by hand; chi-square at one in a million."""
    policy, prompt, temperature, num = policy_of(SMALL), [5, 60, 3, 17], 2.0, 4000
    logits = forward_logits(policy, [prompt])[0][-1]
    probabilities = (logits.double() / temperature).softmax(dim=-1).tolist()
    order = sorted(range(96), key=lambda token: -probabilities[token])[: top_k if top_k > 0 else 96]
    mass = sum(probabilities[token] for token in order)
    kept, total = {}, 0.0
    for token in order:  # the smallest set whose mass reaches top_p
        if total >= top_p * mass:
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    expected = {token: probability / total for token, probability in kept.items()}
    rows = generate(
        policy, [prompt] * num, max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, seed=100
    )
    counts = Counter(row.token_ids[0] for row in rows)
    assert set(counts) <= set(expected)
    for row in rows:
        assert row.logprobs[0] == pytest.approx(math.log(expected[row.token_ids[0]]), abs=1e-4)
    frequent = {token: p for token, p in expected.items() if p * num >= 5}
    statistic = sum((counts[t] - p * num) ** 2 / (p * num) for t, p in frequent.items())
    degrees = len(frequent) - 1
    assert degrees >= 3
    # Wilson and Hilferty's normal approximation of chi-square
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    assert z < 4.75


def test_the_sampler_inverts_the_distribution_function() -> None:
    """Probabilities 0, 1/8, 0, 1/2, 3/8, 0 by hand; the ends of every interval."""
    logits = torch.tensor([0.0, 0.125, 0.0, 0.5, 0.375, 0.0]).log().expand(7, 6)
    draws = torch.tensor([0.0, 0.12, 0.13, 0.62, 0.63, 1 - 2**-53, 0.3], dtype=torch.float64)
    tokens, logprobs = Sampler(1.0)(logits, draws)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4, 3]
    expected = [math.log(p) for p in (0.125, 0.125, 0.5, 0.5, 0.375, 0.375, 0.5)]
    assert logprobs.tolist() == pytest.approx(expected)


def test_top_p_keeps_the_token_that_crosses_it_and_always_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.79, 2), (0.81, 3), (0.5, 1), (1e-9, 1), (0.96, 4)):
        assert int(Sampler(1.0, top_p=top_p).logprobs(logits).isfinite().sum()) == kept
    assert Sampler(1.0, top_k=2).logprobs(logits)[0, :2].exp().tolist() == pytest.approx([0.625, 0.375])
    assert Sampler(0.5).logprobs(logits)[0].exp().tolist() == pytest.approx(
        [p / 0.365 for p in (0.25, 0.09, 0.0225, 0.0025)]
    )


def test_no_prefix_is_computed_twice_and_finished_rows_leave() -> None:
    """Tokens that pass through the layers: each prompt once, then one a slot and step."""
    policy = policy_of(SMALL)
    seen: list[int] = []
    policy.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    prompts = ragged(8)
    rows = generate(policy, prompts, max_new_tokens=40, temperature=1.2, stop_token_ids=range(3, 12), seed=1)
    assert seen[0] == sum(len(prompt) for prompt in prompts)
    steps = max(len(row.token_ids) for row in rows)
    assert len(seen) == steps
    for step, slots in enumerate(seen[1:], start=1):
        running = sum(len(row.token_ids) > step for row in rows)
        assert running <= slots < max(2 * running, 2)


def test_a_cache_that_grows_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = policy_of(DUAL_CONFIGS["dense"]), ragged(3, longest=4)
    before = generate(policy, prompts, max_new_tokens=60, temperature=0.0)
    capacities: list[int] = []
    real = module._Cache.reserve

    def reserve(cache: Any, length: int) -> None:
        if not capacities:
            cache.capacity = length  # as small as it can be
            for tensors in (cache.keys, cache.values):
                tensors[:] = [tensor[:, :, :length].clone() for tensor in tensors]
        real(cache, length)
        capacities.append(cache.capacity)

    monkeypatch.setattr(module._Cache, "reserve", reserve)
    assert generate(policy, prompts, max_new_tokens=60, temperature=0.0) == before
    assert 4 <= len(set(capacities)) <= 8  # doubling, not one by one


def test_bfloat16_decodes_as_its_own_forward_does() -> None:
    for config in (SMALL, DUAL_CONFIGS["dense"]):
        policy = Qwen3(config).init_weights(0).bfloat16()
        prompts = ragged(6)
        rows = generate(policy, prompts, max_new_tokens=20, seed=0)
        whole = [prompt + row.token_ids for prompt, row in zip(prompts, rows, strict=True)]
        for logits, prompt, row in zip(forward_logits(policy, whole), prompts, rows, strict=True):
            expected = logits.float().log_softmax(dim=-1)[len(prompt) - 1 : -1]
            picked = expected.gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row.logprobs), picked, atol=0.02, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    policy = policy_of(SMALL)
    for prompts, settings, message in (
        ([[1], []], {}, "prompt 1: expected at least one token"),
        ([[1, 96]], {}, "prompt 0: expected token ids below 96"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: expected >= 1"),
        ([[1]], {"temperature": -1.0}, "temperature: expected >= 0"),
        ([[1]], {"temperature": math.nan}, "temperature: expected >= 0"),
        ([[1]], {"top_p": 0.0}, "top_p: expected in"),
        ([[1]], {"top_k": 0}, "top_k: expected >= 1, or -1"),
        ([[1]], {"seed": [1, 2]}, "seed: expected one number or one for each of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(policy, prompts, **{"max_new_tokens": 4, **settings})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="native Qwen3"):
        generate(torch.nn.Linear(1, 1), [[1]], max_new_tokens=1)  # type: ignore[arg-type]
    assert generate(policy, [], max_new_tokens=4) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_computes_no_numbers_is_said_to(temperature: float) -> None:
    """argmax of NaN is token 0, again and again, and a search among NaN finds nothing."""
    policy = policy_of(SMALL)
    with torch.no_grad():
        policy.model.norm.weight[3] = math.nan
    with pytest.raises(ValueError, match="logits: expected numbers, got NaN or infinity in 2 of 2 rows"):
        generate(policy, [[1], [2, 3]], max_new_tokens=2, temperature=temperature)


def test_a_temperature_near_zero_is_greedy() -> None:
    policy, prompts = policy_of(SMALL), ragged(4)
    greedy = [row.token_ids for row in generate(policy, prompts, max_new_tokens=8, temperature=0.0)]
    for temperature in (1e-6, 1e-45):
        rows = generate(policy, prompts, max_new_tokens=8, temperature=temperature)
        assert [row.token_ids for row in rows] == greedy
        assert all(row.logprobs == [0.0] * 8 for row in rows)


def test_prompts_may_be_arrays() -> None:
    """As ``render_example`` gives them."""
    policy = policy_of(SMALL)
    rows = generate(policy, [[1, 2], [3]], max_new_tokens=4, seed=3)
    as_int32 = [np.array([1, 2], dtype=np.int32), torch.tensor([3])]
    assert generate(policy, as_int32, max_new_tokens=4, seed=np.int64(3)) == rows  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        generate(policy, [[1.5]], max_new_tokens=4)  # type: ignore[list-item]


def test_a_completion_ends_with_its_stop_token() -> None:
    policy = policy_of(SMALL)
    (free,) = generate(policy, [[5, 6]], max_new_tokens=10, temperature=0.0)
    stop = free.token_ids[3]
    (row,) = generate(policy, [[5, 6]], max_new_tokens=10, temperature=0.0, stop_token_ids=[stop])
    cut = free.token_ids.index(stop) + 1
    assert row == Completion(free.token_ids[:cut], free.logprobs[:cut], "stop")
    assert uniforms(3, 4).tolist() == uniforms(3, 8)[:4].tolist()  # a longer limit changes no earlier token
    assert policy.model.norm.weight.grad is None
