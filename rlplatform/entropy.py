"""Entropy control: a coefficient that follows the policy's entropy, and the bonus it weighs. torch only as a type.

Skywork-OR1 (He et al., arXiv 2505.22312, section 4, "adaptive entropy control")::

    c <- c + delta  where entropy < target,   c - delta  otherwise,   within [0, max_coef]
    loss = policy loss - alpha * entropy      alpha = c where entropy <= target, else 0

Qwen3's report says that entropy rose steadily or stayed stable, and not how (arXiv 2505.09388, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class EntropyController:
    """The coefficient of the entropy bonus, one ``update`` an optimiser step.

    Args:
        target: nats a token.
        delta: what one step adds or takes away.
        initial_coef: the first coefficient.
        max_coef: its upper bound; the lower one is 0: entropy is never pushed down.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, *, target: float, delta: float, initial_coef: float = 0.0, max_coef: float = math.inf) -> None:
        if not (target >= 0 and delta > 0 and math.isfinite(target) and math.isfinite(delta)):
            raise ValueError(f"EntropyController: expected target >= 0 and delta > 0, got {target} and {delta}")
        if not 0 <= initial_coef <= max_coef:
            raise ValueError(f"EntropyController: expected 0 <= initial_coef <= {max_coef}, got {initial_coef}")
        self.target, self.delta, self.max_coef = target, delta, max_coef
        self.coef = initial_coef  # c, whether it is applied or not
        self._active = True

    @property
    def alpha(self) -> float:
        """What the bonus of the next step is multiplied with: c, or 0 while entropy is above the target."""
        return self.coef if self._active else 0.0

    def update(self, entropy: float) -> float:
        """Take the mean entropy of one step, nats a token over all ranks; returns the next ``alpha``.

        Raises:
            ValueError: entropy is negative or not finite; the coefficient stays.
        """
        if not (math.isfinite(entropy) and entropy >= 0):
            raise ValueError(f"EntropyController.update: expected a finite entropy >= 0, got {entropy}")
        self._active = entropy <= self.target
        change = self.delta if entropy < self.target else -self.delta
        self.coef = min(max(self.coef + change, 0.0), self.max_coef)
        return self.alpha

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "active": self._active, "target": self.target, "delta": self.delta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ValueError: it was taken with other settings.
        """
        here = {"target": self.target, "delta": self.delta}
        there = {name: state.get(name) for name in here}
        if here != there:
            raise ValueError(f"EntropyController: the checkpoint was written with {there}, this run has {here}")
        self.coef, self._active = float(state["coef"]), bool(state["active"])


def entropy_bonus(entropy: Tensor, mask: Tensor, coef: float) -> Tensor:
    """``-coef * entropy`` on each token, to be added to a loss before ``losses.reduce``.

    Args:
        entropy: ``[T]``, nats, of the whole distribution and with gradient (``model.logprobs``).
        mask: bool ``[T]``.
        coef: ``EntropyController.alpha``, or a constant; > 0 rewards entropy.

    Returns:
        float32 ``[T]``, 0 where the mask is False; what stands there, NaN included, reaches no gradient.
    """
    return (entropy.float() * -coef).masked_fill(~mask, 0.0)
