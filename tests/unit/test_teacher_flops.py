"""What a teacher's pass costs: the output matrix is applied to loss tokens alone, and that is what is counted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from actors.teacher import scoring_flops
from model.config import Qwen3Config


def test_only_loss_tokens_have_logits() -> None:
    config = Qwen3Config(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    batch = SimpleNamespace(
        cu_seqlens=np.array([0, 3, 5]), loss_mask=np.array([False, True, True, False, False])
    )  # a row of 3 tokens, 2 of them scored, and one of 2 without a loss token
    body = 8 * (2 * 8 + 2 * 4) + 3 * 8 * 16  # projections and SwiGLU, a token
    attention = 2 * 8 * (1 + 2 + 3 + 1 + 2)
    assert scoring_flops(config, batch) == 2 * (5 * body + attention + 2 * 8 * 100)  # type: ignore[arg-type]
