"""The actor that a reward service starts for `judge_model`: a judge in a vLLM engine of its own.

It is a rollout worker that is asked judge prompts instead of training prompts: same engine, same arguments, other
questions. What is asked, and how replies are read, is ``rewards/judge_rules.py`` and ``rewards/judge_reading.py``, as
for a judge behind an endpoint.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from actors.grading_request import GradingRequest, PartScore
from actors.rollout_worker import Job, RolloutWorker
from actors.vllm_arguments import engine_env
from model.messages import RenderError, render_chat
from rewards.base import ERROR, TIMEOUT, Verdict
from rewards.judge import rows_of
from rewards.judge_prompts import Case, JudgeSettingsError
from rewards.judge_reading import settle
from rewards.judge_rules import Ask, NoReply, Reply, Rules, Usage, case_of, plan, rules_of
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.servable import check_servable
from rlplatform.types import FINISH_LENGTH, GenerationRequest, Prompt, Rollout, SamplingParams

_COLUMNS = ("reference", "answer", "baseline")


@dataclass(frozen=True)
class EngineSettings:
    """The settings of ``judge_model`` that are the engine's."""

    model_path: str = ""  # a Hugging Face folder
    dtype: str = "bfloat16"
    max_model_len: int = 8192  # tokens, prompt and reply together
    kv_cache_gib: float = 1.0  # on CPU
    gpu_memory_utilization: float = 0.85
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model_path:
            raise JudgeSettingsError("judge_model: model_path: expected the folder of an instruct model, got none")


def read_args(args: Mapping[str, Any]) -> tuple[EngineSettings, Rules]:
    """Raises JudgeSettingsError."""
    rules, engine = rules_of(args, others=[f.name for f in fields(EngineSettings)])
    if engine.get("chat_template_kwargs") is None:
        engine.pop("chat_template_kwargs", None)
    return EngineSettings(**engine), rules


