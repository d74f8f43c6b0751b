"""Rollouts of real vLLM engines against transformers on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from transformers import PreTrainedModel

from actors.rollout_fleet import RolloutFleet
from actors.rollout_worker import Job, RolloutWorker, sampled_logprobs
from model.tokenizer import load_tokenizer
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, GenerationRequest, RolloutGroup, SamplingParams
from tests.integration import rollout_models as kit

NEUTRAL = SamplingParams(max_new_tokens=48)
MAX_MODEL_LEN = 160


@dataclass
class Setup:
    fleet: RolloutFleet
    model: PreTrainedModel


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Iterator[Setup]:
    model = kit.make_model()
    path = kit.save(model, tmp_path_factory.mktemp("tiny"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    fleet = RolloutFleet(
        path,
        ModelConfig(path=path),
        RolloutConfig(num_workers=2, max_num_seqs=64, kv_cache_gib=0.25, max_batched_tokens=256),
        NEUTRAL,
        MAX_MODEL_LEN,
        seed=0,
    )
    yield Setup(fleet, model)
    fleet.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def groups(setup: Setup) -> list[RolloutGroup]:
    """More samples than the engines hold at once."""
    return setup.fleet.generate(kit.requests(24, 8))


def tokens(group: RolloutGroup) -> list[tuple[int, ...]]:
    return [tuple(rollout.token_ids.tolist()) for rollout in group.rollouts]


def worst_difference(model: PreTrainedModel, groups: list[RolloutGroup], temperature: float = 1.0) -> float:
    worst = 0.0
    for group in groups:
        for rollout in group.rollouts:
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            reference = kit.reference_logprobs(model, row, temperature)[len(group.prompt.token_ids) :]
            worst = max(worst, float(np.abs(reference - rollout.rollout_logprobs).max()))
    return worst


def test_groups_come_back_whole_and_in_their_place(groups: list[RolloutGroup]) -> None:
    assert [group.index for group in groups] == list(range(24))
    assert [group.prompt.prompt_id for group in groups] == [f"p{i}" for i in range(24)]
    assert all(len(group.rollouts) == 8 and group.num_rejected == 0 for group in groups)
    for rollout in (r for group in groups for r in group.rollouts):
        assert rollout.loss_mask.all()
        assert (rollout.policy_version == 0).all()
        assert (rollout.finish == FINISH_LENGTH) == (len(rollout) == 48 and rollout.token_ids[-1] not in (1, 3, 5, 7))


def test_prompts_that_are_computed_in_parts_sample_what_they_sample_alone(setup: Setup) -> None:
    """110 tokens each and 256 a step: every third prompt is cut, and a token is sampled and thrown away for it."""
    asked = kit.requests(12, 2, length=110, run_seed=5)
    together = setup.fleet.generate(asked)
    alone = [setup.fleet.generate([request])[0] for request in asked]
    assert [tokens(group) for group in together] == [tokens(group) for group in alone]
    assert setup.fleet.metrics()["generate/restarts"] == 0


def test_logprobs_are_those_of_the_model_itself(setup: Setup, groups: list[RolloutGroup]) -> None:
    """The folder's generation_config (repetition_penalty 1.5, top_k 20, temperature 0.3) changes nothing."""
    assert worst_difference(setup.model, groups[:6]) < 1e-4


def test_effective_sampling_is_neutral_and_stops_at_every_end(setup: Setup) -> None:
    effective = setup.fleet.effective_sampling()
    expected = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 48,
        "min_tokens": 0,
        "stop_token_ids": sorted({kit.CONFIG_EOS, kit.GENERATION_EOS, kit.ENDOFTEXT, kit.IM_END}),
    }
    effective["top_k"] = effective["top_k"] or -1  # vLLM writes "off" as 0 or -1
    assert {key: effective[key] for key in expected} == expected


def test_tokens_are_spread_as_the_model_says(setup: Setup) -> None:
    """First tokens of 1,600 samples against the exact distribution: a truncated or sharpened one would stand out."""
    requests = kit.requests(25, 64, same_prompt=True)
    groups = setup.fleet.generate(requests, replace(NEUTRAL, max_new_tokens=1))
    first = np.concatenate([rollout.token_ids for group in groups for rollout in group.rollouts])
    assert len(first) == 1600
    with torch.no_grad():
        ids = torch.as_tensor(requests[0].prompt.token_ids, dtype=torch.long)
        p = torch.softmax(setup.model(ids[None]).logits[0, -1].float(), -1).numpy()
    top = np.argsort(-p)[:20]
    seen = np.isin(first, top).mean()
    expected = p[top].sum()
    assert abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / 1600)
    assert seen < 1.0  # top_k=20 of the generation_config would give exactly 1


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_logprobs_are_of_the_distribution_that_was_sampled(setup: Setup, temperature: float) -> None:
    groups = setup.fleet.generate(kit.requests(8, 4), replace(NEUTRAL, temperature=temperature))
    ratios = []
    for group in groups:
        for rollout in group.rollouts:
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            learner = kit.reference_logprobs(setup.model, row, temperature)[len(group.prompt.token_ids) :]
            ratios.append(np.exp(learner - rollout.rollout_logprobs))
    assert abs(float(np.concatenate(ratios).mean()) - 1) < 0.02
    assert worst_difference(setup.model, groups, temperature) < 1e-4


