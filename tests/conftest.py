"""For all tests: no network, no telemetry, one thread a process. Set before anything heavy is imported."""

from __future__ import annotations

import os
from typing import Any

import pytest

_DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Two threads a process, several processes on two cores: small matrix products become 20 times slower.
    "OMP_NUM_THREADS": "1",
    "RAY_DEDUP_LOGS": "0",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

# Longest first, so that no worker is left alone with one at the end; what is not named follows in its own order.
LONG = (
    "e2e",
    "integration/test_preference.py",
    "integration/test_weight_sync.py",
    "integration/test_sft.py",
    "integration/test_learner.py",
    "integration/test_recipe_stages.py",
    "integration/test_two_raylets.py",
    "integration",
    "unit/test_rewards_code.py",
    "unit/test_rewards_cli.py",
    "unit/test_rewards_math_pairs.py",
    "unit/test_rewards_judge.py",
    "unit/test_sandbox_escape.py",
    "unit/test_rewards_any_text.py",
    "unit/test_reward_server.py",
    "unit/test_rewards_runner.py",
    "unit",
)


def group_of(nodeid: str) -> str:
    """What one worker runs alone: a file with its engines, or all of e2e, whose files look at one and the same run."""
    place = nodeid.split("::")[0].removeprefix("tests/")
    return "e2e" if place.startswith("e2e/") else place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return LONG.index(group if group in LONG else group.split("/")[0])

    items.sort(key=rank)


# Not `--dist loadgroup`: xdist 3.8 writes groups into a private field that pytest 9.2 no longer has.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, groups go to the workers in the order of ``LONG``."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
