"""Rotary positions: plain RoPE with any base (ABF is a change of the base) and YaRN.

Frequencies and tables are float32 whatever the model's dtype, and never parameters or buffers: casting a model to
bfloat16 must not touch them.
"""

from __future__ import annotations

import math

import torch

from model.config import Qwen3Config


def inverse_frequencies(config: Qwen3Config, device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 [head_dim / 2]: radians a position of each pair of dimensions turns by.

    Plain: theta^(-2i/d). YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than ``beta_fast`` times within the
    original length keep their frequency, those that turn less than ``beta_slow`` times are slowed by ``factor``, with a
    linear ramp between.
    """
    dim, theta = config.head_dim, config.rope_theta
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).to(torch.float32) / dim
    powers = theta**exponents
    plain = 1.0 / powers
    yarn = config.yarn
    if yarn is None:
        return plain

    def pair_turning(times: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1)
    width = high - low if high != low else 0.001  # a step instead of a ramp
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)
    keep = 1 - ramp
    return (1.0 / (yarn.factor * powers)) * (1 - keep) + plain * keep


def cos_sin(
    config: Qwen3Config, positions: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables for ``positions`` (int64 [...]), each [..., head_dim], computed in float32 and given as ``dtype``.

    YaRN's attention factor is in them, on queries and keys alike.
    """
    angles = positions[..., None].float() * inverse_frequencies(config, positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    scale = 1.0 if config.yarn is None else config.yarn.cos_sin_scale
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn ``x`` [T, heads, head_dim] by tables [T, head_dim]; pairs are (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
