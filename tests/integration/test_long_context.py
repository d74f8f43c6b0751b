"""Beyond the length a checkpoint was trained on: learner and engine agree, before and after a live weight update.

The checkpoint has positions for 128 tokens and base 10,000; the run's setting makes that base 1,000,000 and four times
as many. The checkpoint stays as it is: what learner, engine and fine-tuning share is the setting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from actors.learner import LearnerGroup
from actors.parity import parity_gate, reference_difference, rows_of
from actors.payload import flatten
from actors.rollout_fleet import RolloutFleet
from actors.rollout_worker import RolloutWorker
from actors.weight_sync import WeightSync
from model.config import PRESETS, YarnConfig
from model.generate import generate
from model.hf import load_qwen3
from model.qwen3 import Qwen3
from model.rope import cos_sin
from pretrain.sft import run_sft
from rlplatform.config import (
    AlgorithmConfig,
    DataConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PublishConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
)
from rlplatform.types import RolloutBatch, SamplingParams
from tests.integration import rollout_models as kit

ORIGINAL, FACTOR = 128, 4.0
LENGTHS = (30, 128, 129, 257, 400, 511)  # below, at, just beyond, beyond twice, near four times
SETTING = {"rope_theta": 1_000_000.0, "yarn_factor": FACTOR, "yarn_original_length": ORIGINAL}


def short_checkpoint(folder: Path, *, experts: int = 0) -> str:
    """Weights for which positions matter: without the setting logprobs are off by tenths of nats and more."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": kit.VOCAB,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
        "eos_token_id": kit.CONFIG_EOS,
        "pad_token_id": 0,
    }
    model: PreTrainedModel
    if experts:
        more = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": experts, "norm_topk_prob": True}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **more))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "mlp.gate." not in name:  # routers stay soft: no token at a tie of experts
                parameter.mul_(5)
    return kit.save(model, folder)


def start_fleet(path: str) -> RolloutFleet:
    rollout = RolloutConfig(num_workers=1, cpus_per_worker=0.5, max_num_seqs=16, kv_cache_gib=0.25)
    model = ModelConfig(path, **SETTING)  # type: ignore[arg-type]
    return RolloutFleet(path, model, rollout, SamplingParams(max_new_tokens=48), int(FACTOR * ORIGINAL), 0)


class Pair:
    """A learner and a fleet that know one checkpoint and one setting."""

    def __init__(self, path: str) -> None:
        self.path = path
        config = RLConfig(
            model=ModelConfig(path, **SETTING),  # type: ignore[arg-type]
            sampling=SamplingConfig(max_new_tokens=48),
            reward=RewardConfig(functions={"math": 1.0}),
            algorithm=AlgorithmConfig(kl_coef=0.01),
            optimizer=OptimizerConfig(lr=1e-2),
            learner=LearnerConfig(cpus_per_worker=0.5),
        )
        with ThreadPoolExecutor(2) as pool:
            fleet, learner = pool.submit(start_fleet, path), pool.submit(LearnerGroup, config, path)
        self.fleet, self.learner = fleet.result(), learner.result()
        self.learner.attach(WeightSync(self.fleet, PublishConfig()))

    def samples(self) -> RolloutBatch:
        """Rows whose every sampled token lies beyond twice the original length."""
        return rows_of(self.fleet.generate(kit.requests(4, 2, length=400)))

    def worst(self, model: PreTrainedModel) -> float:
        """The largest |difference| in nats between the engine and ``model``, short rows and long ones."""
        rows = [kit.prompt(index, length).token_ids for index, length in enumerate(LENGTHS)]
        scored = self.fleet.workers.call(0, RolloutWorker.logprobs, rows)
        return max(
            float(np.abs(engine - kit.reference_logprobs(model, row))[1:].max())
            for row, engine in zip(rows, scored, strict=True)
        )


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Experts:
    """A fleet that serves a mixture of experts, and the native policy whose weights it is sent."""

    def __init__(self, path: str) -> None:
        self.fleet = start_fleet(path)
        self.policy = load_qwen3(path, rope=self.fleet.model.rope)

    def gather_weights(self) -> ray.ObjectRef:
        return ray.put(flatten(self.policy.to_checkpoint(self.policy.hf_named_parameters())))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Experts]]:
    """Side by side."""
    dense = short_checkpoint(tmp_path_factory.mktemp("short"))
    moe = short_checkpoint(tmp_path_factory.mktemp("moe"), experts=64)
    with ThreadPoolExecutor(2) as pool:
        futures = pool.submit(Pair, dense), pool.submit(Experts, moe)
        pair, experts = futures[0].result(), futures[1].result()
    yield pair, experts
    pair.learner.close()
    pair.fleet.close()
    experts.fleet.close()


