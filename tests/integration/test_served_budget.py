"""The thinking budget of `rlplatform serve`: vLLM's own state, token by token, without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

OPEN, CLOSE = 1, 2
STOP = [7, 8, CLOSE, 9]  # the stop text holds </think>, as Qwen3's does


def sampled(prompt: list[int], wish: list[int], budget: int) -> list[int]:
    """What comes of a model that wants to say ``wish``, next to a neighbour without a budget."""
    from vllm.v1.sample.thinking_budget_state import maybe_create_thinking_budget_state_holder

    import actors.served_budget  # noqa: F401, as vLLM's worker does

    reasoning = SimpleNamespace(
        reasoning_start_token_ids=[OPEN], reasoning_end_token_ids=STOP, natural_reasoning_end_token_ids=[CLOSE]
    )
    holder = maybe_create_thinking_budget_state_holder(reasoning, 4, 0, torch.device("cpu"), False)
    assert holder is not None
    output: list[int] = []
    params = SimpleNamespace(thinking_token_budget=budget)
    update = SimpleNamespace(removed=[], added=[(0, params, prompt, output)], moved=[])
    holder.sync_batch(update)
    left = list(wish)
    while left:
        holder.update_state([output, []], None)
        logits = torch.zeros(2, 100)
        logits[0, left[0]] = 1.0
        said = int(holder.apply_to_logits(logits, False, None)[0].argmax())
        if said == left[0]:
            left.pop(0)
        elif said != STOP[0]:
            assert said in STOP
        output.append(said)
        if len(output) > 50:
            raise AssertionError(f"no end: {output}")
    return output


ANSWER = list(range(60, 72))


def test_a_thought_that_ended_by_itself_is_not_ended_again() -> None:
    wish = [OPEN, 30, 31, CLOSE, *ANSWER]
    assert sampled([50], wish, 6) == wish


def test_a_thought_at_its_budget_is_ended_once() -> None:
    found = sampled([50], [OPEN, 30, 31, 32, 33, *ANSWER], 4)
    assert found == [OPEN, 30, 31, 32, 33, *STOP, *ANSWER]


def test_the_empty_block_of_a_prompt_is_no_thought() -> None:
    assert sampled([50, OPEN, CLOSE], ANSWER, 4) == ANSWER


def test_a_prompt_that_opened_the_block() -> None:
    assert sampled([50, OPEN], [30, CLOSE, *ANSWER], 4) == [30, CLOSE, *ANSWER]
    assert sampled([50, OPEN], [30, 31, 32, 33, *ANSWER], 4) == [30, 31, 32, 33, *STOP, *ANSWER]


def test_the_server_is_started_with_it() -> None:
    from rlplatform.endpoint import command

    arguments = command("model", host="localhost", port=1, max_model_len=64, dtype="float32", name="")
    assert arguments[arguments.index("--worker-extension-cls") + 1] == "actors.served_budget.ServedBudget"
