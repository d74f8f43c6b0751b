"""Environment variables that libraries read when they are imported: set once, at the very start, never overriding."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rlplatform.paths import prepare_deepspeed

LOGGER = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether the machine shows a CUDA device, asked without importing torch."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def prepare() -> None:
    """Defaults for this process and the ones it starts: quiet, no telemetry, no probing for accelerators."""
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # else every train.report blocks for 2 s
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not has_gpu():
        defaults["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns on the screen that it looked for one
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for lock in prepare_deepspeed():
        LOGGER.warning("removed %s: left by a build that was killed; the next load would have waited for ever", lock)