@pytest.fixture
def pair(started: tuple[Pair, Experts]) -> Pair:
    return started[0]


@pytest.fixture
def experts(started: tuple[Pair, Experts]) -> Experts:
    return started[1]


def test_the_gate_and_the_reference_model_hold_beyond_the_original_length(pair: Pair) -> None:
    prompts = [kit.prompt(i, 400) for i in range(4)]
    gate = parity_gate(pair.learner, pair.fleet, prompts, dtype="float32", tolerance=0.0, seed=0)
    assert gate["parity/abs_logprob_diff_max"] < 1e-4
    batch = pair.samples()
    own, frozen = (pair.learner.logprobs(batch, reference=reference) for reference in (False, True))
    np.testing.assert_allclose(own, frozen, atol=1e-6)  # no update yet
    rope = pair.fleet.model.rope
    assert reference_difference(pair.path, batch, "float32", rope) < 1e-5


def test_after_a_live_update_learner_engine_and_export_agree_at_every_length(pair: Pair, tmp_path: Path) -> None:
    for step in range(2):
        batch = pair.samples()
        pair.learner.update(
            pair.learner.add_logprobs(
                replace(batch, advantages=np.where(np.arange(len(batch.token_ids)) % 2, 1.0, -1.0).astype(np.float32))
            )
        )
        stale = pair.learner.logprobs(batch)
        assert np.abs(stale - batch.rollout_logprobs)[batch.loss_mask].max() > 0.1  # the weights did move
        pair.learner.publish()
        batch = pair.samples()
        own = pair.learner.logprobs(batch)
        assert np.abs(own - batch.rollout_logprobs)[batch.loss_mask].max() < 1e-4

        folder = tmp_path / str(step)
        pair.learner.export(str(folder))
        values = json.loads((folder / "config.json").read_text())
        assert values["rope_parameters"]["rope_type"] == "yarn"
        assert values["rope_parameters"]["rope_theta"] == 1_000_000.0
        assert values["max_position_embeddings"] == 512
        exported = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert pair.worst(exported) < 1e-4
        # The same weights at the checkpoint's own positions are another model: this test can fail.
        plain = AutoModelForCausalLM.from_pretrained(
            folder,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        ).eval()
        assert pair.worst(plain) > 0.1


def test_a_mixture_of_experts_agrees_before_and_after_a_live_update(experts: Experts) -> None:
    rows = [kit.prompt(index, length).token_ids for index, length in enumerate(LENGTHS)]
    sync = WeightSync(experts.fleet, PublishConfig())
    generator = torch.Generator().manual_seed(0)
    for version in range(3):
        if version:
            with torch.no_grad():
                for parameter in experts.policy.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
            sync.publish(experts, version)
        scored = experts.fleet.workers.call(0, RolloutWorker.logprobs, rows)
        for row, engine in zip(rows, scored, strict=True):
            np.testing.assert_allclose(engine[1:], native_logprobs(experts.policy, row), atol=1e-4)


def native_logprobs(policy: Qwen3, row: np.ndarray) -> np.ndarray:
    tokens = torch.from_numpy(row.astype(np.int64))
    with torch.no_grad():
        hidden = policy(tokens, torch.arange(len(row)), torch.tensor([0, len(row)], dtype=torch.int32))
        logprobs = (hidden[:-1] @ policy.lm_head_weight.T).log_softmax(dim=-1)
    return logprobs.gather(1, tokens[1:, None])[:, 0].numpy()


