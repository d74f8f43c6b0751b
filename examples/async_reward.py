"""An async reward: rows wait side by side in one process, each with its own deadline.

reward:
  functions:
    examples/async_reward.py:looked_up: {concurrency: 32, per_second: 10}
"""

import asyncio

from rewards.base import rowwise
from rewards.format import text_of


@rowwise
async def looked_up(completions, answer, *, delay_s: float = 0.05, **columns):
    """1 where the completion names the answer. ``delay_s`` stands in for the service that a real one would ask."""
    await asyncio.sleep(delay_s)
    return [float(gold in text_of(completion)) for completion, gold in zip(completions, answer, strict=True)]
