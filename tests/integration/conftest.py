"""Learner processes that the tests of one file share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
import ray

from actors.learner import LearnerGroup
from rlplatform.config import RLConfig

StartLearner = Callable[[RLConfig, str], LearnerGroup]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def start_learner(cluster: None) -> Iterator[StartLearner]:
    """Processes of one and of two ranks are started once; a test loads its configuration and model into them."""
    groups: dict[int, LearnerGroup] = {}

    def started(config: RLConfig, model: str) -> LearnerGroup:
        ranks = config.learner.num_workers
        if ranks in groups and groups[ranks].failure:  # its test has failed; the others are to tell their own tale
            groups.pop(ranks).close()
        if ranks in groups:
            groups[ranks].restart(config, model)
        else:
            groups[ranks] = LearnerGroup(config, model)
        return groups[ranks]

    yield started
    for group in groups.values():
        group.close()
