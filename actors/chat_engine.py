"""One vLLM engine in the calling process, for a conversation: text as it comes, within a thinking budget."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from actors.vllm_arguments import engine_arguments, engine_env, engine_sampling, stop_ids
from model.tokenizer import load_tokenizer
from rlplatform.budget import budget_tokens
from rlplatform.completion import Sample
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.environments.episode import ChatTokens, EpisodeLimits, EpisodeTokens
from rlplatform.servable import check_servable
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, SamplingParams


class ChatEngine:
    """Loads the model when it is made.

    Raises:
        ConfigError: the engine cannot compute this model, or not at this length.
    """

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, max_model_len: int, seed: int = 0) -> None:
        check_servable(model.path, model, max_model_len)
        os.environ.update({name: value for name, value in engine_env(rollout).items() if value})
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
        self.max_model_len = max_model_len
        arguments = engine_arguments(model.path, model, replace(rollout, max_num_seqs=1), max_model_len, seed)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._stop_ids = stop_ids(self._engine.model_config.hf_config, model.path, self.tokenizer)
        self._num_requests = 0

    def stream(self, prompt: np.ndarray, sampling: SamplingParams, seed: int) -> Iterator[tuple[str, bool]]:
        """The answer to ``prompt`` (int32 [P]) as (text, was it sampled?) pieces; what a budget inserts was not.

        Stopping the iteration early gives the request up.

        Raises:
            ValueError: the prompt leaves no room for a token.
        """
        room = self.max_model_len - len(prompt)
        if room < 1:
            raise ValueError(f"the conversation has {len(prompt)} tokens, the model takes {self.max_model_len}")
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        if sampling.thinking_budget is None:
            yield from ((text, True) for text in self._call(prompt.tolist(), sampling, seed, []))
            return
        total = sampling.max_new_tokens
        turn = EpisodeTokens(
            ChatTokens(self.tokenizer),
            EpisodeLimits(max_turns=1, max_tokens=total, max_turn_tokens=total),
            stop_ids=(*self._stop_ids, *sampling.stop_token_ids),
            seed=seed,
            budget=sampling.thinking_budget,
            budget_tokens=budget_tokens(self.tokenizer, sampling.thinking_stop_text),
        )
        turn.begin_at("", prompt)
        num_shown = 0
        while not turn.num_turns and not turn.ended_by:
            if inserted := turn.completion.token_ids[num_shown:].tolist():
                yield self._decode(inserted), False
            request, found = turn.request(0), list[Sample]()
            limited = replace(sampling, max_new_tokens=request.max_new_tokens)
            yield from ((text, True) for text in self._call(request.token_ids.tolist(), limited, request.seed, found))
            num_shown = len(turn.completion) + len(found[0])
            turn.take(found[0])

    def _call(self, prompt: list[int], sampling: SamplingParams, seed: int, found: list[Sample]) -> Iterator[str]:
        """Text as it is sampled; the whole sample goes into ``found`` at the end."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params: Any = engine_sampling(sampling, 1, seed, self._stop_ids)
        params.output_kind = RequestOutputKind.CUMULATIVE
        self._num_requests += 1
        name = f"chat-{self._num_requests}"
        self._engine.add_request(name, tokens_input(prompt), params)
        shown, ids, finish = "", [], None
        try:
            while finish is None:
                for output in self._engine.step():
                    ids, finish = list(output.outputs[0].token_ids), output.outputs[0].finish_reason
                text = self._decode(ids[:-1] if finish == FINISH_STOP else ids)
                if finish is None and text.endswith("\ufffd"):
                    continue  # in the middle of a character
                if text != shown:
                    yield text[len(shown) :]
                    shown = text
        finally:
            if finish is None:
                self._engine.abort_request([name])
        zeros = np.zeros(len(ids), dtype=np.float32)  # nobody trains on a chat
        finish = finish if finish in (FINISH_STOP, FINISH_LENGTH) else FINISH_LENGTH
        found.append(Sample(np.array(ids, dtype=np.int32), zeros, np.zeros(len(ids), dtype=np.int32), finish))

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def close(self) -> None:
        self._engine.engine_core.shutdown()
