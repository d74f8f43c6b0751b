"""Which functions share workers, which have their own, and how limits are divided over them."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.fleet import Fleet, FleetActor
from actors.reward_lane import Lane
from actors.reward_worker import RewardWorker
from rewards.base import RewardFn, RewardLoadError, is_async, sources
from rewards.composition import Part
from rewards.streams import DEFAULT_CONCURRENCY
from rlplatform.config import RewardConfig

SHARED = "reward"
SERVED_ROWS = 64  # rows up to which groups travel to a served model in one call
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class LanePlan:
    """A fleet to start."""

    stage: str  # what its workers are called
    parts: Mapping[str, Part]
    num_workers: int
    num_processes: tuple[int, ...]  # child processes of each worker; 0s for a served class
    served_by: str = ""  # package.module:Class instead of RewardWorker
    gpus: float = 0.0
    merge_rows: int = 0


def plan_lanes(config: RewardConfig, parts: Mapping[str, Part], resolved: Mapping[str, RewardFn]) -> list[LanePlan]:
    """One lane for all functions that share workers, and one for each of the others.

    Raises:
        RewardLoadError: a limit that cannot be divided over the workers, or one on a served function.
    """
    plans = [_own_lane(part, resolved[name], config) for name, part in parts.items()]
    own = [plan for plan in plans if plan is not None]
    shared = {name: part for (name, part), plan in zip(parts.items(), plans, strict=True) if plan is None}
    if shared:
        processes = (config.processes_per_worker,) * config.num_workers
        own.insert(0, LanePlan(SHARED, shared, config.num_workers, processes))
    return own


def _own_lane(part: Part, fn: RewardFn, config: RewardConfig) -> LanePlan | None:
    where = f"reward.functions.{part.name}"
    stage = f"{SHARED}-{re.sub(r'[^A-Za-z0-9_.-]', '_', part.name)}"
    served, num_workers = getattr(fn, "served_by", ""), part.workers or 1
    limited = [name for name in ("concurrency", "per_second") if getattr(part, name)]
    if served:
        if limited:
            raise RewardLoadError(
                f"{where}.{limited[0]}: {part.function} is served by actors of its own, which keep their limits "
                "themselves; give the limit in args, where the function has such a setting"
            )
        return LanePlan(stage, {part.name: part}, num_workers, (0,) * num_workers, served, part.gpus, SERVED_ROWS)
    if not (is_async(fn) or part.has_workers):
        return None
    if 0 < part.concurrency < num_workers:
        raise RewardLoadError(
            f"{where}.concurrency: {part.concurrency} rows at a time cannot be divided over workers={num_workers}; "
            f"set workers to {part.concurrency} or less"
        )
    streamed = is_async(fn) and getattr(fn, "rowwise", False)
    shares = [_share(part.concurrency, worker, num_workers) for worker in range(num_workers)]
    processes = tuple(1 if streamed else share or config.processes_per_worker for share in shares)
    merge_rows = 2 * (max(shares) or DEFAULT_CONCURRENCY) if streamed else 0
    return LanePlan(stage, {part.name: part}, num_workers, processes, "", part.gpus, merge_rows)


def _share(total: int, worker: int, num_workers: int) -> int:
    return total // num_workers + (worker < total % num_workers)


def start_lane(plan: LanePlan, config: RewardConfig, sys_path: Sequence[str]) -> Lane:
    """Start the actors of a plan. Raises ActorError, RunStopped, RewardLoadError."""

    files = {} if plan.served_by else sources(part.function for part in plan.parts.values())

    def arguments(worker: int) -> tuple[Any, ...]:
        if plan.served_by:
            (part,) = plan.parts.values()
            return dict(part.args), part.timeout_s or config.timeout_s, sys_path
        # What a part counts for, and for which rows, is decided in the driver.
        bare = {
            name: replace(
                part,
                weight=1.0,
                needs={},
                when={},
                clip=None,
                concurrency=_share(part.concurrency, worker, plan.num_workers),
                per_second=part.per_second / plan.num_workers,
            )
            for name, part in plan.parts.items()
        }
        return bare, plan.num_processes[worker], config.timeout_s, sys_path, files

    fleet: Fleet[Any] = Fleet(
        _actor_class(plan.served_by) if plan.served_by else RewardWorker,
        plan.stage,
        plan.num_workers,
        cpus=0.0,  # grading fills the gaps that generation and training leave; it reserves no core
        gpus=plan.gpus,
        actor_args=arguments,
        env=_ENVIRONMENT | (_import_path(sys_path) if plan.served_by else {}),
        call_timeout_s=config.call_timeout_s,
        change="reward.num_workers" if plan.stage == SHARED else f"reward.functions.{next(iter(plan.parts))}.gpus",
    )
    rate = min((part.per_second or math.inf for part in plan.parts.values()), default=math.inf) / plan.num_workers
    return Lane(fleet, list(plan.parts), merge_rows=plan.merge_rows, rows_per_second=rate)


def _import_path(sys_path: Sequence[str]) -> dict[str, str]:
    """For a served class: Ray imports its module before the actor could do anything about its path."""
    own = [entry for entry in sys_path if entry and not entry.startswith((sys.prefix, sys.base_prefix))]
    return {"PYTHONPATH": os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH", "")])])} if own else {}


def _actor_class(name: str) -> type[FleetActor]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RewardLoadError(f"served_by({name!r}): expected package.module:Class, got {error}") from error
    if not (isinstance(found, type) and issubclass(found, FleetActor) and hasattr(found, "score")):
        raise RewardLoadError(f"served_by({name!r}): expected a FleetActor with a method score, got {found!r}")
    return found
