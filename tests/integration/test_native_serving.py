"""A native model's folder, served: native code, transformers and vLLM choose the same tokens, before and after a live
update of every parameter through the real publishing path."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.payload import flatten
from actors.rollout_fleet import RolloutFleet
from actors.weight_sync import WeightSync
from model.hf import load_policy
from model.qwen3 import Qwen3
from rlplatform.config import ModelConfig, PublishConfig, RolloutConfig
from rlplatform.types import GenerationRequest, SamplingParams
from tests.integration import rollout_models as kit

NEW_TOKENS = 24
LENGTHS = np.random.default_rng(0).integers(1, 60, 32)  # of the prompts, in tokens
KINDS: dict[str, dict[str, Any]] = {
    "dense tied": {},
    "dense untied": {"tied": False},
    "moe": {"experts": 48, "tied": False},  # a width that the engine pads
}
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0)


class Case:
    """One model, its engine, and the learner's side of publishing."""

    def __init__(self, folder: Path, **kind: Any) -> None:
        self.folder, self.policy = folder, kit.make_native(**kind)
        self.path = kit.save_native(self.policy, folder / "initial")
        self.fleet = RolloutFleet(
            self.path,
            ModelConfig(path=self.path),
            RolloutConfig(cpus_per_worker=0.5, max_num_seqs=32, kv_cache_gib=0.25),
            GREEDY,
            128,
            seed=0,
        )
        self.sync = WeightSync(self.fleet, PublishConfig())
        self.version = 0

    def gather_weights(self) -> Any:
        return ray.put(flatten(self.policy.to_checkpoint(self.policy.hf_named_parameters())))

    def move(self) -> tuple[str, dict[str, float]]:
        """Noise on every parameter, published; returns an exported folder of the same weights."""
        self.version += 1
        kit.add_noise(self.policy, self.version)
        metrics = self.sync.publish(self, self.version)
        return kit.save_native(self.policy, self.folder / f"version{self.version}"), metrics

    def engine_tokens(self) -> list[list[int]]:
        requests = [
            GenerationRequest(kit.prompt(i, int(length)), 1, self.version, i, i) for i, length in enumerate(LENGTHS)
        ]
        groups = sorted(self.fleet.generate(requests, GREEDY), key=lambda group: int(group.prompt.prompt_id[1:]))
        assert len(groups) == len(LENGTHS)
        assert all(set(group.rollouts[0].policy_version) == {self.version} for group in groups)
        return [group.rollouts[0].token_ids.tolist() for group in groups]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        started = {
            name: pool.submit(Case, tmp_path_factory.mktemp(name.replace(" ", "-")), **kind)
            for name, kind in KINDS.items()
        }
        cases = {name: future.result() for name, future in started.items()}
    yield cases
    for case in cases.values():
        case.fleet.close()
    ray.shutdown()


PROMPTS = [kit.prompt(i, int(length)).token_ids.tolist() for i, length in enumerate(LENGTHS)]
ENDS = {kit.CONFIG_EOS, kit.ENDOFTEXT, kit.IM_END}


def cut(tokens: list[int]) -> list[int]:
    """Up to and with the first token that ends a completion."""
    end = next((place for place, token in enumerate(tokens) if token in ENDS), len(tokens) - 1)
    return tokens[: end + 1]


@torch.no_grad()
def native_tokens(policy: Qwen3) -> list[list[int]]:
    """Greedy by whole forwards over all rows packed; nothing is cached."""
    rows = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW_TOKENS):
        lengths = torch.tensor([len(row) for row in rows])
        boundaries = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
        hidden = policy(torch.tensor([token for row in rows for token in row]), positions, boundaries)
        logits = hidden[boundaries[1:].long() - 1] @ policy.lm_head_weight.T
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.append(token)
    return [cut(row[len(prompt) :]) for row, prompt in zip(rows, PROMPTS, strict=True)]


@torch.no_grad()
def transformers_tokens(path: str) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(path)
    longest = max(map(len, PROMPTS))
    ids = torch.zeros(len(PROMPTS), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(PROMPTS):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=sorted(ENDS)
    )
    return [cut(row) for row in out[:, longest:].tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_three_implementations_choose_the_same_tokens_before_and_after_a_live_update(
    cases: dict[str, Case], kind: str
) -> None:
    case = cases[kind]
    paths, chosen = [case.path], []
    for version in range(3):
        if version:
            path, metrics = case.move()
            paths.append(path)
            assert metrics["publish/probed_tensors"] == 0
            assert metrics["publish/verified_tensors"] >= len(dict(case.policy.named_parameters()))
        loaded = load_policy(paths[-1])
        assert isinstance(loaded, Qwen3)
        own = native_tokens(loaded)
        assert transformers_tokens(paths[-1]) == own
        assert case.engine_tokens() == own
        assert len({tuple(tokens) for tokens in own}) > len(own) // 2
        chosen.append(own)
    for before, after in pairwise(chosen):  # an engine that kept its weights would fail
        assert sum(a != b for a, b in zip(before, after, strict=True)) > len(PROMPTS) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_the_engine_are_the_native_models(cases: dict[str, Case], kind: str) -> None:
    from actors.parity import rows_of
    from model.logprobs import TokenScorer

    case = cases[kind]
    case.move()
    batch = rows_of(case.fleet.generate(kit.requests(16, 2), SamplingParams(max_new_tokens=NEW_TOKENS)))
    tokens = torch.from_numpy(batch.token_ids).long()
    boundaries = torch.from_numpy(batch.cu_seqlens)
    positions = torch.cat([torch.arange(length) for length in np.diff(batch.cu_seqlens).tolist()])
    scored = torch.from_numpy(np.flatnonzero(batch.loss_mask))
    with torch.no_grad():
        own, _ = TokenScorer(case.policy)(tokens, positions, boundaries, scored)
    np.testing.assert_allclose(own.numpy(), batch.rollout_logprobs[batch.loss_mask], atol=5e-5)
