"""One setting for positions beyond what a checkpoint was trained on: RoPE's base (ABF) and YaRN.

    rope = RopeOverride(theta=1_000_000.0, yarn_factor=4.0, yarn_original_length=32_768)
    values = rope.apply(read_config(path))                 # config.json as the learner, SFT and the export see it
    overrides = rope.changes(read_config(path))            # the same, as vLLM's ``hf_overrides``

Learner and engine are both given what ``changes`` says, so they cannot differ. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import DENSE, MOE, UnsupportedModelError
from model.positions import rope_settings

_YARN_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate")
_QWEN3_THETA = 10_000.0  # transformers' default where a qwen3 config.json is silent


@dataclass(frozen=True)
class RopeOverride:
    """What to change in a checkpoint's rotary positions; 0 leaves what the checkpoint has.

    ABF (arXiv 2309.16039) is a larger ``theta``. YaRN (arXiv 2309.00071) is set by two numbers, and replaces a YaRN of
    the checkpoint: ``max_position_embeddings`` becomes ``yarn_factor * yarn_original_length``.
    """

    theta: float = 0.0
    yarn_factor: float = 0.0
    yarn_original_length: int = 0  # tokens that the model was trained on before YaRN

    def __post_init__(self) -> None:
        if self.theta and self.theta <= 1:
            raise ValueError(f"rope_theta: expected > 1, or 0 for the checkpoint's own, got {self.theta}")
        if self.yarn_factor and self.yarn_factor < 1:
            raise ValueError(f"yarn_factor: expected >= 1, or 0 for what the checkpoint has, got {self.yarn_factor}")
        if self.yarn_original_length < 0:
            raise ValueError(f"yarn_original_length: expected a number of tokens, got {self.yarn_original_length}")
        if bool(self.yarn_factor) != bool(self.yarn_original_length):
            raise ValueError(
                "yarn_factor and yarn_original_length: expected both or neither (the length is what the model was "
                f"trained on, 32768 for Qwen3), got {self.yarn_factor:g} and {self.yarn_original_length}"
            )

    @property
    def is_set(self) -> bool:
        return bool(self.theta or self.yarn_factor)

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of ``config.json`` that change, whole: ``rope_parameters``, and with YaRN the maximum length.

        Args:
            values: a ``config.json`` of transformers 4 (``rope_theta``, ``rope_scaling``) or 5 (``rope_parameters``).

        Raises:
            UnsupportedModelError: the checkpoint's positions are neither plain RoPE nor YaRN, the same in all layers,
                or are stated twice and differ.
        """
        if not self.is_set:
            return {}
        name = values.get("model_type")
        rope = rope_settings(values)
        kind = rope.pop("rope_type")
        if kind not in ("default", "yarn"):
            raise UnsupportedModelError(
                f"{name}: rope_theta and yarn_factor change plain RoPE or YaRN, the checkpoint has rope_type {kind!r}"
            )
        theta = self.theta or rope.get("rope_theta")
        if not theta:
            if name not in (DENSE, MOE):
                raise UnsupportedModelError(f"{name}: config.json states no rope_theta; set model.rope_theta as well")
            theta = _QWEN3_THETA
        rope["rope_theta"] = float(theta)
        if not self.yarn_factor:
            if kind == "yarn" and not rope.get("original_max_position_embeddings"):
                rope["original_max_position_embeddings"] = values["max_position_embeddings"]
            return {"rope_parameters": {"rope_type": kind, **rope}}
        for key in _YARN_KEYS:
            rope.pop(key, None)
        rope |= {"factor": float(self.yarn_factor), "original_max_position_embeddings": self.yarn_original_length}
        return {
            "rope_parameters": {"rope_type": "yarn", **rope},
            "max_position_embeddings": int(self.yarn_factor * self.yarn_original_length),
        }

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` with the changes in, under transformers 5's keys; errors as in ``changes``."""
        changes = self.changes(values)
        old = ("rope_theta", "rope_scaling") if changes else ()
        return {key: value for key, value in values.items() if key not in old} | changes


AS_IN_CHECKPOINT = RopeOverride()
