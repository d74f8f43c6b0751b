"""The entropy coefficient step by step, and the bonus against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.entropy import EntropyController, entropy_bonus
from rlplatform.losses import reduce


def test_step_by_step() -> None:
    """Target 0.5, delta 0.1: (entropy, c afterwards, what is applied)."""
    controller = EntropyController(target=0.5, delta=0.1)
    table = [
        (0.6, 0.0, 0.0),  # above: down, but not below 0
        (0.4, 0.1, 0.1),
        (0.3, 0.2, 0.2),
        (0.5, 0.1, 0.1),  # at the target: down, still applied
        (0.4, 0.2, 0.2),
        (0.7, 0.1, 0.0),  # above the target: down, and not applied
        (0.7, 0.0, 0.0),
        (0.7, 0.0, 0.0),
        (0.1, 0.1, 0.1),  # no debt from the floor
    ]
    for entropy, coef, alpha in table:
        assert controller.update(entropy) == pytest.approx(alpha, abs=1e-12)
        assert controller.coef == pytest.approx(coef, abs=1e-12)
        assert controller.alpha == pytest.approx(alpha, abs=1e-12)


def test_bounds_and_start() -> None:
    controller = EntropyController(target=1.0, delta=0.3, initial_coef=0.5, max_coef=1.0)
    assert controller.alpha == 0.5
    assert [round(controller.update(0.0), 9) for _ in range(3)] == [0.8, 1.0, 1.0]
    assert [round(controller.update(1.0), 9) for _ in range(4)] == [0.7, 0.4, 0.1, 0.0]


@given(st.lists(st.floats(0, 2), max_size=40), st.integers(0, 40))
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(entropies: list[float], cut: int) -> None:
    whole, first = (EntropyController(target=0.8, delta=0.07, max_coef=0.5) for _ in range(2))
    expected = [whole.update(entropy) for entropy in entropies]
    got = [first.update(entropy) for entropy in entropies[:cut]]
    second = EntropyController(target=0.8, delta=0.07, max_coef=0.5)
    second.load_state_dict(first.state_dict())
    assert second.alpha == first.alpha
    assert got + [second.update(entropy) for entropy in entropies[cut:]] == expected
    assert all(0 <= alpha <= 0.5 for alpha in expected)


def test_errors() -> None:
    controller = EntropyController(target=0.5, delta=0.1, initial_coef=0.2)
    for wrong in (math.nan, math.inf, -0.1):
        with pytest.raises(ValueError, match="finite entropy"):
            controller.update(wrong)
    assert controller.coef == 0.2
    for settings in ({"target": -1.0}, {"delta": 0.0}, {"delta": math.nan}, {"initial_coef": -0.1}, {"max_coef": 0.1}):
        with pytest.raises(ValueError, match="expected"):
            EntropyController(**{"target": 0.5, "delta": 0.1, "initial_coef": 0.2, **settings})
    with pytest.raises(ValueError, match="was written with"):
        controller.load_state_dict(EntropyController(target=0.6, delta=0.1).state_dict())


def test_the_bonus_raises_entropy() -> None:
    """Its gradient is minus that of the mean entropy, and descent makes the distribution flatter."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 9.0]], requires_grad=True)
    mask = torch.tensor([True, True])

    def entropy() -> torch.Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        return -(log_p.exp() * log_p).sum(1)

    cu_seqlens = torch.tensor([0, 2])
    loss = reduce(
        entropy_bonus(entropy(), mask, 0.5), mask, aggregation="token_mean", cu_seqlens=cu_seqlens, denominator=2.0
    )
    assert loss.item() == pytest.approx(-0.25 * entropy().sum().item())
    loss.backward()
    before = entropy().sum().item()
    with torch.no_grad():
        logits -= logits.grad
    assert entropy().sum().item() > before


def test_masked_slots_reach_no_gradient() -> None:
    entropy = torch.tensor([1.0, math.nan, math.inf, 2.0], requires_grad=True)
    mask = torch.tensor([True, False, False, True])
    values = entropy_bonus(entropy, mask, 0.1)
    values.sum().backward()
    assert values.tolist() == pytest.approx([-0.1, 0.0, 0.0, -0.2])
    assert entropy.grad is not None
    assert entropy.grad.tolist() == pytest.approx([-0.1, 0.0, 0.0, -0.1])
