"""Log-probabilities and entropies of chosen tokens, without a [T x V] matrix.

Only the tokens that a loss reads are computed, ``chunk_tokens`` at a time: at most two [chunk, V] float32 matrices
exist, whatever T is. The backward pass computes each chunk's logits again (about one eighth of a 1M-parameter model's
work, less of any larger one's) and writes both gradients directly, so autograd keeps nothing but the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.moe import RouterRecord


def token_logprobs_and_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    at: torch.Tensor | None = None,
    chunk_tokens: int = 1024,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``log softmax(hidden @ weight.T / temperature)`` at ``targets``, and the entropy of that distribution, in nats.

    The matrix product runs in the dtype of ``hidden``, as the sampler's does; everything after it is float32.

    Args:
        hidden: [T, H].
        weight: [V, H], the output matrix.
        targets: int64 [N], the token that each position predicts.
        at: int64 [N], the rows of ``hidden`` that predict ``targets``; ``None``: all T of them, in order.
        chunk_tokens: rows of the [chunk, V] matrix that exists at a time.
        temperature: what the sampler divided its logits by.

    Returns:
        float32 [N] log-probabilities, and float32 [N] entropies or ``None``. Both are differentiable.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}; greedy samples have no logprobs to train on")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: expected >= 1, got {chunk_tokens}")
    rows = hidden if at is None else hidden.index_select(0, at)
    if rows.shape[0] != targets.shape[0]:
        raise ValueError(
            f"expected one target a position, got {rows.shape[0]} positions and {targets.shape[0]} targets"
        )
    logprobs, entropy = _ChunkedLogprobs.apply(rows, weight, targets, chunk_tokens, temperature, with_entropy)
    return logprobs, entropy if with_entropy else None


class _ChunkedLogprobs(torch.autograd.Function):
    """With p = softmax(z), z = h W^T / temperature, l = log p[target], H = -sum p log p::

    dl/dz = onehot(target) - p          dH/dz = -p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num = hidden.shape[0]
        logprobs = hidden.new_zeros(num, dtype=torch.float32)
        entropy = hidden.new_zeros(num if with_entropy else 0, dtype=torch.float32)
        for begin in range(0, num, chunk_tokens):
            chunk = slice(begin, begin + chunk_tokens)
            log_p = _log_softmax(hidden[chunk], weight, temperature)
            logprobs[chunk] = log_p.gather(1, targets[chunk, None])[:, 0]
            if with_entropy:
                entropy[chunk] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.save_for_backward(hidden, weight, targets, entropy)
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        ctx.set_materialize_grads(False)  # an output that no loss reads has a gradient of None, and costs nothing
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads
        hidden, weight, targets, entropy = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        if grad_logprobs is None:
            grad_logprobs = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        if not entropy.numel():
            grad_entropy = None
        num = hidden.shape[0]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        # Summed over chunks in float32: a bfloat16 sum would lose the later chunks.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for begin in range(0, num, ctx.chunk_tokens):
            chunk = slice(begin, begin + ctx.chunk_tokens)
            log_p = _log_softmax(hidden[chunk], weight, ctx.temperature)
            coefficient = -grad_logprobs[chunk, None]
            if grad_entropy is not None:
                grad_logits = log_p + entropy[chunk, None]
                grad_logits.mul_(-grad_entropy[chunk, None]).add_(coefficient).mul_(log_p.exp_())
            else:
                grad_logits = log_p.exp_().mul_(coefficient)
            grad_logits.scatter_add_(1, targets[chunk, None], -coefficient)
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                if grad_weight.dtype == hidden.dtype:
                    grad_weight.addmm_(grad_logits.T, hidden[chunk])
                else:
                    grad_weight.add_(grad_logits.T @ hidden[chunk])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _log_softmax(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.sub_(logits.logsumexp(dim=1, keepdim=True))


LogitsFn = Callable[[torch.Tensor, slice], torch.Tensor]  # logits float32 [n, V], which positions they are -> [n, ...]


def map_logits(
    hidden: torch.Tensor, weight: torch.Tensor, function: LogitsFn, *, at: torch.Tensor, chunk_tokens: int = 1024
) -> torch.Tensor:
    """``function`` of the logits ``hidden[at] @ weight.T``, a chunk at a time, for what needs whole distributions.

    The logits of one chunk exist at a time; where a gradient is wanted they are computed again in the backward pass.

    Args:
        hidden: [T, H].
        weight: [V, H], the output matrix.
        function: called as ``function(logits, positions)`` with float32 [n, V] and the slice of ``at`` that they are;
            twice a chunk where a gradient is wanted, so it must have no effect but its result.
        at: int64 [N], rows of ``hidden``.

    Returns:
        The results end to end, [N, ...]; of no position: of an empty chunk.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: expected >= 1, got {chunk_tokens}")
    rows = hidden.index_select(0, at)

    def of_chunk(chunk: torch.Tensor, matrix: torch.Tensor, positions: slice) -> torch.Tensor:
        return function((chunk @ matrix.T).float(), positions)

    results = []
    for begin in range(0, max(len(rows), 1), chunk_tokens):
        positions = slice(begin, min(begin + chunk_tokens, len(rows)))
        if torch.is_grad_enabled():
            results.append(checkpoint(of_chunk, rows[positions], weight, positions, use_reentrant=False))
        else:
            results.append(of_chunk(rows[positions], weight, positions))
    return torch.cat(results)


class LogprobHead(nn.Module):
    """The output matrix as a module that answers logprobs: ZeRO-3 gathers a parameter around its module's forward."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *,
        at: torch.Tensor,
        chunk_tokens: int,
        of_logits: LogitsFn | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if of_logits is not None:
            return map_logits(hidden, self.weight, of_logits, at=at, chunk_tokens=chunk_tokens), None
        return token_logprobs_and_entropy(hidden, self.weight, targets, at=at, chunk_tokens=chunk_tokens, **kwargs)


class TokenScorer(nn.Module):
    """Policy and head as one module: packed tokens and chosen positions in, logprobs and entropies out.

    ``policy`` is any module with ``forward(token_ids, positions, cu_seqlens) -> [T, H]`` and ``lm_head_weight``; one
    with routers also takes ``router``.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.head = LogprobHead(policy.lm_head_weight)  # type: ignore[arg-type]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        scored: torch.Tensor,
        *,
        chunk_tokens: int = 1024,
        temperature: float = 1.0,
        with_entropy: bool = False,
        router: RouterRecord | None = None,
        of_logits: LogitsFn | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probability of ``token_ids[scored]`` given the earlier tokens of each one's row.

        ``scored`` is int64 [N] and never names a row's first token. Returns float32 [N] and float32 [N] or ``None``.
        ``router`` is filled with what the routers did with all T tokens. With ``of_logits`` the result is instead
        ``map_logits`` of the logits (at temperature 1) that predict those tokens, [N, ...], and ``None``.
        """
        routing = {} if router is None else {"router": router}
        hidden = self.policy(token_ids, positions, cu_seqlens, **routing)
        return self.head(
            hidden,
            token_ids[scored],
            at=scored - 1,  # the token before predicts it
            chunk_tokens=chunk_tokens,
            temperature=temperature,
            with_entropy=with_entropy,
            of_logits=of_logits,
        )
