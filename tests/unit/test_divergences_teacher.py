"""Around distillation: do both speak of the same tokens, and what do the teacher's logits cost?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import PRESETS
from model.tokenizer import train_bpe
from rlplatform.flops import forward_flops, forward_flops_per_token
from rlplatform.vocabulary import PROBES, VocabularyError, check_vocabularies

TEXTS = ["What is 347 + 285?", "seven and five is twelve", "\n\n\n"] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 300, path)
    return path


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def test_the_same_tokenizer_twice(folder: Path) -> None:
    """The number of ids to compare is the tokenizer's, whatever both embeddings are padded to."""
    a, b = load(folder), load(folder)
    num_ids = max(a.get_vocab().values()) + 1
    assert check_vocabularies(a, b, student_rows=num_ids, teacher_rows=num_ids + 200) == num_ids
    assert num_ids == len(a)


def test_other_ids(folder: Path, tmp_path: Path) -> None:
    """As many ids as the student's, and other tokens behind them: a teacher would score words that nobody wrote."""
    other = train_bpe(["other text altogether, and more of it"] * 5, 300, tmp_path)
    assert len(other) == len(load(folder))
    with pytest.raises(VocabularyError, match=r"tokens differ.*off-policy"):
        check_vocabularies(load(folder), other, student_rows=400, teacher_rows=400)


def test_one_token_more(folder: Path) -> None:
    other = load(folder)
    other.add_tokens(["<extra>"])
    with pytest.raises(VocabularyError, match=r"1 tokens differ.*'<extra>': None and"):
        check_vocabularies(load(folder), other, student_rows=400, teacher_rows=400)


def test_too_few_rows(folder: Path) -> None:
    with pytest.raises(VocabularyError, match=r"teacher's logits have 280 columns"):
        check_vocabularies(load(folder), load(folder), student_rows=400, teacher_rows=280)


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_other_special_tokens(folder: Path, name: str) -> None:
    other = load(folder)
    setattr(other, name, "<|im_start|>")
    with pytest.raises(VocabularyError, match=f"{name}_id: the student's is"):
        check_vocabularies(load(folder), other, student_rows=400, teacher_rows=400)


def test_the_same_map_and_another_normaliser(folder: Path) -> None:
    """Equal in every id and size: only what they make of a text tells."""
    from tokenizers import normalizers

    other = load(folder)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert other.get_vocab() == load(folder).get_vocab()
    with pytest.raises(VocabularyError, match="split text differently"):
        check_vocabularies(load(folder), other, student_rows=400, teacher_rows=400)


def test_probes_cover_what_tokenizers_disagree_about() -> None:
    text = "".join(PROBES)
    assert all(part in text for part in ("\n\n", "  ", "123", "e\u0301", "你", "🙂", "<think>", "<|im_end|>", "\\frac"))


# --- operations -----------------------------------------------------------------------------------------------------


def test_a_dense_model_by_hand() -> None:
    """Qwen3-0.6B: 28 layers, hidden 1024, 16 query and 8 key heads of 128, SwiGLU 3072, 151,936 rows."""
    layer = 1024 * 2048 + 1024 * 1024 + 1024 * 1024 + 2048 * 1024 + 3 * 1024 * 3072  # q, k, v, o, SwiGLU
    head = 1024 * 151_936
    attention = 16 * 128 * 1000 * 2  # query by keys, weights by values; 1000 keys
    config = PRESETS["Qwen3-0.6B"]
    assert forward_flops_per_token(config, 1000) == 2 * (28 * (layer + attention) + head)
    assert forward_flops_per_token(config, 1000, with_logits=False) == 2 * 28 * (layer + attention)
    assert 2 * (28 * layer + head) == pytest.approx(2 * 0.596e9, rel=2e-3)  # two a parameter: the usual rule


def test_experts_by_hand() -> None:
    """Qwen3-30B-A3B: 48 layers, hidden 2048, 32 and 4 heads of 128, 8 of 128 experts of 768."""
    layer = 2048 * 4096 * 2 + 2048 * 512 * 2 + 2048 * 128 + 8 * 3 * 2048 * 768
    expected = 2 * (48 * (layer + 2 * 4096) + 2048 * 151_936)
    assert forward_flops_per_token(PRESETS["Qwen3-30B-A3B"], 1) == expected


def test_a_sequence_is_the_sum_of_its_tokens() -> None:
    config = PRESETS["Qwen3-0.6B"]
    tokens = [forward_flops_per_token(config, t, with_logits=t > 3) for t in range(1, 11)]
    assert forward_flops(config, 10, num_prompt_tokens=3) == sum(tokens)
    assert forward_flops(config, 0) == 0


def test_against_torchs_counter() -> None:
    """transformers' model with eager attention computes all T x T products: T tokens that see T keys each."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from model.config import Qwen3Config as OurConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 50,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, attn_implementation="eager"))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.arange(7)[None])
    assert counter.get_total_flops() == 7 * forward_flops_per_token(OurConfig(**sizes), 7)


def test_wrong_counts() -> None:
    config = PRESETS["Qwen3-0.6B"]
    with pytest.raises(ValueError, match="context >= 1"):
        forward_flops_per_token(config, 0)
    with pytest.raises(ValueError, match="num_prompt_tokens"):
        forward_flops(config, 3, num_prompt_tokens=4)