class JudgeWorker(RolloutWorker):
    """See ``actors/grading_request.py`` for the contract.

    Args:
        args: settings of ``judge_model_reward``.
        timeout_s: seconds a row may take; rows of a request share the sum.
        sys_path: the driver's import path.

    Raises:
        JudgeSettingsError, ConfigError: settings that cannot work, or a model that the engine cannot serve so.
    """

    def __init__(self, args: Mapping[str, Any], timeout_s: float, sys_path: Sequence[str]) -> None:
        import ray

        from model.reward_head import weights_hash

        sys.path.extend(entry for entry in sys_path if entry not in sys.path)
        self._settings, self._rules = read_args(args)
        self._timeout_s = timeout_s
        self._tickets = 0
        model = ModelConfig(path=self._settings.model_path, dtype=self._settings.dtype)  # type: ignore[arg-type]
        rollout = RolloutConfig(
            gpus_per_worker=float(len(ray.get_gpu_ids())),
            tensor_parallel_size=max(1, len(ray.get_gpu_ids())),
            kv_cache_gib=self._settings.kv_cache_gib,
            gpu_memory_utilization=self._settings.gpu_memory_utilization,
            max_batched_tokens=max(RolloutConfig.max_batched_tokens, self._settings.max_model_len),
        )
        check_servable(model.path, model, self._settings.max_model_len)
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ.update(engine_env(rollout) | ({"OMP_NUM_THREADS": threads} if threads else {}))
        self._version_name = f"{model.path} {weights_hash(model.path)}"
        super().__init__(model.path, model, rollout, self._settings.max_model_len, seed=0)
        self._tokens = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]

    def score(self, request: GradingRequest) -> PartScore:
        """One verdict a row, in order; the requests of all rows are one batch."""
        began = time.perf_counter()
        columns = {name: request.columns.get(name) for name in _COLUMNS}
        texts = request.columns.get("prompt_text")
        cases = [
            case_of(prompt, completion, texts[row] if texts else None, of_row, self._rules)
            for row, (prompt, completion, of_row) in enumerate(
                zip(request.prompts, request.completions, rows_of(request.num_rows, **columns), strict=True)
            )
        ]
        asks = [plan(case, self._rules, self._tokens) if isinstance(case, Case) else [] for case in cases]
        replies = iter(self.replies([ask for of_row in asks for ask in of_row], self._timeout_s * request.num_rows))
        usage = Usage()
        verdicts: list[Verdict] = []
        for case, of_row in zip(cases, asks, strict=True):
            if isinstance(case, Verdict):
                verdicts.append(case)
                continue
            said = [next(replies) for _ in of_row]
            usage.add(said)
            verdicts.append(settle(of_row, said, self._rules))
        seconds = (time.perf_counter() - began) / max(1, request.num_rows)
        failed = [verdict.detail for verdict in verdicts if verdict.status in (ERROR, TIMEOUT)]
        return PartScore(
            [replace(verdict, seconds=seconds) for verdict in verdicts],
            metrics=usage.metrics(),
            tracebacks=failed[:1],
            version=self._version_name,
        )

    def version(self) -> str:  # type: ignore[override]  # of the judge; a rollout worker counts publishes
        """The model's path and the hash of its weights."""
        return self._version_name

    def replies(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply | NoReply]:
        """What the model says, in order. Equal requests are one."""
        jobs: dict[int, Job] = {}
        places: dict[tuple[bytes, int], int] = {}  # prompt and seed -> ticket
        wanted: list[int | NoReply] = []
        for ask in asks:
            job = self._job(ask)
            if isinstance(job, Job):
                key = (job.request.prompt.token_ids.tobytes(), job.request.seed)
                ticket = places.setdefault(key, job.ticket)
                jobs.setdefault(ticket, job)
                wanted.append(ticket)
            else:
                wanted.append(job)
        found = self._generated(jobs, timeout_s)
        late = NoReply(TIMEOUT, f"the judge had not finished after {timeout_s:g} s")
        return [found.get(want, late) if isinstance(want, int) else want for want in wanted]

    def _job(self, ask: Ask) -> Job | NoReply:
        try:
            text = render_chat(
                self._tokenizer,
                ask.messages,
                add_generation_prompt=True,
                template_kwargs=self._settings.chat_template_kwargs,
            )
        except RenderError as error:
            return NoReply(ERROR, f"the judge's prompt: {error}")
        ids = np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        room = self._settings.max_model_len - len(ids)
        if room < max(1, self._rules.max_tokens):
            return NoReply(
                ERROR,
                f"the judge's prompt has {len(ids)} tokens; with max_tokens={self._rules.max_tokens} that is more than "
                f"max_model_len={self._settings.max_model_len}: raise it, or lower max_answer_chars",
            )
        self._tickets += 1
        sampling = SamplingParams(
            max_new_tokens=self._rules.max_tokens or room, temperature=float(self._rules.temperature)
        )
        prompt = Prompt(f"judge-{self._tickets}", ask.messages, ids, text)
        seed = self._rules.seed + ask.vote
        return Job(self._tickets, GenerationRequest(prompt, 1, 0, self._tickets, seed), sampling)

    def _generated(self, jobs: Mapping[int, Job], timeout_s: float) -> dict[int, Reply | NoReply]:
        """Ticket -> reply; what is not finished in time is absent, and no longer computed."""
        end = time.monotonic() + timeout_s
        found: dict[int, Reply | NoReply] = {}
        waiting: Sequence[Job] = list(jobs.values())
        while len(found) < len(jobs) and (left_s := end - time.monotonic()) > 0:
            for done in self.pump(waiting, left_s).finished:
                if done.ticket in jobs:
                    found[done.ticket] = _reply(done.rollouts, jobs[done.ticket])
            waiting = ()
        late = [str(ticket) for ticket in jobs if ticket not in found]
        if late:
            self._engine.abort_request(late)
            for name in late:
                self._running.pop(name, None)
        return found


def _reply(rollouts: Sequence[Rollout], job: Job) -> Reply | NoReply:
    if not rollouts:
        return NoReply(ERROR, "the engine gave up on the judge's reply")
    [rollout] = rollouts
    return Reply(
        rollout.text,
        complete=rollout.finish != FINISH_LENGTH,
        prompt_tokens=len(job.request.prompt.token_ids),
        completion_tokens=len(rollout.token_ids),
    )
