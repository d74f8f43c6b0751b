"""From logits to a token: temperature, top-k, top-p, and one uniform number a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GREEDY = 0.0


def uniforms(seed: int, num: int) -> torch.Tensor:
    """float64 [num] in [0, 1): a row's whole randomness, drawn on CPU so that every device samples alike."""
    return torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Sampler:
    """``logits [B, V], draws [B] in [0, 1) -> token ids int64 [B], their log-probabilities float32 [B]``.

    Raises:
        ValueError: a setting out of its range; logits that are no numbers.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = -1

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # NaN too
            raise ValueError(f"temperature: expected >= 0 (0 is greedy), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected in (0, 1], got {self.top_p}")
        if self.top_k < 1 and self.top_k != -1:
            raise ValueError(f"top_k: expected >= 1, or -1 for all tokens, got {self.top_k}")

    def __call__(self, logits: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = self.logprobs(logits)
        broken = int(logprobs.isnan().any(dim=-1).sum())
        if broken:
            raise ValueError(
                f"logits: expected numbers, got NaN or infinity in {broken} of {len(logits)} rows; the weights hold "
                "such values, or the model overflows in its dtype"
            )
        if self.temperature == GREEDY:
            tokens = logprobs.argmax(dim=-1, keepdim=True)
        else:
            # The inverse of the distribution function: one number a token. A token of probability 0 is an interval of
            # width 0, and ``right`` steps over it; the last ``min`` keeps rounding from leaving the last real one.
            cumulative = logprobs.double().exp().cumsum(dim=-1)
            total = cumulative[:, -1:].contiguous()
            tokens = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
            tokens = tokens.minimum(torch.searchsorted(cumulative, total))
        return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [B, V]: the log-probabilities sampled from; -inf for what top-k and top-p leave out."""
        logits = logits.float()
        if self.temperature == GREEDY:
            return logits.log_softmax(dim=-1)
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature  # 0 at most: no overflow to infinity
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            out = probabilities.cumsum(dim=-1) - probabilities >= self.top_p  # what comes before it is enough
            logits = logits.masked_fill(out.scatter(1, order, out), -torch.inf)
        return logits.log_softmax(dim=-1)
