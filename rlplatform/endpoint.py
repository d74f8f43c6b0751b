"""`rlplatform serve`: vLLM's OpenAI-compatible server with this project's template, reasoning parser and budget.

A request gives ``thinking_token_budget`` beside the usual fields: so many tokens are sampled behind ``<think>``, then
the server writes the stop text. The reply holds the thought in ``reasoning`` and the answer in ``content``. Flags
`/think` and `/no_think` are text; ``chat_template_kwargs: {"enable_thinking": false}`` closes the block in the prompt.
A key that the endpoint does not know is an error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rlplatform.budget import STOP_TEXT
from rlplatform.config import ModelConfig
from rlplatform.servable import check_servable, tokenizer_of

BUDGET_EXTENSION = "actors.served_budget.ServedBudget"  # without it the stop text lands in answers
REQUESTS = "actors.served_requests.Requests"  # without it a misspelt key is ignored, and turns may not end
STOP_IDS = "RLPLATFORM_STOP_IDS"  # for it: what ends a turn, "151643,151645"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command(
    model: str, *, host: str, port: int, max_model_len: int, dtype: str, name: str, stop_text: str = STOP_TEXT
) -> list[str]:
    """The server's command line."""
    reasoning = {"reasoning_parser": "qwen3", "reasoning_start_str": "<think>", "reasoning_end_str": stop_text}
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    arguments += ["--served-model-name", name or Path(model).name, "--host", host, "--port", str(port)]
    arguments += ["--dtype", dtype, "--max-model-len", str(max_model_len), "--generation-config", "vllm"]
    arguments += ["--reasoning-parser", "qwen3", "--reasoning-config", json.dumps(reasoning)]
    arguments += ["--worker-extension-cls", BUDGET_EXTENSION, "--middleware", REQUESTS]
    arguments += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    template = Path(model) / "chat_template.jinja"
    if template.is_file():
        arguments += ["--chat-template", str(template)]
    if not Path("/dev/nvidia0").exists():
        arguments += ["--enforce-eager"]
    return arguments


def turn_ends(model: str) -> str:
    """All ids that end a completion, as rollouts know them: vLLM's server does not read the template."""
    from transformers import AutoConfig

    from actors.vllm_arguments import stop_ids

    return ",".join(map(str, sorted(stop_ids(AutoConfig.from_pretrained(model), model, tokenizer_of(model)))))


def environment(stop_ids: str) -> dict[str, str]:
    found = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ | {STOP_IDS: stop_ids}
    if not Path("/dev/nvidia0").exists():
        found.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        found.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        found.setdefault("OMP_NUM_THREADS", "1")
    return found


def serve(model: str, *, host: str, port: int, max_model_len: int, dtype: str, name: str) -> None:
    """Become the server; does not return. A key in VLLM_API_KEY is asked of every client.

    Raises:
        ConfigError: the engine cannot compute this model.
    """
    check_servable(model, ModelConfig(path=model), max_model_len)
    if host not in LOOPBACK and not os.environ.get("VLLM_API_KEY"):
        print(
            f"warning: {host} is reachable from outside and no key is asked for; set VLLM_API_KEY to ask for one",
            file=sys.stderr,
        )
    arguments = command(model, host=host, port=port, max_model_len=max_model_len, dtype=dtype, name=name)
    os.execve(arguments[0], arguments, environment(turn_ends(model)))
