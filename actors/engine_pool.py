"""One rollout fleet, kept alive between the stages of a recipe: starting its engines takes longer than many stages.

    stage A ──► take ──► RolloutFleet ──► sample ──► give_back ─┐ kept, idle
    stage B ──► take ◄──────────────────────────────────────────┘ fits: `begin`, then B's weights, published, verified
                     └► does not fit: closed, its processes gone, before B's fleet starts

What has to be equal for a fleet to be handed on:

- ``config.json`` of both models, key by key, except the keys that say who wrote it (``WRITTEN_BY``);
- the config section ``model`` (dtype, rope_theta, yarn_*, trust_remote_code), except ``path`` and ``max_model_len``;
- the config section ``rollout``, all of it, and the run's seed;

and the engines have room for rows as long as the stage's (they start with the longest that the recipe will ask for),
the weights are safetensors without quantisation, and the model is of a kind whose published weights can be verified
(``VERIFIABLE``). Everything else is the stage's own and set anew: tokenizer, chat template and stop ids, sampling,
limit of the rows, environment, version 0, metrics, restarts, log folder (with ``tensor_parallel_size`` > 1 the other
ranks go on writing into the first stage's). Requests carry their seeds, so a stage samples the same tokens on kept
engines as on fresh ones.

The weights take the way of every publish: checksums, reload, comparison of each value with what the engine computes
with, reset of the prefix cache. A tensor that differs stops the stage and is named. A worker that died meanwhile is
restarted, and gets tokenizer and weights of the stage at hand before it samples.

A stage that ends with an exception leaves nothing: its fleet is closed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.payload import flatten
from actors.rollout_fleet import RolloutFleet
from actors.weight_sync import WeightSync
from model.config import DENSE, MOE
from model.folder import WeightFiles, read_config
from rlplatform.config import EnvironmentConfig, ModelConfig, PublishConfig, RolloutConfig
from rlplatform.types import SamplingParams

log = logging.getLogger(__name__)

VERIFIABLE = (DENSE, MOE, "llama")  # model types whose publishes are tested
WRITTEN_BY = ("_name_or_path", "transformers_version")  # keys of config.json that change no number
MAX_IDLE_SHARE = 1 / 8  # of the machine's memory, that idle engines may hold while a model is trained


@dataclass(frozen=True)
class Wanted:
    """What a stage asks of its fleet. Arguments as of ``RolloutFleet``."""

    model_path: str
    model: ModelConfig
    rollout: RolloutConfig
    sampling: SamplingParams
    max_model_len: int
    seed: int
    environment: EnvironmentConfig | None = None

    def start(self, engine_len: int = 0) -> RolloutFleet:
        return RolloutFleet(
            self.model_path,
            self.model,
            self.rollout,
            self.sampling,
            self.max_model_len,
            self.seed,
            environment=self.environment,
            engine_len=engine_len,
        )


@dataclass(frozen=True)
class _Engines:
    """What stays the same as long as the engines live."""

    config: dict[str, Any]
    model: ModelConfig
    rollout: RolloutConfig
    seed: int

    @classmethod
    def of(cls, wanted: Wanted) -> _Engines | None:
        """None where a kept engine could not be given other weights."""
        try:
            values = read_config(wanted.model_path)
            WeightFiles(wanted.model_path)
        except (OSError, ValueError):  # what is wrong with it, the engine says
            return None
        if values.get("model_type") not in VERIFIABLE or "quantization_config" in values:
            return None
        config = {key: value for key, value in values.items() if key not in WRITTEN_BY}
        return cls(config, replace(wanted.model, path="", max_model_len=0), wanted.rollout, wanted.seed)


class FolderWeights:
    """``weight_sync.WeightSource`` of a model folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def gather_weights(self) -> Any:
        return ray.put(flatten(dict(WeightFiles(self._path))))


