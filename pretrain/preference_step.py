"""The Bradley-Terry loss of one optimiser step. No Ray, no DeepSpeed.

P(chosen > rejected) = sigmoid(r_chosen - r_rejected)      Bradley and Terry 1952; Ouyang et al. 2022, eq. 1
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from model.moe import RouterRecord
from pretrain.preference_data import Pairs
from pretrain.step import packed


def pair_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, *, centring: float = 0.0
) -> torch.Tensor:
    """``-log sigmoid(r_c - r_r - m) + centring (r_c + r_r)^2`` of each pair; all float32 [P].

    The margin ``m`` is Llama 2's (Touvron et al. 2023, arXiv 2307.09288, eq. 2). Only differences of scores matter to
    the first term; the second keeps their level near 0 (Eisenstein et al. 2023, arXiv 2312.09244, with 0.01).
    """
    losses = -F.logsigmoid(chosen - rejected - margins)
    return losses + centring * (chosen + rejected).square() if centring else losses


def members(pairs: np.ndarray) -> np.ndarray:
    """The rows of ``Pairs.examples`` that make up these pairs, chosen before rejected; int64 [2 P]."""
    return np.stack((2 * pairs, 2 * pairs + 1), axis=1).reshape(-1)


def pair_scores(
    score: Callable[..., torch.Tensor],
    pairs: Pairs,
    rows: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    router: RouterRecord | None = None,
) -> torch.Tensor:
    """float32 [P, 2], chosen and rejected, of the pairs ``rows``; ``score`` is a ``model.reward_head.RewardModel``.

    Without pairs it is a pass over one row that scores nothing: the same collectives, and [0, 2].
    """
    return score(*packed(pairs.examples, members(rows), device), router=router).view(-1, 2)


def micro_batch_pair_loss(
    scores: torch.Tensor, pairs: Pairs, rows: np.ndarray, *, denominator: int, centring: float = 0.0
) -> torch.Tensor:
    """The losses summed over the pairs ``rows``, divided by ``denominator``: the whole step's number of pairs.

    So the losses of all micro-batches and ranks add up to the mean over pairs, however they were cut.
    """
    margins = torch.as_tensor(pairs.margins[rows], device=scores.device)
    return pair_losses(scores[:, 0], scores[:, 1], margins, centring=centring).sum() / denominator
