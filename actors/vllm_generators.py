"""Seeded sampling while a long prompt is computed in parts, on CPU.

A prompt that no longer fits into a step's tokens is split. vLLM samples after each part and throws the token away, but
for the last; the request's generator is then put back by four places, which a CPU generator cannot do: the engine dies
with "CPU Generator does not use offset". Here such a request has no generator while its token is thrown away, so it
draws from it once a kept token, however its prompt was split.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # the CPU's runner is a subclass


def keep_generators() -> None:
    """In a process with an engine, once, before its first step."""
    if not current_platform.is_cpu():
        return
    original = GPUModelRunner.sample_tokens

    @functools.wraps(original)
    def without_discarded(runner: Any, *args: Any, **kwargs: Any) -> Any:
        generators = runner.input_batch.generators
        rows = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
        held = {row: generators.pop(row) for row in map(int, rows) if row in generators}
        try:
            return original(runner, *args, **kwargs)
        finally:
            generators.update(held)

    GPUModelRunner.sample_tokens = without_discarded
