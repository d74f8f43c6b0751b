"""Two raylets, each with an object store of its own: nothing may assume that learner, workers and driver share one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from actors.fleet import Fleet, FleetActor
from actors.payload import flatten
from actors.rollout_fleet import RolloutFleet
from actors.weight_sync import WeightSync
from rlplatform.config import ModelConfig, PublishConfig, RolloutConfig
from rlplatform.types import SamplingParams
from tests.integration import rollout_models as kit

pytestmark = pytest.mark.slow


class Source(FleetActor):
    """Stands where the learner's rank 0 stands."""

    def pack(self, folder: str) -> list[Any]:
        return [ray.put(flatten(load_file(f"{folder}/model.safetensors")))]


class Learner:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers = Fleet(Source, "learner", 1, cpus=1.0, call_timeout_s=60.0)

    def gather_weights(self) -> Any:
        return self.workers.call(0, Source.pack, str(self.folder))[0]


@pytest.fixture
def cluster() -> Iterator[None]:
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def test_weights_cross_nodes_and_a_lost_worker_on_another_node_comes_back(cluster: None, tmp_path: Path) -> None:
    model = kit.make_model()
    path = kit.save(model, tmp_path / "initial")
    learner = Learner(tmp_path / "sent")
    config = RolloutConfig(num_workers=1, kv_cache_gib=0.25)
    fleet = RolloutFleet(path, ModelConfig(path=path), config, SamplingParams(max_new_tokens=32), 128, seed=0)
    workers = fleet.workers
    nodes = {
        ray.get_runtime_context().get_node_id(),
        learner.workers.incarnation(0).node_id,
        workers.incarnation(0).node_id,
    }
    assert len(nodes) == 3

    kit.add_noise(model, 1)
    kit.checkpoint_tensors(model, learner.folder)
    for version, transport in enumerate(("object_store", "collective"), start=1):
        metrics = WeightSync(fleet, PublishConfig(transport=transport)).publish(learner, version)  # type: ignore[arg-type]
        assert metrics["publish/verified_tensors"] == 4 * 11 + 3
    requests = kit.requests(4, 2)
    before = fleet.generate(requests)
    for group in before:
        for rollout in group.rollouts:
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            reference = kit.reference_logprobs(model, row)[40:]
            np.testing.assert_allclose(rollout.rollout_logprobs, reference, atol=1e-4)
            assert (rollout.policy_version == 2).all()

    old = workers.incarnation(0)
    fleet.submit(requests)
    workers.restart(0, "the test ends it")
    groups = []
    deadline = time.monotonic() + 120
    while fleet.num_pending:
        assert time.monotonic() < deadline
        groups += fleet.poll(5.0)
    assert workers.incarnation(0).id != old.id
    for group in groups:
        for mine, theirs in zip(group.rollouts, before[group.index].rollouts, strict=True):
            np.testing.assert_array_equal(mine.token_ids, theirs.token_ids)
            assert (mine.policy_version == 2).all()
    fleet.close()
    learner.workers.close()
