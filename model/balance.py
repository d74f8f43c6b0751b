"""Load-balancing and z loss of a mixture of experts, over the whole optimiser step.

    step = RouterStep(losses, num_tokens=..., num_micro_batches=len(micro_batches), sum_over_ranks=all_reduce)
    if step.must_count:                                        # global counts, more than one micro-batch
        with counting_pass(device): for each micro-batch: step.count(record)
    for each micro-batch: loss = ... + step.loss(record)       # its share; shares add up, as the other losses' do
    step.metrics()

A layer's balance loss is ``E * sum_i f_i p_i``: f_i the share of token-expert pairs that went to expert i, p_i the
mean probability the router gave it; 1 when either is uniform. Qiu et al. 2025 (arXiv 2501.11873): f over the *global*
batch lets experts specialise, f over each micro-batch forces every domain to spread over all of them. The loss is
linear in p, so with global f the shares of micro-batches and ranks add up to the loss of the whole batch, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from model.config import Qwen3Config
from model.moe import RouterRecord


@dataclass(frozen=True)
class RouterLosses:
    """What is added to the loss. Coefficients of 0 add nothing."""

    balance: Literal["global_batch", "micro_batch"] = "global_batch"  # over which tokens experts are to be used evenly
    balance_coef: float = 0.0  # of a loss that is 1 when balanced
    z_coef: float = 0.0

    @classmethod
    def of(
        cls,
        config: object,
        *,
        balance: Literal["global_batch", "micro_batch"],
        balance_coef: float | None,
        z_coef: float,
        default_coef: float | None,
    ) -> RouterLosses | None:
        """For a policy with this ``config``; None where it has no router of ``model/moe.py``.

        ``balance_coef`` None is ``default_coef``, and that None is the checkpoint's own.

        Raises:
            ValueError: a coefficient for a policy without such a router.
        """
        if isinstance(config, Qwen3Config) and config.is_moe:
            coef = default_coef if balance_coef is None else balance_coef
            return cls(balance, config.balance_coef if coef is None else coef, z_coef)
        if balance_coef or z_coef:
            kind = getattr(config, "model_type", type(config).__name__)
            raise ValueError(
                f"router_balance_coef={balance_coef} and router_z_coef={z_coef}: expected a mixture of experts of "
                f"model_type qwen3_moe, got {kind}; leave them unset or 0"
            )
        return None


def balance_loss(
    probability_sums: torch.Tensor, counts: torch.Tensor, num_tokens: float, *, pooled: bool = False
) -> torch.Tensor:
    """The share of ``probability_sums`` in the mean over layers of ``E * sum_i f_i p_i``. Differentiable in them alone.

    Args:
        probability_sums: float [L, E], summed over some of the step's tokens.
        counts: int [L, E], tokens that chose each expert, of the tokens over which use is to be even.
        num_tokens: of the whole step: what p divides by.
        pooled: f and p over all layers together before they are multiplied: transformers'
            ``load_balancing_loss_func``, which is this times the number of experts a token chooses.
    """
    if pooled:
        probability_sums, counts = probability_sums.mean(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True)
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    p = probability_sums / num_tokens
    return counts.shape[1] * (shares.to(p.dtype) * p).sum(dim=1).mean()


@contextmanager
def counting_pass(device: torch.device | str) -> Iterator[None]:
    """Around the passes that only count: no gradient, and what they drew at random (dropout) is drawn again after."""
    device = torch.device(device)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


class RouterStep:
    """One optimiser step of one rank. ``record`` is None for a micro-batch without rows: its filler does not count.

    Args:
        num_tokens: of the whole step, all ranks.
        num_micro_batches: on each rank.
        sum_over_ranks: adds up a tensor over ranks in place; called equally often on every rank.
        shape: layers and experts.
    """

    def __init__(
        self,
        losses: RouterLosses,
        *,
        num_tokens: int,
        num_micro_batches: int,
        sum_over_ranks: Callable[[torch.Tensor], object],
        shape: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.losses, self.num_tokens, self._sum_over_ranks = losses, num_tokens, sum_over_ranks
        is_global = losses.balance == "global_batch" and losses.balance_coef != 0
        self.must_count = is_global and num_micro_batches > 1  # a pass without gradient over the step comes first
        self._count_first = is_global
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)  # of this rank, then of all
        self._counted = False
        num_layers, num_experts = shape
        # Sums for the metrics: probabilities and counts by expert, then z, entropy, micro-batch balance loss.
        self._totals = torch.zeros(2 * num_layers * num_experts + 3, dtype=torch.float64, device=device)

    def count(self, record: RouterRecord | None) -> None:
        """Add the choices of one micro-batch of the counting pass."""
        if record is not None:
            self._counts += torch.stack(record.counts)

    def loss(self, record: RouterRecord | None) -> torch.Tensor | float:
        """This micro-batch's share of ``balance_coef * balance + z_coef * z``; with gradient where there is any.

        z is the mean over tokens and layers of ``logsumexp(logits)^2`` (ST-MoE, arXiv 2202.08906, equation 5).
        """
        if self._count_first and not self._counted:
            if not self.must_count:
                self.count(record)
            self._sum_over_ranks(self._counts)
            self._counted = True
        if record is None:
            return 0.0
        probability_sums, own = torch.stack(record.probability_sums), torch.stack(record.counts)
        z = torch.stack(record.z_sums).sum() / (len(own) * self.num_tokens)
        micro = balance_loss(probability_sums, own, self.num_tokens)
        self._add(probability_sums, own, z, record, micro)
        total: torch.Tensor | float = 0.0
        if self.losses.balance_coef:
            balance = balance_loss(probability_sums, self._counts, self.num_tokens) if self._count_first else micro
            total = self.losses.balance_coef * balance
        if self.losses.z_coef:
            total = total + self.losses.z_coef * z
        return total

    @torch.no_grad()
    def _add(
        self,
        probability_sums: torch.Tensor,
        counts: torch.Tensor,
        z: torch.Tensor,
        record: RouterRecord,
        micro: torch.Tensor,
    ) -> None:
        entropy = torch.stack(record.entropy_sums).sum() / (len(counts) * self.num_tokens)
        last = torch.stack((z.double(), entropy.double(), micro.double()))
        self._totals += torch.cat((probability_sums.double().flatten(), counts.double().flatten(), last))

    def metrics(self) -> dict[str, float]:
        """Of the whole step, equal on every rank; to be called once, after the last ``loss``, on every rank."""
        self._sum_over_ranks(self._totals)
        totals = self._totals.cpu()
        probability_sums, counts = totals[:-3].view(2, *self._counts.shape)
        z, entropy, micro = totals[-3:].tolist()
        load = counts / counts.mean(dim=1, keepdim=True).clamp(min=1e-9)
        return {
            "router/balance_loss": float(balance_loss(probability_sums, counts, self.num_tokens)),
            "router/balance_loss_micro": micro,
            "router/z_loss": z,
            "router/entropy": entropy,
            "router/load_max": float(load.amax(dim=1).mean()),
            "router/load_min": float(load.amin(dim=1).mean()),
            "router/unused_share": float((counts == 0).double().mean()),
        }


def mean_metrics(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the optimiser steps of an update; empty where there is none."""
    return {name: sum(step[name] for step in steps) / len(steps) for name in (steps[0] if steps else ())}
