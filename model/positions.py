"""What a ``config.json`` says about positions: RoPE, YaRN and Dual Chunk Attention. Imports no torch.

transformers changed the place and the spelling of the rope settings from 4 to 5; ``rope_settings`` reads both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnsupportedModelError(ValueError):
    """The model cannot be computed here with the numbers it would have elsewhere; the message says which part."""


_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "int": ("a whole number", int),
    "float": ("a number", (int, float)),
    "bool": ("true or false", bool),
}


def check_types(config: Any) -> None:
    """Numbers of a JSON or YAML file are not converted: "4" is no 4, and 4.0 no size."""
    for name, declared in config.__annotations__.items():
        value = getattr(config, name)
        kind, _, optional = declared.partition(" | ")
        if kind not in _TYPES or (optional and value is None):
            continue
        what, allowed = _TYPES[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
            raise ValueError(f"{name}: expected {what}, got {value!r}")


@dataclass(frozen=True)
class YarnConfig:
    """YaRN (arXiv 2309.00071): RoPE stretched by ``factor`` beyond ``original_max_position_embeddings``."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # scales cos and sin; None: 0.1 ln(factor) + 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.factor < 1:
            raise ValueError(f"YaRN factor: expected >= 1, got {self.factor}")
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                "YaRN original_max_position_embeddings: expected the length the model was trained on, "
                f"got {self.original_max_position_embeddings}"
            )

    @property
    def cos_sin_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class DualChunkConfig:
    """Dual Chunk Attention (arXiv 2402.17463): relative positions never exceed ``chunk_size``."""

    chunk_size: int
    local_size: int
    original_max_position_embeddings: int = 0  # attention is scaled for longer rows; 0: no scaling

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.local_size < self.chunk_size:
            raise ValueError(
                f"dual chunk attention: expected 0 < local_size < chunk_size, got {self.local_size}, {self.chunk_size}"
            )
        if self.original_max_position_embeddings < 0:
            raise ValueError(
                "dual chunk attention: original_max_position_embeddings: expected a number of tokens, or 0 for no "
                f"scaling, got {self.original_max_position_embeddings}"
            )

    @property
    def chunk_len(self) -> int:
        return self.chunk_size - self.local_size


def rope_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` (transformers 5), or ``rope_scaling`` and ``rope_theta`` (4), under 5's keys.

    ``rope_type`` is always among them, ``rope_theta`` where the file states it; null stands for absent. A file may
    state both spellings if they agree. Where they differ, transformers 5 takes ``rope_scaling`` and forgets the base
    beside it, and 4 never looks at ``rope_parameters``.

    Raises:
        UnsupportedModelError: settings that are no object, one for each kind of layer, or stated twice and different.
    """
    new, old = (_normalised(values, key) for key in ("rope_parameters", "rope_scaling"))
    bases = [settings.pop("rope_theta", None) for settings in (new, old)] + [values.get("rope_theta")]
    stated = [base for base in bases if base is not None]
    if any(base != stated[0] for base in stated) or (new and old and new != old):
        raise UnsupportedModelError(
            f"{values.get('model_type')}: the rope settings are stated twice and differ: rope_parameters="
            f"{values.get('rope_parameters')}, rope_scaling={values.get('rope_scaling')}, "
            f"rope_theta={values.get('rope_theta')}; keep one, rope_parameters or the other two"
        )
    settings = {"rope_type": "default"} | (new or old)
    return settings | {"rope_theta": stated[0]} if stated else settings


def _normalised(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise UnsupportedModelError(f"{values.get('model_type')}: {key}: expected an object, got {found!r:.60}")
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedModelError(
            f"{values.get('model_type')}: {key}: expected one RoPE for all layers, got one for each of {sorted(found)}"
        )
    settings = {name: value for name, value in found.items() if value is not None}
    kind = settings.pop("type", None)  # the older name
    return {"rope_type": kind or "default"} | settings if settings or kind else {}


def read_rope(values: dict[str, Any], max_positions: int) -> tuple[float, YarnConfig | None]:
    """Take the rope settings out of ``values``."""
    rope = rope_settings(values)
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        values.pop(key, None)
    theta = _as_float(rope.get("rope_theta", 10_000))  # transformers' default
    if rope["rope_type"] != "yarn":
        return theta, None
    return theta, YarnConfig(
        factor=_as_float(rope.get("factor")),  # absent: refused as any other that is no number
        original_max_position_embeddings=rope.get("original_max_position_embeddings") or max_positions,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=rope.get("attention_factor"),
    )


def read_dual_chunk(values: Any) -> DualChunkConfig | None:
    if not values:
        return None
    if not isinstance(values, Mapping):
        raise UnsupportedModelError(f"dual_chunk_attention_config: expected an object, got {values!r:.60}")
    values = {key: value for key, value in values.items() if value is not None}  # null stands for absent
    needed, known = {"chunk_size", "local_size"}, {"chunk_size", "local_size", "original_max_position_embeddings"}
    if not needed <= values.keys() <= known:
        raise UnsupportedModelError(
            f"dual_chunk_attention_config: expected {sorted(known)}, got {sorted(values)}; sparse attention inside "
            "chunks is not computed here"
        )
    return DualChunkConfig(**values)


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value
