"""How surprising a text is to a small model: the model folders of this project, and any causal LM's.

CCNet ranked web pages so (Wenzek et al. 2019, arXiv:1911.00359, section 3.3). Low is not good by itself: boilerplate
and repetition have the lowest values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.data.labellers.length import encode, token_id
from pretrain.data.labels import Value, labeller
from rlplatform.config import ConfigError

_START = "<|endoftext|>"  # what stands before a document where documents are joined


@labeller(version="2", files=("model",), where=("batch_tokens",))
def perplexity(
    texts: Sequence[str],
    *,
    model: str,
    dtype: str = "float32",
    window: int = 1024,
    overlap: int = 512,
    max_tokens: int = 0,
    batch_tokens: int = 8192,
) -> list[Mapping[str, Value]]:
    """``perplexity`` = exp(mean negative log-likelihood of a token), ``bits_per_byte`` = its sum / (ln 2 · bytes).

    Every token is scored once. The first is predicted from ``<|endoftext|>`` where the tokenizer has it, and is not
    scored where it has not. A text longer than ``window`` is read in windows; a token sees at least ``overlap`` tokens
    before it, as far as the text has them. Bits per byte compare models of different tokenizers; both are not
    applicable to a text without a scored token, and ``bits_per_byte`` where tokens were left out.

    Args:
        model: a model folder with its tokenizer.
        dtype: ``float32`` or ``bfloat16``, of the forward pass; sums are float64.
        window: tokens of a forward pass's row.
        overlap: tokens of a window that are context alone, but for the first window.
        max_tokens: of a text's beginning that are scored; 0 = all.
        batch_tokens: tokens packed into one forward pass.
    """
    ids = encode(model, texts)
    start = token_id(model, _START)
    cut = [found[: max_tokens or len(found)] for found in ids]
    rows = [([] if start is None else [start]) + found for found in cut]
    nats = _negative_log_likelihoods(rows, load_model(model, dtype), window, overlap, batch_tokens)
    answers: list[Mapping[str, Value]] = []
    for text, row, all_ids, used, total in zip(texts, rows, ids, cut, nats, strict=True):
        scored = len(row) - 1
        whole = scored == len(all_ids) and len(used) == len(all_ids)
        answers.append(
            {
                "perplexity": math.exp(total / scored) if scored > 0 else None,
                "bits_per_byte": total / math.log(2) / len(text.encode()) if scored > 0 and whole else None,
            }
        )
    return answers


def check_settings(**settings: Any) -> None:
    """Raises ConfigError."""
    window, overlap = settings.get("window", 1024), settings.get("overlap", 512)
    if not 0 < overlap < window:
        raise ConfigError(f"expected 0 < overlap < window, got overlap {overlap} and window {window}")
    if settings.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: expected float32 or bfloat16, got {settings['dtype']!r}")
    if settings.get("max_tokens", 0) < 0 or settings.get("batch_tokens", 1) < 1:
        raise ConfigError("expected max_tokens >= 0 and batch_tokens >= 1")


perplexity.check_settings = check_settings  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Window:
    """Tokens ``begin`` to ``end`` of row ``row``, of which those from ``scored`` on are scored."""

    row: int
    begin: int
    scored: int
    end: int


def windows(lengths: Sequence[int], window: int, overlap: int) -> Iterator[Window]:
    """Windows over rows of ``lengths`` tokens, such that every token but a row's first is scored in exactly one."""
    for row, length in enumerate(lengths):
        scored = 1
        begin = 0
        while scored < length:
            end = min(begin + window, length)
            yield Window(row, begin, scored, end)
            scored, begin = end, end - overlap


def batches(found: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows of at most ``batch_tokens`` tokens together; one that is longer goes alone."""
    batch: list[Window] = []
    for one in found:
        if batch and sum(w.end - w.begin for w in batch) + one.end - one.begin > batch_tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _negative_log_likelihoods(
    rows: Sequence[Sequence[int]], policy: Any, window: int, overlap: int, batch_tokens: int
) -> list[float]:
    """The sum over each row's scored tokens, in nats."""
    import torch

    from model.logprobs import TokenScorer

    scorer = TokenScorer(policy)
    device = policy.lm_head_weight.device
    sums = [0.0] * len(rows)
    for batch in batches(list(windows([len(row) for row in rows], window, overlap)), batch_tokens):
        tokens: list[int] = []
        positions: list[int] = []
        scored: list[int] = []
        bounds = [0]
        for one in batch:
            scored += range(len(tokens) + one.scored - one.begin, len(tokens) + one.end - one.begin)
            tokens += rows[one.row][one.begin : one.end]
            positions += range(one.end - one.begin)
            bounds.append(len(tokens))
        with torch.no_grad():
            logprobs, _ = scorer(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                torch.tensor(bounds, dtype=torch.int32, device=device),
                torch.tensor(scored, device=device),
            )
        values = logprobs.double().cpu()
        at = 0
        for one in batch:
            number = one.end - one.scored
            sums[one.row] -= float(values[at : at + number].sum())
            at += number
    return sums


@functools.lru_cache(maxsize=2)
def load_model(folder: str, dtype: str) -> Any:
    """The model of a folder, on the GPU where this process has one (``workers.gpus``)."""
    import torch

    from model.hf import load_policy

    return load_policy(folder, dtype=dtype).eval().to("cuda" if torch.cuda.is_available() else "cpu")
