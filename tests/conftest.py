"""For all tests: no network, no telemetry, one thread a process. Set before anything heavy is imported."""

from __future__ import annotations

import os

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