def test_no_two_samples_of_one_prompt_are_equal_on_any_engine(setup: Setup) -> None:
    groups = setup.fleet.generate(kit.requests(8, 8, same_prompt=True))
    samples = [sample for group in groups for sample in tokens(group)]
    assert len(set(samples)) == 64
    others = setup.fleet.generate(kit.requests(8, 8, same_prompt=True, run_seed=1))
    assert not set(samples) & {sample for group in others for sample in tokens(group)}


def test_samples_depend_on_seeds_and_not_on_workers(setup: Setup, groups: list[RolloutGroup]) -> None:
    alone = setup.fleet.workers.call(
        1, RolloutWorker.pump, [Job(10_000 + r.index, r, NEUTRAL) for r in kit.requests(6, 8)], 60.0
    )
    finished = {job.ticket - 10_000: job for job in alone.finished}
    while len(finished) < 6:
        reply = setup.fleet.workers.call(1, RolloutWorker.pump, [], 60.0)
        finished |= {job.ticket - 10_000: job for job in reply.finished}
    for index, job in finished.items():
        assert [tuple(r.token_ids.tolist()) for r in job.rollouts] == tokens(groups[index])
        for mine, theirs in zip(job.rollouts, groups[index].rollouts, strict=True):
            np.testing.assert_allclose(mine.rollout_logprobs, theirs.rollout_logprobs, atol=1e-5)


def test_a_stop_id_ends_a_completion_and_leaves_its_text_out(setup: Setup) -> None:
    greedy = replace(NEUTRAL, temperature=0.0)
    (free,) = setup.fleet.generate(kit.requests(1, 1), greedy)
    sampled = free.rollouts[0].token_ids.tolist()
    place = next(i for i in range(4, 48) if sampled[i] not in sampled[:i])
    stop = replace(greedy, stop_token_ids=(sampled[place],))
    (stopped,) = setup.fleet.generate(kit.requests(1, 1), stop)
    rollout = stopped.rollouts[0]
    assert rollout.finish == FINISH_STOP
    assert rollout.token_ids.tolist() == sampled[: place + 1]
    assert rollout.loss_mask[-1]  # the policy sampled the stop token, so it is trained on
    tokenizer = kit.PreTrainedTokenizerFast.from_pretrained(setup.fleet.model_path)
    assert rollout.text == tokenizer.decode(sampled[:place], skip_special_tokens=False)
    (exact,) = setup.fleet.generate(kit.requests(1, 1), replace(stop, max_new_tokens=place + 1))
    assert exact.rollouts[0].finish == FINISH_STOP  # ends at the last allowed token: not truncated
    (cut,) = setup.fleet.generate(kit.requests(1, 1), replace(stop, max_new_tokens=place))
    assert cut.rollouts[0].finish == FINISH_LENGTH
    assert cut.rollouts[0].text == rollout.text


def test_poll_gives_each_group_once_while_generate_waits_for_its_own(setup: Setup) -> None:
    fleet = setup.fleet
    fleet.submit(kit.requests(12, 4))
    own = fleet.generate(kit.requests(2, 1, run_seed=9), replace(NEUTRAL, max_new_tokens=4))
    assert [group.index for group in own] == [0, 1]
    assert all(len(group.rollouts) == 1 for group in own)
    seen: list[int] = []
    while fleet.num_pending:
        seen += [group.index for group in fleet.poll(5.0)]
    assert sorted(seen) == list(range(12))
    assert fleet.poll(5.0) == []


def test_scored_tokens_match_the_reference_whatever_the_prefix_cache_holds(setup: Setup) -> None:
    rows = [kit.prompt(i, length).token_ids for i, length in enumerate((2, 33, 100, MAX_MODEL_LEN))]
    for _ in range(2):
        for row, own in zip(rows, setup.fleet.logprobs(rows), strict=True):
            assert np.isnan(own[0])
            np.testing.assert_allclose(own[1:], kit.reference_logprobs(setup.model, row)[1:], atol=1e-4)


def test_metrics_count_what_was_sampled(setup: Setup) -> None:
    setup.fleet.metrics()
    groups = setup.fleet.generate(kit.requests(4, 4, length=100))
    metrics = setup.fleet.metrics()
    assert metrics["generate/tokens"] == sum(len(r) for g in groups for r in g.rollouts)
    assert metrics["generate/busy_seconds"] > 0
    assert metrics["generate/prefix_hit_share"] > 0.8  # samples of a group share their prompt's blocks: 96 of 100
    assert metrics["generate/restarts"] == metrics["generate/requeued"] == 0
    assert "generate/tokens_per_s" not in setup.fleet.metrics()


