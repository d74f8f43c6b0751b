"""The routers' losses (model/balance.py) of an engine's policy: what the configuration asks for, summed over ranks."""

from __future__ import annotations

import torch.distributed as dist

from actors.engine import TrainEngine
from model.balance import RouterLosses, RouterStep
from rlplatform.config import ConfigError, LearnerConfig


def router_losses(engine: TrainEngine, learner: LearnerConfig, *, default_coef: float | None) -> RouterLosses | None:
    """None for a policy without experts. ``default_coef`` stands in for an unset one; None is the checkpoint's.

    Raises:
        ConfigError: a coefficient for a policy without routers to apply it to.
    """
    try:
        return RouterLosses.of(
            getattr(engine.policy, "config", None),
            balance=learner.router_balance,
            balance_coef=learner.router_balance_coef,
            z_coef=learner.router_z_coef,
            default_coef=default_coef,
        )
    except ValueError as error:
        raise ConfigError(f"learner.{error}") from error


def router_step(engine: TrainEngine, losses: RouterLosses, *, num_tokens: int, num_micro_batches: int) -> RouterStep:
    """One optimiser step's router losses; ``num_tokens`` of all ranks, ``num_micro_batches`` of each."""
    config = engine.policy.config  # type: ignore[attr-defined]
    return RouterStep(
        losses,
        num_tokens=num_tokens,
        num_micro_batches=num_micro_batches,
        sum_over_ranks=dist.all_reduce,
        shape=(config.num_hidden_layers, config.num_experts),
        device=engine.device,
    )
