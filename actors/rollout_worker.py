"""A Ray actor around one vLLM engine: requests in, whole groups of rollouts out.

The engine runs inside this process and is stepped by ``pump``. Between two steps requests are added and weights are
loaded, so a publish never races with sampling. The same class serves CPU and GPU; only engine arguments differ.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors import logs
from actors.episodes import EpisodeCall, Episodes, Play, budget_of
from actors.fleet_actor import NAME_ENV, FleetActor
from actors.payload import Payload, PublishReport, WeightManifest
from actors.vllm_arguments import engine_arguments, engine_sampling, stop_ids
from model.tokenizer import load_tokenizer
from rlplatform.completion import Completion, Sample
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, GenerationRequest, Prompt, Rollout, SamplingParams

LINGER_S = 0.01  # once a group is finished, `pump` goes on this long to let others finish too
FINISH = {"stop": FINISH_STOP, "length": FINISH_LENGTH}


@dataclass(frozen=True)
class Job:
    """One request as the fleet numbers it."""

    ticket: int
    request: GenerationRequest
    sampling: SamplingParams
    play: Play | None = None  # the environment that its completions are episodes of


@dataclass(frozen=True)
class FinishedJob:
    """What became of one job."""

    ticket: int
    rollouts: tuple[Rollout, ...]
    num_rejected: int
    prompt: Prompt | None = None  # as an environment opened it; else it is the job's and stays with the driver


@dataclass(frozen=True)
class PumpReply:
    finished: list[FinishedJob]
    num_unfinished: int  # sequences still in the engine, and episodes whose environment has the word
    busy_seconds: float  # with a sequence in the engine
    num_prompt_tokens: int = 0  # of the finished engine requests, one sample a request
    num_cached_tokens: int = 0  # of those, found in the prefix cache


@dataclass
class _Running:
    first_version: int  # in force when the request was added
    ticket: int = -1  # of the job whose completions these are
    call: EpisodeCall | None = None  # else: a part of one completion
    # sample -> [(tokens it had at a publish, the version published)]
    publishes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class RolloutWorker(FleetActor):
    """One engine. ``seed`` is the engine's own; every request carries seeds of its own.

    ``engine_len`` > ``max_model_len``: the engine has room for a later stage with longer rows (see ``begin``).
    """

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        config: RolloutConfig,
        max_model_len: int,
        seed: int,
        engine_len: int = 0,
    ):
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = engine_arguments(model_path, model, config, max(max_model_len, engine_len), seed)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        # vLLM names the file that its ranks meet at, and their shared memory, by one random name.
        self._rendezvous = self._engine.collective_rpc("rendezvous_name")[0]
        self._speak(model_path, model, max_model_len)
        self._running: dict[str, _Running] = {}  # by request of the engine
        self._num_calls = self._calls_running = 0  # of completions that take several
        self._finished: list[FinishedJob] = []
        self._prompt_tokens = self._cached_tokens = 0
        self._num_scored = 0
        self._version = 0
        self._out_of_service = ""
        self._warm_up()

    def _speak(self, model_path: str, model: ModelConfig, max_model_len: int) -> None:
        self._model_path = model_path
        self._tokenizer = load_tokenizer(model_path, trust_remote_code=model.trust_remote_code)
        self._stop_ids = stop_ids(self._engine.model_config.hf_config, model_path, self._tokenizer)
        self._episodes = Episodes(self._tokenizer, sorted(self._stop_ids), max_model_len)

    def begin(self, model_path: str, model: ModelConfig, max_model_len: int, log_folder: str) -> None:
        """Another stage: tokenizer, template and stop ids of its model, its log folder, and no request of the last one.

        Out of service until the model's weights were loaded and verified (``load_weights``).
        """
        self._out_of_service = f"the weights of {model_path} have not come yet"
        os.environ[logs.ENV] = log_folder
        logs.redirect_output(os.environ.get(NAME_ENV, "rollout"))
        self._episodes.close()
        self._engine.abort_request(list(self._running))
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._engine.collective_rpc("forget_keys_and_values")
        self._running.clear()
        self._num_calls = self._calls_running = 0
        self._finished = []
        self._prompt_tokens = self._cached_tokens = self._num_scored = 0
        self._speak(model_path, model, max_model_len)

    def shutdown(self) -> None:
        """End the processes of other ranks and remove what they share, which killing this one would leave behind."""
        import gc

        self._episodes.close()
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        for folder in ("/dev/shm", tempfile.gettempdir()):
            for left in Path(folder).glob(f"{self._rendezvous}*") if self._rendezvous else ():
                left.unlink(missing_ok=True)

    # --- generation ---------------------------------------------------------------------------------------------

    def pump(self, jobs: Sequence[Job], budget_s: float) -> PumpReply:
        """Add jobs and step until a group is finished, ``budget_s`` passed, or nothing is left to do.

        Environments answer meanwhile; they are waited for only while the engine has nothing to do.

        Raises:
            RuntimeError: a publish failed its verification; these weights must not sample.
        """
        if self._out_of_service:
            raise RuntimeError(f"out of service: {self._out_of_service}")
        for job in jobs:
            self._add(job)
        busy_s, now = 0.0, time.perf_counter()
        end = now + budget_s
        while self._engine.has_unfinished_requests() or self._episodes.num_open:
            began = now
            self._add_calls(0.0 if self._engine.has_unfinished_requests() else end - now)
            if stepped := self._engine.has_unfinished_requests():
                self._take(self._engine.step())
            self._take_groups()
            now = time.perf_counter()
            busy_s += (now - began) * stepped
            if self._finished:
                end = min(end, now + LINGER_S)
            if now >= end:
                break
        reply = PumpReply(
            self._finished,
            self._engine.get_num_unfinished_requests() - self._calls_running + self._episodes.num_open,
            busy_s,
            self._prompt_tokens,
            self._cached_tokens,
        )
        self._finished, self._prompt_tokens, self._cached_tokens = [], 0, 0
        return reply

    def effective_sampling(self, sampling: SamplingParams) -> dict[str, Any]:
        """The parameters as the engine holds them for a request, for the run's record."""
        from vllm.inputs import tokens_input

        request = self._engine.input_processor.process_inputs(
            "effective-sampling",
            tokens_input([0]),
            engine_sampling(sampling, 1, 0, self._stop_ids),
            supported_tasks=self._engine.get_supported_tasks(),
        )
        params: Any = request.params
        ours = ("stop_token_ids", "thinking_budget", "thinking_stop_text")  # the engine knows no such parameter
        names = [f.name for f in SamplingParams.__dataclass_fields__.values() if f.name not in ours]
        names[names.index("max_new_tokens")] = "max_tokens"
        effective = {name: getattr(params, name) for name in names}
        return effective | {
            "stop_token_ids": sorted(set(params.stop_token_ids) | set(params.all_stop_token_ids)),
            "thinking_budget": sampling.thinking_budget,
            "min_tokens": params.min_tokens,
            "bad_words": params.bad_words,
            "logit_bias": params.logit_bias,
            "ignore_eos": params.ignore_eos,
            "logprobs_mode": self._engine.model_config.logprobs_mode,
            "dtype": str(self._engine.model_config.dtype),
            "model": self._model_path,
        }

    def logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probabilities of given tokens at temperature 1, computed anew (the prefix cache is not read).

        Args:
            rows: int32 [L] each, at most the engine's maximum length.

        Returns:
            float32 [L] each; entry ``t`` is log p(row[t] | row[:t]), NaN for ``t = 0``.
        """
        from vllm import SamplingParams as EngineParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = EngineParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        answers: dict[str, Any] = {}
        names = [f"score-{self._num_scored + i}" for i in range(len(rows))]
        self._num_scored += len(rows)
        for name, row in zip(names, rows, strict=True):
            self._engine.add_request(name, tokens_input(row.tolist()), params)
        while len(answers) < len(rows):
            outputs = self._engine.step()
            answers |= {output.request_id: output for output in outputs if output.request_id.startswith("score-")}
            self._take(output for output in outputs if not output.request_id.startswith("score-"))
        results = []
        for name, row in zip(names, rows, strict=True):
            result = np.full(len(row), np.nan, dtype=np.float32)
            for place, entry in enumerate(answers[name].prompt_logprobs):
                if entry is not None and int(row[place]) in entry:
                    result[place] = entry[int(row[place])].logprob
            results.append(result)
        return results

    # --- weights ------------------------------------------------------------------------------------------------

    def load_weights(self, payload: Payload, version: int, full: bool) -> PublishReport:
        """Receive, reload, reset the prefix cache, verify, and only then serve ``version``: see ``weight_sync``.

        Running requests are preempted; they go on from the tokens they have, with their prefix computed anew. On a
        mismatch the report names the tensors, and this worker refuses to sample until a later publish verifies.
        """
        return self._load("receive_weights", (*payload, full, version), version)

    def join_group(self, host: str, port: int, first_rank: int, size: int, backend: str, timeout_s: float) -> None:
        """Join the process group that ``load_broadcast`` receives from, with every rank of this engine."""
        self._engine.collective_rpc("join_group", args=(host, port, first_rank, size, backend, timeout_s))

    def load_broadcast(self, manifest: WeightManifest, version: int, full: bool) -> PublishReport:
        """``load_weights``, with the bytes from the process group."""
        return self._load("receive_broadcast", (manifest, full, version), version)

    def _load(self, receive: str, args: tuple[Any, ...], version: int) -> PublishReport:
        self._out_of_service = f"publish {version} did not finish"
        reports = self._engine.collective_rpc(receive, args=args)
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("reset_prefix_cache() returned False: old keys and values would be reused")
        report = PublishReport.merge(reports)
        if report.mismatches:
            self._out_of_service = f"publish {version}: {', '.join(report.mismatches)} differ from what was sent"
            return report
        for state in self._engine.output_processor.request_states.values():
            running = self._running.get(state.external_req_id)
            if running is not None and state.detokenizer is not None:
                place = (state.detokenizer.num_output_tokens(), version)
                running.publishes.setdefault(state.request_index, []).append(place)
        self._version = version
        self._out_of_service = ""
        return report

    def version(self) -> int:
        return self._version

    # --- inside -------------------------------------------------------------------------------------------------

    def _add(self, job: Job) -> None:
        from vllm.inputs import tokens_input

        request = job.request
        budget = budget_of(request, job.sampling)
        if job.play is not None or budget is not None:
            self._episodes.begin(job.ticket, request, job.sampling, job.play, budget)
            return
        prompt = tokens_input(request.prompt.token_ids.tolist())
        params = engine_sampling(job.sampling, request.num_samples, request.seed, self._stop_ids)
        name = str(job.ticket)
        self._running[name] = _Running(self._version, ticket=job.ticket)
        self._engine.add_request(name, prompt, params)

    def _add_calls(self, timeout_s: float) -> None:
        """The next requests of completions that take several; waits up to ``timeout_s`` for the first."""
        from vllm.inputs import tokens_input

        for call in self._episodes.calls(max(timeout_s, 0.0)):
            name = f"call-{self._num_calls}"
            self._num_calls += 1
            self._calls_running += 1
            self._running[name] = _Running(self._version, call=call)
            params = engine_sampling(call.sampling, 1, call.request.seed, self._stop_ids)
            self._engine.add_request(name, tokens_input(call.request.token_ids.tolist()), params)

    def _take_groups(self) -> None:
        for group in self._episodes.take_finished():
            self._finished.append(FinishedJob(group.ticket, group.rollouts, group.num_rejected, group.prompt))

    def _take(self, outputs: Iterable[Any]) -> None:
        for output in outputs:
            running = self._running.pop(output.request_id)
            self._prompt_tokens += len(output.prompt_token_ids)
            self._cached_tokens += output.num_cached_tokens or 0
            samples = [self._sample(completion, running) for completion in output.outputs]
            if running.call is not None:
                self._calls_running -= 1
                self._episodes.give(running.call, samples[0])
                continue
            rollouts = [self._rollout(sample) for sample in samples]
            kept = tuple(rollout for rollout in rollouts if rollout is not None)
            self._finished.append(FinishedJob(running.ticket, kept, len(rollouts) - len(kept)))

    def _sample(self, completion: Any, running: _Running) -> Sample | None:
        """What the engine sampled, or None where it is rejected: aborted, or a token without its logprob."""
        finish = FINISH.get(completion.finish_reason)
        token_ids = np.asarray(completion.token_ids, dtype=np.int32)
        logprobs = sampled_logprobs(completion.token_ids, completion.logprobs)
        if finish is None or logprobs is None:
            return None
        versions = np.full(len(token_ids), running.first_version, dtype=np.int32)
        for num_tokens, version in running.publishes.get(completion.index, ()):
            versions[num_tokens:] = version
        return Sample(token_ids, logprobs, versions, finish)

    def _rollout(self, sample: Sample | None) -> Rollout | None:
        if sample is None:
            return None
        completion = Completion()
        completion.add_sample(sample)
        return completion.rollout(finish=sample.finish, text=self._text(sample.token_ids, sample.finish))

    def _text(self, token_ids: np.ndarray, finish: str) -> str:
        visible = token_ids[:-1] if finish == FINISH_STOP else token_ids  # the stop token comes last
        return self._tokenizer.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _warm_up(self) -> None:
        """The first steps allocate and compile; no measured call should pay for that."""
        self.logprobs([np.zeros(3, dtype=np.int32)])
        self._engine.reset_prefix_cache()


def sampled_logprobs(token_ids: Sequence[int], logprobs: Any) -> np.ndarray | None:
    """The sampled tokens' log-probabilities, float32 [L], looked up by token id.

    None when any is missing or not finite. A missing one must never become 0.0, which would say probability 1.
    """
    if logprobs is None or len(logprobs) != len(token_ids):
        return None
    if list(getattr(logprobs, "token_ids", ())) == list(token_ids):  # one entry a position, in order
        values = np.asarray(logprobs.logprobs, dtype=np.float32)
    else:
        entries = [logprobs[place].get(token) for place, token in enumerate(token_ids)]
        if any(entry is None for entry in entries):
            return None
        values = np.asarray([entry.logprob for entry in entries], dtype=np.float32)
    return values if np.isfinite(values).all() else None
