"""`rlplatform chat`: talk to a model in the terminal. Thoughts are dimmed, a budget can be set, answers stream.

What is typed goes to the model as it is, `/think` and `/no_think` included: the model obeys them (Qwen3 report section
4.3). Lines of our own begin with a colon: `:budget 64`, `:budget off`, `:system TEXT`, `:clear`, `:help`, `:quit`.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlplatform.budget import STOP_TEXT
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.types import SamplingParams

HELP = (
    ":budget N | off   tokens of thought, then it must answer\n"
    ":system TEXT      a system message; begins anew\n"
    ":clear            begins anew\n"
    ":quit             or Ctrl-D\n"
    "/think, /no_think in a message are the model's to obey"
)
# Qwen3 report section 4.6: sampling of the two modes.
THINKING = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
NOT_THINKING = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
_FLAG = re.compile(r"(?<!\S)/(no_think|think)(?!\S)")


class Engine(Protocol):
    """``actors.chat_engine.ChatEngine`` is one."""

    tokenizer: Any

    def stream(self, prompt: np.ndarray, sampling: SamplingParams, seed: int) -> Iterator[tuple[str, bool]]: ...


@dataclass
class Conversation:
    """Messages, and how the next answer is sampled."""

    engine: Engine
    max_new_tokens: int
    stop_text: str
    budget: int | None = None
    sampling: SamplingParams | None = None  # None: the report's for the mode in force
    seed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)

    def command(self, line: str) -> str | None:
        """What a line with a colon has to say, or None where it asks to end."""
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "q"):
            return None
        if name == "budget":
            if rest in ("off", ""):
                self.budget = None
                return "no thinking budget"
            if not rest.isdigit():
                return f"expected a number of tokens or off, got {rest!r}"
            self.budget = int(rest)
            return f"thinking budget: {rest} tokens"
        if name == "system":
            self.messages = [{"role": "system", "content": rest}] if rest else []
            return "a new conversation"
        if name == "clear":
            self.messages = [message for message in self.messages if message["role"] == "system"]
            return "a new conversation"
        return HELP if name == "help" else f"no command :{name}\n{HELP}"

    @property
    def is_thinking(self) -> bool:
        """By the last flag in a user or system message; thinking where there is none."""
        flags = [f for m in self.messages if m["role"] != "assistant" for f in _FLAG.findall(m["content"])]
        return not flags or flags[-1] == "think"

    def answer(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces of the answer to ``text``, with whether they were sampled; the conversation remembers both."""
        self.messages.append({"role": "user", "content": text})
        sampling = self.sampling or (THINKING if self.is_thinking else NOT_THINKING)
        sampling = replace(
            sampling,
            max_new_tokens=self.max_new_tokens,
            thinking_budget=self.budget,
            thinking_stop_text=self.stop_text,
        )
        rendered = self.engine.tokenizer.apply_chat_template(self.messages, tokenize=False, add_generation_prompt=True)
        prompt = np.array(self.engine.tokenizer(rendered, add_special_tokens=False)["input_ids"], dtype=np.int32)
        pieces: list[str] = []
        self.seed += 1
        try:
            for piece, sampled in self.engine.stream(prompt, sampling, self.seed):
                pieces.append(piece)
                yield piece, sampled
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})


def styled(pieces: Iterator[tuple[str, bool]]) -> Iterator[tuple[str, str]]:
    """(text, style): a thought with its tags is dim, what a budget inserted yellow, the answer plain."""
    text = ""
    for piece, sampled in pieces:
        before = len(text)
        text += piece
        end = text.find("</think>")
        cut = len(piece) if end < 0 else max(0, min(len(piece), end + len("</think>") - before))
        if not text.lstrip().startswith("<think>"):
            cut = len(piece) if "<think>".startswith(text.strip()) else 0
        if not sampled:
            yield piece, "yellow"
            continue
        if piece[:cut]:
            yield piece[:cut], "dim"
        if piece[cut:]:
            yield piece[cut:], ""


def talk_to(
    model: str, *, budget: int | None, max_new_tokens: int, max_model_len: int, temperature: float | None, dtype: str
) -> None:
    """Load ``model`` and talk to it.

    Raises:
        ConfigError: the engine cannot compute this model.
    """
    _quiet()
    from actors.chat_engine import ChatEngine

    config = ModelConfig(path=model, dtype=dtype)  # type: ignore[arg-type]
    gpus = 1.0 if Path("/dev/nvidia0").exists() else 0.0
    engine = ChatEngine(config, RolloutConfig(gpus_per_worker=gpus), max_model_len)
    sampling = None if temperature is None else SamplingParams(temperature=temperature)
    try:
        run(Conversation(engine, max_new_tokens, STOP_TEXT, budget, sampling))
    finally:
        engine.close()


def _quiet() -> None:
    """The screen belongs to the conversation: of what vLLM and torch say errors alone, and on standard error.

    VLLM_LOGGING_LEVEL asks for more. To be called before vLLM is imported.
    """
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())  # what it says while imported
    warnings.filterwarnings("ignore", module=r"vllm\.")


def run(conversation: Conversation) -> None:
    """The terminal's loop; ends at :quit or the end of the input. Ctrl-C stops an answer."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(":help for commands", style="dim")
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            continue
        if line.startswith(":"):
            said = conversation.command(line)
            if said is None:
                return
            console.print(said, style="dim", markup=False)
            continue
        try:
            for text, style in styled(conversation.answer(line)):
                console.print(text, style=style or None, end="", markup=False)
        except KeyboardInterrupt:
            console.print(" (stopped)", style="dim", end="")
        except ValueError as error:
            console.print(f"error: {error}", style="red", markup=False, end="")
        console.print()
