"""Publishing against real engines: what was sent is what they compute with, or the run stops and says where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from actors.fleet import ActorError, Fleet, FleetActor
from actors.learner import LearnerGroup
from actors.parity import parity_gate, reference_difference, rows_of
from actors.payload import Payload, flatten
from actors.rollout_fleet import RolloutFleet
from actors.rollout_worker import RolloutWorker
from actors.weight_sync import WeightSync
from rlplatform.config import (
    LearnerConfig,
    ModelConfig,
    PublishConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SamplingConfig,
)
from rlplatform.roles import RunStopped
from rlplatform.types import RolloutGroup, SamplingParams
from tests.integration import rollout_models as kit

MAX_MODEL_LEN = 260
PROBES = PublishConfig(full_verify_max_mib=0, full_verify_every=0)  # exact on the first publish only


class SabotagedWorker(RolloutWorker):
    """The real worker; a test may take away a cure or damage something inside its process."""

    def sabotage(self, what: str) -> None:
        from actors import vllm_extension as extension

        self._undo: dict[str, Any] = getattr(self, "_undo", {})
        original = extension.repack_tied_head

        if what == "no cure for tied heads":
            self._patch(extension, "repack_tied_head", lambda model: None)
        elif what == "no cure for experts":
            self._patch(extension, "forget_packed_experts", lambda model: None)
        elif what == "no reset of the prefix cache":
            self._patch(self._engine, "reset_prefix_cache", lambda **_: False)
        elif what == "one value of a norm":
            self._patch(extension, "repack_tied_head", lambda m: (original(m), m.model.norm.weight.data[3].mul_(1.5)))
        elif what == "one column of a packed matrix":
            self._patch(extension, "repack_tied_head", lambda m: (original(m), _spoil_column(m, 100)))
        else:
            raise ValueError(what)

    def _patch(self, owner: Any, name: str, value: Any) -> None:
        self._undo[name] = (owner, getattr(owner, name))
        setattr(owner, name, value)

    def repair(self) -> None:
        for name, (owner, value) in self._undo.items():
            setattr(owner, name, value)
        self._undo.clear()


def _spoil_column(model: Any, column: int) -> None:
    """The layer multiplies with a matrix of which one column is not what was sent."""
    projection = model.model.layers[2].mlp.down_proj
    right = projection.cpu_linear

    def wrong(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x.clone()
        x[..., column] *= 1.01
        return right(x, weight, bias)

    projection.cpu_linear = wrong


class Learner:
    """Holds a model and hands out its payload, as the learner's rank 0 does."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.damage: Callable[[Payload], Payload] = lambda payload: payload
        self.change: Callable[[dict[str, torch.Tensor]], None] = lambda state: None

    def gather_weights(self) -> Any:
        state = kit.checkpoint_tensors(self.model, self.folder / "sent")
        self.change(state)
        return ray.put(self.damage(flatten(state)))


class Source(FleetActor):
    """Stands where the learner's rank 0 stands, in a process of its own."""

    def pack(self, folder: str) -> list[Any]:
        return [ray.put(flatten(load_file(f"{folder}/model.safetensors")))]