def test_greedy_tokens_of_the_engine_are_those_of_generate(pair: Pair, tmp_path: Path) -> None:
    """Prompts of 300 to 410 tokens of a model made for 128."""
    pair.learner.export(str(tmp_path))
    prompts = [kit.prompt(i, 300 + 10 * i) for i in range(12)]
    requests = [replace(request, prompt=prompt) for request, prompt in zip(kit.requests(12, 1), prompts, strict=True)]
    groups = pair.fleet.generate(requests, SamplingParams(max_new_tokens=48, temperature=0.0))
    policy = load_qwen3(str(tmp_path))
    stops = {kit.CONFIG_EOS, kit.GENERATION_EOS, kit.IM_END, kit.ENDOFTEXT}
    rows = [prompt.token_ids.tolist() for prompt in prompts]
    ours = generate(policy, rows, max_new_tokens=48, temperature=0.0, stop_token_ids=stops)
    for group, row in zip(groups, ours, strict=True):
        assert group.rollouts[0].token_ids.tolist() == row.token_ids
        np.testing.assert_allclose(group.rollouts[0].rollout_logprobs, row.logprobs, atol=1e-4)


def test_fine_tuning_uses_the_setting_and_writes_it_down(pair: Pair, tmp_path: Path) -> None:
    """One row of more than 256 tokens: the first loss is the stretched model's, not the checkpoint's."""
    rows = [{"prompt": "abcdefg" * 50, "completion": "hijklmn" * 8}]
    config = SFTConfig(
        run_dir=str(tmp_path),
        num_steps=1,
        tokens_per_step=512,
        max_tokens=512,
        model=ModelConfig(pair.path, **SETTING),  # type: ignore[arg-type]
        data=DataConfig(prompt="prompt", chat=False),
        learner=LearnerConfig(cpus_per_worker=0.5),
        optimizer=OptimizerConfig(lr=1e-12),
    )
    result = run_sft(config, rows=rows)
    values = json.loads((result.model / "config.json").read_text())
    assert values["rope_parameters"]["factor"] == FACTOR
    tuned = AutoModelForCausalLM.from_pretrained(result.model).eval()
    assert tuned.config.rope_parameters["rope_theta"] == 1_000_000.0
    losses = []
    for model in (tuned, AutoModelForCausalLM.from_pretrained(pair.path).eval()):
        losses.append(completion_loss(model, pair.path, rows[0]))
    assert result.summary["loss"] == pytest.approx(losses[0], abs=1e-4)
    assert abs(losses[0] - losses[1]) > 0.01


def completion_loss(model: PreTrainedModel, path: str, row: dict[str, str]) -> float:
    from transformers import AutoTokenizer

    from pretrain.examples import load_examples

    tokenizer = AutoTokenizer.from_pretrained(path)
    data = DataConfig(prompt="prompt", chat=False)
    examples, _ = load_examples(data, tokenizer, rows=[row], completion="completion", max_tokens=512)
    assert len(examples.token_ids) > 2 * ORIGINAL
    return -float(kit.reference_logprobs(model, examples.token_ids)[examples.loss_mask].mean())


def test_the_tables_are_those_of_vllms_own_yarn_class() -> None:
    """At 0, one, two and four times the original length, tiny and as Qwen3 is served."""
    from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

    for name, yarn in (("tiny", YarnConfig(4.0, 64)), ("Qwen3-8B", YarnConfig(4.0, 32_768))):
        config = replace(PRESETS[name], yarn=yarn)
        original = yarn.original_max_position_embeddings
        engine = object.__new__(YaRNScalingRotaryEmbedding)  # its tables alone, without an engine around it
        engine.__dict__.update(
            scaling_factor=yarn.factor,
            beta_fast=32,
            beta_slow=1,
            truncate=True,
            mscale=yarn.cos_sin_scale,
            rotary_dim=config.head_dim,
            base=config.rope_theta,
            max_position_embeddings=original,
        )
        positions = torch.tensor([0, 1, original - 1, original, 2 * original, 4 * original - 1])
        theirs = engine._compute_cos_sin_cache()[positions]
        assert len(engine._compute_cos_sin_cache()) == 4 * original
        ours = torch.cat([table[:, : config.head_dim // 2] for table in cos_sin(config, positions)], dim=-1)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
