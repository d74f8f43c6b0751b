"""Distillation: how far the student's next-token distribution is from the teacher's, as pure functions of tensors.

With ``p`` the teacher's and ``q`` the student's distribution over V tokens, both ``softmax(logits / temperature)``::

    forward_kl   KL(p || q) = sum p (log p - log q)              mass-covering; what SFT on the teacher does on average
    reverse_kl   KL(q || p) = sum q (log q - log p)              mode-seeking
    jsd          beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q          with 0 < beta < 1

``jsd`` is the generalised Jensen-Shannon divergence of GKD (Agarwal et al., arXiv 2306.13649, eq. 1, section 2). Its
ends: jsd / beta -> forward_kl as beta -> 0, and jsd / (1 - beta) -> reverse_kl as beta -> 1. At the ends themselves it
is 0, so they are refused here; where another library says ``beta=0`` take ``forward_kl``, for ``beta=1`` take
``reverse_kl``. The report (arXiv 2505.09388, section 4.5) does not say which it uses.

The temperature divides both logits. A gradient then shrinks as 1 / temperature^2 for small differences; Hinton et al.
(arXiv 1503.02531, section 2.1) multiply with temperature^2 against that. Here that factor is applied only where
``temperature_squared=True``; without it the value is the divergence itself.

Shapes are those of ``losses.py``: T packed positions, ``mask`` bool [T]. Position t holds the logits that predict token
t, i.e. those of the token before it. Results are per-token values [T], 0 where masked, for ``losses.reduce`` with the
one global denominator: never averaged here, over batch or ranks. What stands in masked slots, NaN included, changes no
value and no gradient: those rows are not read at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
KINDS = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class TopK:
    """A teacher's K likeliest tokens at each of T positions, and the mass of all others as one number."""

    ids: Tensor  # int64 [T, K], distinct in each row
    logprobs: Tensor  # [T, K], log p at the temperature of the divergence, normalised over the whole vocabulary
    rest: Tensor  # [T], log of the mass of the tokens that are not in ids; -inf where nothing is left


def top_k(teacher_logits: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """Cut ``teacher_logits [T, V]``; the rest is summed up itself, so that no digits are lost by 1 - sum.

    Raises:
        ValueError: k outside 1 to V, or a temperature that is not positive.
    """
    if not 1 <= k <= teacher_logits.shape[1]:
        raise ValueError(f"top_k: expected k from 1 to the vocabulary's {teacher_logits.shape[1]}, got {k}")
    log_p = _log_softmax(teacher_logits.detach(), _positive(temperature))
    logprobs, ids = log_p.topk(k, dim=1)
    return TopK(ids, logprobs, log_p.scatter(1, ids, -math.inf).logsumexp(dim=1))


def rest_of(logprobs: Tensor) -> Tensor:
    """``log(1 - sum exp(logprobs))`` for an engine that reports ``[T, K]`` log-probabilities and nothing else.

    Where rounding leaves nothing (or less), the result is log 2^-24, float32's spacing at 1: a teacher that samples
    from a softmax leaves no token without mass, and reverse_kl would be infinite. Prefer ``top_k`` where logits exist.
    """
    left = 1.0 - logprobs.double().exp().sum(dim=1)
    return left.clamp(min=2.0**-24).log().to(logprobs.dtype)


def divergence(
    student_logits: Tensor,
    teacher: Tensor | TopK,
    mask: Tensor,
    *,
    kind: Kind,
    beta: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    chunk_tokens: int = 256,
) -> Tensor:
    """The divergence at each position, over the whole vocabulary or over the teacher's top k and one bucket.

    With a ``TopK`` of K < V tokens both distributions are taken over K + 1 outcomes: the K tokens, and "any other" with
    the mass 1 - sum. That is a divergence in its own right: never negative, and by the data processing inequality
    (merging outcomes never adds divergence) a lower bound that grows with K up to the exact value::

        0 <= D_k <= D_k' <= D_V    for k < k' < V;    the last one is the divergence over the whole vocabulary

    It is 0 where student and teacher agree on every kept token, whatever the student does with the rest. Leaving the
    rest out instead, a sum over the K alone, can be negative, and as a loss it trains mass out of the top k.

    The backward pass computes each chunk again and writes the gradient directly (``_logit_gradient``): besides the
    logits and their gradient, in the logits' dtype, only ``[chunk_tokens, V]`` float32 matrices exist.

    Args:
        student_logits: ``[T, V]``, with gradient.
        teacher: logits ``[T, V]``, or a ``TopK`` made at the same temperature. No gradient.
        mask: bool ``[T]``.
        beta: of ``jsd`` alone; the teacher's share of the mixture.
        chunk_tokens: positions of the [chunk, V] matrices that exist at a time.

    Returns:
        ``[T]``, nats (times temperature^2 if asked for), >= 0, 0 where masked; float32, float64 for float64 logits.

    Raises:
        ValueError: an unknown kind, beta, temperature or chunk out of range, or shapes that do not belong together.
    """
    if kind not in KINDS:
        raise ValueError(f"divergence: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"divergence: expected 0 < beta < 1 for jsd, got {beta}; it is 0 at its ends: use forward_kl for beta = 0, "
            "reverse_kl for beta = 1"
        )
    if chunk_tokens < 1:
        raise ValueError(f"divergence: expected chunk_tokens >= 1, got {chunk_tokens}")
    _check_shapes(student_logits, teacher, mask)
    at = mask.nonzero()[:, 0]
    given = (teacher, None, None) if isinstance(teacher, Tensor) else (teacher.logprobs, teacher.ids, teacher.rest)
    settings = _Settings(kind, float(beta), _positive(temperature), chunk_tokens)
    values = _ChunkedDivergence.apply(student_logits, *given, at, settings)
    return values * (temperature**2 if temperature_squared else 1.0)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}; a greedy teacher has no distribution to match")
    return float(temperature)