class RemoteLearner(Learner):
    """A learner whose payload is made, and broadcast, by another process."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        super().__init__(model, folder)
        self.workers = Fleet(Source, "learner", 1, cpus=0.5, call_timeout_s=60.0)

    def gather_weights(self) -> Any:
        kit.checkpoint_tensors(self.model, self.folder / "sent")
        return self.workers.call(0, Source.pack, str(self.folder / "sent"))[0]


class Case:
    """One kind of model: its fleet, and a learner whose weights have moved away from what the engines loaded."""

    def __init__(self, folder: Path, model: PreTrainedModel, num_workers: int = 1, ranks: int = 1) -> None:
        self.folder, self.model = folder, model
        path = kit.save(model, folder / "initial")
        self.fleet = RolloutFleet(
            path,
            ModelConfig(path=path),
            RolloutConfig(
                num_workers=num_workers,
                cpus_per_worker=0.5,
                tensor_parallel_size=ranks,
                max_num_seqs=64,
                kv_cache_gib=0.25,
            ),
            SamplingParams(max_new_tokens=48),
            MAX_MODEL_LEN,
            seed=0,
            worker_class=SabotagedWorker,
        )
        self.learner = Learner(self.model, folder)
        self.version = 0

    def publish(self, sync: WeightSync | None = None, learner: Learner | None = None) -> dict[str, float]:
        """Move the weights and publish them as the next version."""
        self.version += 1
        kit.add_noise(self.model, self.version)
        return (sync or WeightSync(self.fleet, PublishConfig())).publish(learner or self.learner, self.version)

    def each(self, method: Callable[..., Any], *args: Any) -> None:
        for worker in self.fleet.workers.live_workers:
            self.fleet.workers.call(worker, method, *args)

    def assert_engines_agree(self, tolerance: float = 1e-4) -> None:
        rows = [kit.prompt(i, 80).token_ids for i in range(4)]
        for worker in self.fleet.workers.live_workers:
            assert self.fleet.workers.call(worker, RolloutWorker.version) == self.version
            for row, own in zip(rows, self.fleet.workers.call(worker, RolloutWorker.logprobs, rows), strict=True):
                np.testing.assert_allclose(own[1:], kit.reference_logprobs(self.model, row)[1:], atol=tolerance)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """vLLM's segments that these processes hold: other tests may run beside this one and hold their own."""
    held = {Path(mapped.path) for process in processes for mapped in process.memory_maps()}
    return {
        str(path) for path in held if path.parent == Path("/dev/shm") and path.name.startswith(("vllm_dist_", "psm_"))
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Iterator[dict[str, Case]]:
    """Started side by side: two engines; one engine over two ranks with experts that it pads and a head of its own,
    one of its layers dense; one with experts and a tied head."""
    tied, untied, moe = kit.make_model(), kit.make_model(tied=False, experts=48), kit.make_model(experts=64)
    with ThreadPoolExecutor(3) as pool:
        futures = {
            "tied": pool.submit(Case, tmp_path_factory.mktemp("tied"), tied, num_workers=2),
            "untied": pool.submit(Case, tmp_path_factory.mktemp("untied"), untied, ranks=2),
            "moe": pool.submit(Case, tmp_path_factory.mktemp("moe"), moe),
        }
        started = {name: future.result() for name, future in futures.items()}
    yield started
    ranks = psutil.Process(started["untied"].fleet.workers.incarnation(0).pid).children(recursive=True)
    assert len(ranks) >= 2
    segments = shared_memory(ranks)
    assert segments
    for case in started.values():
        case.fleet.close()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []
    assert [path for path in sorted(segments) if Path(path).exists()] == []


@pytest.fixture
def tied(cases: dict[str, Case]) -> Case:
    return cases["tied"]


@pytest.fixture
def untied(cases: dict[str, Case]) -> Case:
    return cases["untied"]


@pytest.fixture
def moe(cases: dict[str, Case]) -> Case:
    return cases["moe"]


@pytest.fixture(params=["tied", "untied", "moe"])
def case(request, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_noise_on_every_parameter_reaches_every_engine(case: Case) -> None:
    num_tensors = len(kit.checkpoint_tensors(case.model, case.folder / "count"))
    for _ in range(2):
        metrics = case.publish()
        case.assert_engines_agree()
        tied_head = case.model.config.tie_word_embeddings
        assert metrics["publish/verified_tensors"] == num_tensors + tied_head
        assert metrics["publish/probed_tensors"] == 0
        num_bytes = sum(p.numel() * 4 for p in case.model.parameters())
        assert num_bytes <= metrics["publish/bytes"] <= num_bytes + 64 * num_tensors


def test_a_published_engine_equals_a_fresh_one(tied: Case) -> None:
    tied.publish()
    path = kit.save(tied.model, tied.folder / "fresh")
    config = RolloutConfig(num_workers=1, cpus_per_worker=0.5, kv_cache_gib=0.25)
    fresh = RolloutFleet(path, ModelConfig(path=path), config, SamplingParams(max_new_tokens=48), MAX_MODEL_LEN, seed=0)
    try:
        theirs = fresh.generate(kit.requests(4, 4))
        ours = tied.fleet.generate(kit.requests(4, 4))
        for one, other in zip(ours, theirs, strict=True):
            for a, b in zip(one.rollouts, other.rollouts, strict=True):
                np.testing.assert_array_equal(a.token_ids, b.token_ids)
                np.testing.assert_allclose(a.rollout_logprobs, b.rollout_logprobs, atol=1e-4)
    finally:
        fresh.close()


def test_between_exact_publishes_probes_compare_every_packed_matrix(tied: Case) -> None:
    sync = WeightSync(tied.fleet, PublishConfig(full_verify_max_mib=0, full_verify_every=3))
    exact = [tied.publish(sync=sync)["publish/probed_tensors"] == 0 for _ in range(7)]
    assert exact == [True, False, False, True, False, False, True]
    probed = tied.publish(sync=sync)
    assert probed["publish/probed_tensors"] == 4 * 7 + 1  # q k v o gate up down of four layers, and the head
    assert probed["publish/probed_tensors"] + probed["publish/verified_tensors"] == 4 * 11 + 3
    tied.assert_engines_agree()


def sabotaged_publish(case: Case, what: str, config: PublishConfig) -> str:
    """The message of the stop; afterwards the engines serve verified weights again."""
    sync = WeightSync(case.fleet, config)
    case.publish(sync=sync)  # the first publish is exact; what matters is the next one
    case.each(SabotagedWorker.sabotage, what)
    try:
        with pytest.raises(RunStopped) as stopped:
            case.publish(sync=sync)
        with pytest.raises(ActorError, match=f"out of service: publish {case.version}"):
            case.fleet.workers.call(0, RolloutWorker.pump, [], 0.1)
    finally:
        case.each(SabotagedWorker.repair)
    case.publish()
    case.assert_engines_agree()
    return str(stopped.value)


@pytest.mark.parametrize("config", [PublishConfig(), PROBES], ids=["exact", "probes"])
def test_without_the_cure_for_tied_heads_the_run_stops_at_the_head(tied: Case, config: PublishConfig) -> None:
    message = sabotaged_publish(tied, "no cure for tied heads", config)
    assert "1 tensors differ: lm_head.weight (tied to model.embed_tokens.weight)" in message
    assert "SabotagedWorker rollout-0" in message


def test_without_the_cure_for_experts_the_run_stops_at_the_experts(moe: Case) -> None:
    message = sabotaged_publish(moe, "no cure for experts", PublishConfig())
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in message
    assert "self_attn" not in message


@pytest.mark.parametrize("config", [PublishConfig(), PROBES], ids=["exact", "probes"])
@pytest.mark.parametrize(
    ("what", "tensor"),
    [
        ("one value of a norm", "model.norm.weight"),
        ("one column of a packed matrix", "model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_a_single_wrong_value_is_found_and_named(tied: Case, what: str, tensor: str, config: PublishConfig) -> None:
    assert f"1 tensors differ: {tensor}" in sabotaged_publish(tied, what, config)


def test_a_prefix_cache_that_was_not_reset_stops_the_run(untied: Case) -> None:
    message = sabotaged_publish(untied, "no reset of the prefix cache", PublishConfig())
    assert "reset_prefix_cache() returned False" in message


def test_damage_on_the_way_is_found_before_anything_is_loaded(untied: Case) -> None:
    def flip(payload: Payload) -> Payload:
        manifest, flat = payload
        entry = next(e for e in manifest.entries if e.name == "model.layers.1.self_attn.o_proj.weight")
        flat[entry.offset + 5] ^= 1
        return manifest, flat

    untied.publish()
    untied.learner.damage = flip
    try:
        with pytest.raises(RunStopped, match=r"1 tensors differ: .*layers\.1\.self_attn\.o_proj\.weight \(damaged"):
            untied.publish()
    finally:
        untied.learner.damage = lambda payload: payload
    untied.publish()
    untied.assert_engines_agree()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("model.layers.1.mlp.up_proj.weight"),
            r"1 tensors differ: model\.layers\.1\.mlp\.up_proj\.weight \(never sent\)",
        ),
        (lambda s: s.pop("model.norm.weight"), r"model\.norm\.weight \(never sent\)"),
        (
            lambda s: s.update({"model.extra.weight": torch.ones(3)}),
            r"1 tensors differ: model\.extra\.weight \(the engine has no place for it\)",
        ),
        (
            lambda s: s.pop("model.layers.2.mlp.experts.5.down_proj.weight"),
            r"experts\.5\.down_proj\.weight \(never sent\)",
        ),
    ],
    ids=["half of a fused matrix missing", "a norm missing", "an unknown tensor", "an expert missing"],
)
def test_a_payload_that_is_not_the_model_stops_the_run(untied: Case, change: Any, message: str) -> None:
    untied.learner.change = change
    try:
        with pytest.raises(RunStopped, match=message):
            untied.publish()
    finally:
        untied.learner.change = lambda state: None
    untied.publish()
    untied.assert_engines_agree()


def test_the_same_prompt_after_a_publish_is_computed_anew(tied: Case) -> None:
    """A prompt of several cached blocks; stale keys and values would differ by about 0.02 nats."""
    requests = kit.requests(4, 2, length=200)
    for _ in range(2):
        tied.publish()
        for group in tied.fleet.generate(requests):
            for rollout in group.rollouts:
                row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
                reference = kit.reference_logprobs(tied.model, row)[200:]
                np.testing.assert_allclose(rollout.rollout_logprobs, reference, atol=1e-4)
                assert (rollout.policy_version == tied.version).all()


def test_tokens_of_a_sequence_in_flight_carry_the_version_that_sampled_them(tied: Case) -> None:
    tied.publish()
    before = kit.make_model()
    before.load_state_dict(tied.model.state_dict())
    long = SamplingParams(max_new_tokens=200)
    tied.fleet.submit(kit.requests(16, 8), long)
    tied.fleet.poll(0.15)  # let the engines start
    tied.publish()
    groups: list[RolloutGroup] = []
    while tied.fleet.num_pending:
        groups += tied.fleet.poll(10.0)
    mixed = 0
    for group in groups:
        for rollout in group.rollouts[:2]:
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            old, new = (kit.reference_logprobs(model, row)[40:] for model in (before, tied.model))
            is_new = rollout.policy_version == tied.version
            assert np.isin(rollout.policy_version, (tied.version - 1, tied.version)).all()
            assert (np.diff(rollout.policy_version) >= 0).all()
            np.testing.assert_allclose(rollout.rollout_logprobs[is_new], new[is_new], atol=1e-4)
            np.testing.assert_allclose(rollout.rollout_logprobs[~is_new], old[~is_new], atol=1e-4)
            mixed += 0 < is_new.sum() < len(rollout)
    assert mixed >= 8


@pytest.fixture(scope="module")
def remote(cases: dict[str, Case]) -> Iterator[RemoteLearner]:
    learner = RemoteLearner(cases["tied"].model, cases["tied"].folder)
    yield learner
    learner.workers.close()


@pytest.mark.parametrize("transport", ["object_store", "collective"])
def test_every_transport_brings_the_same_bytes_to_every_worker(
    tied: Case, remote: RemoteLearner, transport: Any
) -> None:
    sync = WeightSync(tied.fleet, PublishConfig(transport=transport))
    for _ in range(2):
        tied.publish(sync=sync, learner=remote)
        tied.assert_engines_agree()


def test_a_real_learner_publishes_and_passes_the_gate_and_a_wrong_one_does_not(tied: Case) -> None:
    """ZeRO-3 over two ranks: whole tensors must be gathered before they are sent."""
    config = RLConfig(
        model=ModelConfig(path=tied.fleet.model_path),
        sampling=SamplingConfig(max_new_tokens=48),
        reward=RewardConfig(functions={"math": 1.0}),
        learner=LearnerConfig(num_workers=2, cpus_per_worker=0.5, zero_stage=3),
    )
    prompts = [kit.prompt(i) for i in range(8)]
    learner = LearnerGroup(config, tied.fleet.model_path)
    try:
        arguments = {"dtype": "float32", "tolerance": 0.0, "seed": 0}
        with pytest.raises(RunStopped, match=r"(?s)parity gate: .* allowed mean 0.0001.*worst tokens") as stopped:
            parity_gate(learner, tied.fleet, prompts, **arguments)  # the engines hold noisy weights
        assert len(str(stopped.value).splitlines()) == 13
        learner.attach(WeightSync(tied.fleet, PublishConfig()))
        assert learner.publish()["publish/verified_tensors"] == 4 * 11 + 3
        tied.model.load_state_dict(kit.make_model().state_dict())
        tied.version = learner.version
        tied.assert_engines_agree()
        gate = parity_gate(learner, tied.fleet, prompts, **arguments)
        assert gate["parity/abs_logprob_diff_mean"] <= gate["parity/abs_logprob_diff_max"] < 1e-4
        assert gate["parity/tolerance"] == 1e-4
        rows = rows_of(tied.fleet.generate(kit.requests(8, 1)))
        assert 1e-4 < reference_difference(tied.fleet.model_path, rows, "bfloat16") < 0.1
        assert reference_difference(tied.fleet.model_path, rows, "float32") < 1e-5
    finally:
        learner.close()


def test_lost_workers_sample_their_groups_again_with_verified_weights(tied: Case, remote: RemoteLearner) -> None:
    """One worker killed, one stopped dead in its tracks: every group once, the same samples as undisturbed."""
    sync = WeightSync(tied.fleet, PublishConfig(transport="collective"))
    tied.publish(sync=sync, learner=remote)
    long = SamplingParams(max_new_tokens=200)
    requests = kit.requests(16, 8)
    undisturbed = tied.fleet.generate(requests, long)
    workers = tied.fleet.workers
    old = [workers.incarnation(worker) for worker in (0, 1)]
    workers.call_timeout_s = 5.0  # of the calls sent from here on
    tied.fleet.submit(requests, long)
    early = tied.fleet.poll(0.15)
    os.kill(old[1].pid, signal.SIGKILL)
    os.kill(old[0].pid, signal.SIGSTOP)
    groups = list(early)
    deadline = time.monotonic() + 120
    while tied.fleet.num_pending:
        assert time.monotonic() < deadline
        groups += tied.fleet.poll(5.0)
        workers.call_timeout_s = 60.0 if workers.num_restarts >= 2 else 5.0
    workers.call_timeout_s = 120.0
    while len(workers.live_workers) < 2:
        assert time.monotonic() < deadline
        tied.fleet.poll(0.0)
        workers.ready(1.0)
    assert sorted(group.index for group in groups) == list(range(16))
    for group in groups:
        for mine, theirs in zip(group.rollouts, undisturbed[group.index].rollouts, strict=True):
            np.testing.assert_array_equal(mine.token_ids, theirs.token_ids)
            assert (mine.policy_version == tied.version).all()
    assert all(workers.incarnation(worker).id != old[worker].id for worker in (0, 1))
    tied.assert_engines_agree()
    metrics = tied.fleet.metrics()
    assert metrics["generate/restarts"] == 2
    assert 0 < metrics["generate/requeued"] <= 16
    tied.publish(sync=sync, learner=remote)  # the process group is formed anew
    tied.assert_engines_agree()