class EnginePool:
    """At most one fleet, in a stage's hands or idle. For one thread of the driver.

    Args:
        lengths: (section ``model``, section ``rollout``, tokens of a row) of each stage to come; engines are started
            with room for the longest rows of the stages whose sections are equal.
    """

    def __init__(self, lengths: Sequence[tuple[ModelConfig, RolloutConfig, int]] = ()) -> None:
        self._lengths = [(replace(model, path="", max_model_len=0), rollout, n) for model, rollout, n in lengths]
        self._idle: RolloutFleet | None = None
        self._engines: _Engines | None = None  # of the fleet, idle or not
        self.num_starts = self.num_reuses = 0

    def drop_misfit(self, wanted: Wanted) -> None:
        """Close the idle fleet unless ``take`` would hand it on."""
        if self._idle is not None and not self._fits(wanted, _Engines.of(wanted)):
            self.close()

    def take(self, wanted: Wanted) -> RolloutFleet:
        """The fleet for a stage, with the weights of its model; ``give_back`` it.

        Raises:
            ConfigError, RunStopped, ActorError: as of ``RolloutFleet``, and where the engines do not compute with the
                folder's weights. The fleet is closed then.
        """
        engines = _Engines.of(wanted)
        if self._idle is not None and self._fits(wanted, engines):
            fleet, self._idle = self._idle, None
            try:
                hand_over(fleet, wanted)
            except BaseException:
                fleet.close()
                raise
            self.num_reuses += 1
            return fleet
        self.close()
        self._engines = engines
        self.num_starts += 1
        return wanted.start(self._engine_len(wanted, engines))

    def give_back(self, fleet: RolloutFleet, *, failed: bool) -> None:
        """Keep the fleet of a stage that ended well; close any other."""
        if failed or self._engines is None:
            fleet.close()
        else:
            self._idle = fleet

    def make_room(self, cpus: float) -> None:
        """Close the idle fleet where it stands in the way of training.

        That is where its share of the CPUs is needed, where it holds memory of a GPU, and where its caches and weights
        take more than ``MAX_IDLE_SHARE`` of the machine's memory. Idle engines use no processor time.
        """
        if self._idle is None or self._engines is None:
            return
        rollout, cluster = self._engines.rollout, ray.cluster_resources()
        free = cluster.get("CPU", 0.0) - rollout.num_workers * rollout.cpus_per_worker
        files = WeightFiles(self._idle.model_path)
        num_values = sum(math.prod(shape) for shape in files.shapes.values())
        held = rollout.num_workers * (rollout.kv_cache_gib * 2**30 + num_values * 4)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if rollout.gpus_per_worker > 0 or free < cpus - 1e-9 or held > MAX_IDLE_SHARE * memory:
            log.info("the idle engines make room for training")
            self.close()

    def close(self) -> None:
        """End the idle fleet, if there is one."""
        if self._idle is not None:
            self._idle.close()
        self._idle = None

    # --- inside -------------------------------------------------------------------------------------------------

    def _fits(self, wanted: Wanted, engines: _Engines | None) -> bool:
        fleet = self._idle
        return fleet is not None and engines == self._engines and fleet.engine_len >= wanted.max_model_len

    def _engine_len(self, wanted: Wanted, engines: _Engines | None) -> int:
        if engines is None:
            return wanted.max_model_len
        lengths = [n for model, rollout, n in self._lengths if (model, rollout) == (engines.model, engines.rollout)]
        positions = engines.model.rope.apply(engines.config).get("max_position_embeddings") or 0
        return max(wanted.max_model_len, min(positions, max(lengths, default=0)))


def hand_over(fleet: RolloutFleet, wanted: Wanted) -> None:
    """Make kept engines those of another stage; returns when every worker serves its model's weights, as version 0.

    Raises:
        RunStopped: a tensor arrived damaged, or an engine computes with something else; names both.
    """
    fleet.begin(wanted.model_path, wanted.model, wanted.sampling, wanted.max_model_len, wanted.environment)
    sync = WeightSync(fleet, PublishConfig(), f"the weights of {wanted.model_path}")
    sync.publish(FolderWeights(wanted.model_path), 0)
    fleet.wait_for_all()
