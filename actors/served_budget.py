"""What runs inside the served engine's worker process: a thought that ended by itself has ended, and a seeded request
whose prompt is computed in parts ends no engine (``actors.vllm_generators``).

vLLM's ``ThinkingBudgetStateHolder`` looks for the end of a thought by the text that it inserts at the budget. With a
stop text before ``</think>`` it misses every ``</think>`` of the model's own, and the empty block of a prompt: the
budget goes on counting, and the stop text lands in the middle of the answer.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample import thinking_budget_state

from actors.vllm_generators import keep_generators


class BudgetStateHolder(thinking_budget_state.ThinkingBudgetStateHolder):
    """As vLLM's, and ``natural_reasoning_end_token_ids`` end a thought as well."""

    def __init__(self, reasoning_config: Any, *args: Any) -> None:
        super().__init__(reasoning_config, *args)
        self._natural_end = list(getattr(reasoning_config, "natural_reasoning_end_token_ids", None) or [])

    def _find_last_sequence_index(  # type: ignore[override]  # static there, and always called on self
        self, target_list: list[int], token_ids: list[int]
    ) -> int:
        found = super()._find_last_sequence_index(target_list, token_ids)
        if token_ids is not self.think_end_token_ids:
            return found
        return max(found, super()._find_last_sequence_index(target_list, self._natural_end))


class ServedBudget:
    """Named by ``--worker-extension-cls``, so that vLLM's worker imports this module before it samples."""


thinking_budget_state.ThinkingBudgetStateHolder = BudgetStateHolder  # type: ignore[misc]
keep_generators()