def _check_shapes(student: Tensor, teacher: Tensor | TopK, mask: Tensor) -> None:
    if student.dim() != 2 or mask.shape != student.shape[:1] or mask.dtype != torch.bool:
        raise ValueError(
            f"divergence: expected student_logits [T, V] and a bool mask [T], got {tuple(student.shape)} and "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    if isinstance(teacher, Tensor):
        if teacher.shape != student.shape:
            raise ValueError(
                f"divergence: expected the teacher's logits of shape {tuple(student.shape)} like the student's, got "
                f"{tuple(teacher.shape)}; where embeddings are padded to different sizes cut both to the tokenizer's "
                "ids (logits[:, :num_ids])"
            )
        return
    ids, logprobs, rest = teacher.ids, teacher.logprobs, teacher.rest
    if ids.shape != logprobs.shape or ids.dim() != 2 or rest.shape != ids.shape[:1] or len(ids) != len(student):
        raise ValueError(
            f"divergence: expected ids and logprobs [T, K] and rest [T] with T = {len(student)}, got "
            f"{tuple(ids.shape)}, {tuple(logprobs.shape)} and {tuple(rest.shape)}"
        )
    if not 1 <= ids.shape[1] <= student.shape[1]:
        raise ValueError(f"divergence: expected K from 1 to V = {student.shape[1]}, got {ids.shape[1]}")


# --- outcomes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    kind: str
    beta: float
    temperature: float
    chunk_tokens: int


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits / temperature, dim=1)