def test_requests_that_cannot_run_are_errors_that_name_the_prompt(setup: Setup) -> None:
    with pytest.raises(ValueError, match=r"prompt p0: 120 tokens \+ max_new_tokens=48 exceed max_model_len=160"):
        setup.fleet.submit(kit.requests(1, 1, length=120))
    with pytest.raises(ValueError, match=r"p0: 65 samples exceed rollout.max_num_seqs=64"):
        setup.fleet.submit(kit.requests(1, 65))
    with pytest.raises(ValueError, match="greedy"):
        setup.fleet.submit(kit.requests(1, 2), replace(NEUTRAL, temperature=0.0))
    assert setup.fleet.num_pending == 0


def entry(logprob: float) -> SimpleNamespace:
    return SimpleNamespace(logprob=logprob)


def test_logprobs_are_looked_up_by_the_sampled_id_and_never_filled() -> None:
    top_first = [{9: entry(-0.1), 4: entry(-2.0)}, {5: entry(-1.0)}]
    np.testing.assert_allclose(sampled_logprobs([4, 5], top_first), [-2.0, -1.0])
    assert sampled_logprobs([4, 6], top_first) is None  # the sampled id is not there
    assert sampled_logprobs([4], top_first) is None
    assert sampled_logprobs([4, 5], None) is None
    assert sampled_logprobs([4], [{4: entry(float("nan"))}]) is None
    assert sampled_logprobs([4], [{4: entry(float("-inf"))}]) is None


def budget_requests(budgets: list[int | None]) -> list[GenerationRequest]:
    """Prompts that end inside a think block, each with a budget of its own."""
    return [
        replace(
            request,
            prompt=replace(request.prompt, text=request.prompt.text + "<think>\n", columns={"thinking_budget": budget}),
        )
        for request, budget in zip(kit.requests(len(budgets), 4), budgets, strict=True)
    ]


def test_budgets_of_different_sizes_share_an_engine(setup: Setup) -> None:
    """Budgets of 0, 6 and 20 tokens beside prompts without one, which get the tokens of plain generation."""
    budgets: list[int | None] = [None, 6, 20, 0, None, 6, 20, 0]
    sampling = replace(NEUTRAL, thinking_stop_text="\n</think>\n")
    plain = setup.fleet.generate(kit.requests(len(budgets), 4), sampling)
    groups = setup.fleet.generate(budget_requests(budgets), sampling)
    stop_text = load_tokenizer(setup.fleet.model_path)("\n</think>\n", add_special_tokens=False)["input_ids"]
    cut = 0
    for budget, group, without in zip(budgets, groups, plain, strict=True):
        assert len(group.rollouts) == 4
        if budget is None:
            assert tokens(group) == tokens(without)
            continue
        for rollout, same_seed in zip(group.rollouts, without.rollouts, strict=True):
            assert len(rollout) <= sampling.max_new_tokens
            thought = rollout.token_ids[:budget].tolist()
            assert thought == same_seed.token_ids[:budget].tolist()
            if rollout.loss_mask.all():  # ended by itself within the budget
                assert len(rollout) <= budget
                continue
            cut += 1
            given = rollout.token_ids[budget : budget + len(stop_text)]
            assert given.tolist() == stop_text
            assert np.flatnonzero(~rollout.loss_mask).tolist() == list(range(budget, budget + len(stop_text)))
            assert np.isnan(rollout.rollout_logprobs[~rollout.loss_mask]).all()
            assert (rollout.finish == FINISH_LENGTH) == (
                len(rollout) == 48 and rollout.token_ids[-1] not in (1, 3, 5, 7)
            )
            assert "</think>" in rollout.text
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            reference = kit.reference_logprobs(setup.model, row, 1.0)[len(group.prompt.token_ids) :]
            sampled = rollout.loss_mask
            np.testing.assert_allclose(rollout.rollout_logprobs[sampled], reference[sampled], atol=1e-4)
    assert cut > 12


def test_the_same_budget_again_gives_the_same_tokens(setup: Setup) -> None:
    sampling = replace(NEUTRAL, thinking_stop_text="\n</think>\n", thinking_budget=6)
    requests = [
        replace(r, prompt=replace(r.prompt, text="<think>\n", columns={})) for r in budget_requests([None, None, None])
    ]
    first, again = (setup.fleet.generate(requests, sampling) for _ in range(2))
    assert [tokens(group) for group in first] == [tokens(group) for group in again]
    after = [tuple(r.token_ids[r.loss_mask][6:]) for group in first for r in group.rollouts if not r.loss_mask.all()]
    assert len(set(after)) == len(after)  # the calls after the thought do not share a seed


def test_a_budget_that_is_no_number_is_refused(setup: Setup) -> None:
    (request,) = budget_requests([1])
    bad = replace(request, prompt=replace(request.prompt, columns={"thinking_budget": "many"}))
    with pytest.raises(ValueError, match="thinking_budget: expected a number of tokens >= 0 or null, got 'many'"):
        setup.fleet.submit([bad])
