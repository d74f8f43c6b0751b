"""For all tests: no network, no telemetry, one thread a process. Set before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

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

TESTS = Path(__file__).parent
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


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the tests' names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``make test`` gives whole groups to its workers: a file with its engines, and e2e, which shares one run."""

    def group(item: pytest.Item) -> str:
        place = item.path.relative_to(TESTS)
        return place.parts[0] if place.parts[0] == "e2e" else place.as_posix()

    def rank(item: pytest.Item) -> int:
        name = group(item)
        return LONG.index(name if name in LONG else name.split("/")[0])

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=rank)
