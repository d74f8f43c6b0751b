"""One GRPO step on Qwen3-0.6B's exact architecture and tokenizer, with random weights, in bfloat16, on CPU.

    .venv/bin/python -m benchmarks.qwen3_0_6b_step --tokenizer FOLDER_OR_tokenizer.json[.gz]

What a hub id does where a hub is reachable, shown on a local folder: the 28-layer model with its 151,936 rows of
embedding goes through the parity gate, one step of rollouts, update, verified publish and export.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

from benchmarks.common import report
from rlplatform.configfile import load_values
from rlplatform.launch import run_rl
from rlplatform.runs import RunFolder

ARCHITECTURE = {  # Qwen3 technical report, table 1; released config.json
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
IM_END, ENDOFTEXT = 151_645, 151_643


def build(folder: Path, tokenizer: Path, layers: int) -> Path:
    """A Hugging Face folder with random weights; the tokenizer is the given one with the Qwen3 chat template."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from model.chat import CHAT_TEMPLATE

    if tokenizer.is_dir():
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    else:
        raw = gzip.decompress(tokenizer.read_bytes()) if tokenizer.suffix == ".gz" else tokenizer.read_bytes()
        (folder / "tokenizer.json").write_bytes(raw)
        loaded = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        loaded.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(**{**ARCHITECTURE, "num_hidden_layers": layers}, eos_token_id=IM_END, dtype="bfloat16")
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=[IM_END, ENDOFTEXT], pad_token_id=ENDOFTEXT, temperature=0.6, top_p=0.95, top_k=20, do_sample=True
    )
    target = folder / "Qwen3-0.6B-random"
    model.save_pretrained(target)
    loaded.save_pretrained(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="two layers instead of 28")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder, args.tokenizer, 2 if args.smoke else 28)
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"What is {i} + {i}?"}) + "\n" for i in range(8)))
        config = load_values(
            {
                "kind": "rl",
                "name": "qwen3-0.6b",
                "run_dir": str(folder / "run"),
                "num_steps": 1,
                "prompts_per_step": 2,
                "group_size": 2,
                "model": {"path": str(model), "dtype": "bfloat16"},
                "data": {"path": str(prompts), "max_prompt_tokens": 64},
                "sampling": {"max_new_tokens": 16},
                "rollout": {"num_workers": 1, "kv_cache_gib": 0.5, "max_num_seqs": 8, "call_timeout_s": 600},
                "learner": {"num_workers": 1, "max_tokens_per_micro_batch": 256, "logprob_chunk_tokens": 32},
                "reward": {"functions": {f"{Path(__file__).resolve()}:length": 1.0}},
                "algorithm": {"drop_zero_variance": False},
                "optimizer": {"lr": 1e-6},
            }
        )
        began = time.perf_counter()
        run_rl(config)  # type: ignore[arg-type]
        rows = RunFolder(folder / "run").read_metrics()
        exported = sum(file.stat().st_size for file in (folder / "run" / "model").glob("*.safetensors"))
    keep = ("parity/abs_logprob_diff_mean", "parity/tolerance", "mismatch/abs_logprob_diff_mean", "publish/seconds")
    found = {key: value for row in rows for key, value in row.items() if key in keep}
    report("qwen3_0_6b_step", seconds=time.perf_counter() - began, exported_bytes=exported, **found)


def length(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    return [len(completion[0]["content"]) / 100 for completion in completions]


if __name__ == "__main__":
    main()