def _log_outcomes(
    rows: Tensor, student: Tensor, teacher: Tensor, ids: Tensor | None, rest: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``(log_q [c, V], log p [c, O], log q [c, O])`` of c rows: O = V, or K and, where K < V, one bucket."""
    log_q = _log_softmax(student.detach().index_select(0, rows), temperature)
    log_p = teacher.detach().index_select(0, rows).to(log_q.dtype)
    if ids is None or rest is None:
        return log_q, _log_softmax(log_p, temperature), log_q
    ids, rest = ids.index_select(0, rows), rest.detach().index_select(0, rows)
    if ids.shape[1] == log_q.shape[1]:
        return log_q, log_p, log_q.gather(1, ids)
    others = log_q.scatter(1, ids, -math.inf).logsumexp(dim=1, keepdim=True)
    return (
        log_q,
        torch.cat([log_p, rest[:, None].to(log_q.dtype)], dim=1),
        torch.cat([log_q.gather(1, ids), others], dim=1),
    )


def _kl_terms(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``a log(a / b) - a + b``, each >= 0; over normalised distributions they add up to KL(a || b).

    Written as ``a (r + expm1(-r))`` with r = log a - log b: where a is close to b that is a r^2 / 2, which a sum of
    ``a r`` of both signs over 150,000 tokens would round away.
    """
    a, b = log_a.exp(), log_b.exp()
    r = torch.where(a > 0, log_a - log_b, 0.0)
    near = r.clamp(min=-1.0)
    terms = torch.where(r > -1.0, a * (near + torch.expm1(-near)), a * (r - 1.0) + b)
    return torch.where(a > 0, terms, b).clamp(min=0.0)  # the clamp takes away rounding alone


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))


def _value(log_p: Tensor, log_q: Tensor, s: _Settings) -> Tensor:
    if s.kind == "forward_kl":
        return _kl_terms(log_p, log_q).sum(dim=1)
    if s.kind == "reverse_kl":
        return _kl_terms(log_q, log_p).sum(dim=1)
    log_m = _log_mixture(log_p, log_q, s.beta)
    return s.beta * _kl_terms(log_p, log_m).sum(dim=1) + (1 - s.beta) * _kl_terms(log_q, log_m).sum(dim=1)


def _weighted_gradient(log_p: Tensor, log_q: Tensor, s: _Settings) -> Tensor:
    """``q g`` with g = dD / dq of every outcome, up to a constant that softmax takes away::

    forward_kl  g = -p / q          reverse_kl  g = log q - log p          jsd  g = (1 - beta) (log q - log m)
    """
    if s.kind == "forward_kl":
        return -log_p.exp()
    q = log_q.exp()
    if s.kind == "reverse_kl":
        return torch.where(q > 0, q * (log_q - log_p), 0.0)
    return torch.where(q > 0, q * (1 - s.beta) * (log_q - _log_mixture(log_p, log_q, s.beta)), 0.0)


def _logit_gradient(
    log_student: Tensor, log_p: Tensor, log_q: Tensor, ids: Tensor | None, settings: _Settings
) -> Tensor:
    """``dD / dz_i = q_i (g_c - sum q g)``, c the outcome that token i belongs to, z = logits / temperature; [c, V]."""
    weighted = _weighted_gradient(log_p, log_q, settings)
    mean = weighted.sum(dim=1, keepdim=True)
    if ids is None:
        return weighted - log_q.exp() * mean
    kept = ids.shape[1]
    gradient = -log_student.exp() * mean
    if log_q.shape[1] > kept:  # tokens of the bucket share its q g by their part of its mass
        others = log_q[:, -1:]
        part = torch.where(others > -math.inf, log_student - others, -math.inf).exp()
        gradient += weighted[:, -1:] * part
    return gradient.scatter(1, ids, weighted[:, :kept] - log_q[:, :kept].exp() * mean)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        ids: Tensor | None,
        rest: Tensor | None,
        at: Tensor,
        settings: _Settings,
    ) -> Tensor:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        values = torch.zeros(len(student), dtype=dtype, device=student.device)
        for rows in at.split(settings.chunk_tokens):
            _, log_p, log_q = _log_outcomes(rows, student, teacher, ids, rest, settings.temperature)
            values[rows] = _value(log_p, log_q, settings)
        ctx.save_for_backward(student, teacher, ids, rest, at)
        ctx.settings = settings
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, ids, rest, at = ctx.saved_tensors
        s: _Settings = ctx.settings
        grad = torch.zeros_like(student)
        for rows in at.split(s.chunk_tokens):
            log_student, log_p, log_q = _log_outcomes(rows, student, teacher, ids, rest, s.temperature)
            at_rows = None if ids is None else ids.index_select(0, rows)
            logit_grad = _logit_gradient(log_student, log_p, log_q, at_rows, s)
            grad[rows] = (logit_grad * (grads[0][rows, None] / s.temperature)).to(student.dtype)
        return grad, None, None, None, None, None
