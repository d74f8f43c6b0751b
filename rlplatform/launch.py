"""The composition root: configuration -> placement -> actors -> ``rl_loop.train``. Nothing else is decided here."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlplatform import checkpoint
from rlplatform.config import DataConfig, EvalConfig, RLConfig, SampleConfig, SamplingConfig
from rlplatform.configfile import to_dict
from rlplatform.data import PromptSet, load_prompts, prompt_stream
from rlplatform.environment import prepare
from rlplatform.environment_checks import check_environment
from rlplatform.evaluation.runner import Evaluation, evaluate
from rlplatform.reward_checks import accuracy_metric, check_columns, probe
from rlplatform.rl_loop import train
from rlplatform.roles import Scorer
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.servable import check_servable, tokenizer_of
from rlplatform.trackers import RunTracker, Writers
from rlplatform.types import Metrics, Prompt, RolloutGroup, SamplingParams, ScoredGroup

if TYPE_CHECKING:
    from actors.reward_service import RewardService
    from actors.rollout_fleet import RolloutFleet
    from rlplatform.recorded import Recorded

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    output: str  # the exported model's folder, or the dataset's
    summary: Mapping[str, Any]


# --- Ray ------------------------------------------------------------------------------------------------------------


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the length of a run: the cluster of RAY_ADDRESS (set inside Ray jobs), or a local one of its own."""
    prepare()
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address=os.environ.get("RAY_ADDRESS") or "local",
        include_dashboard=None if os.environ.get("RAY_ADDRESS") else False,
        log_to_driver=False,  # actors write into the run's logs/
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


# --- pieces ---------------------------------------------------------------------------------------------------------


def sampling_params(config: SamplingConfig) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        presence_penalty=config.presence_penalty,
        frequency_penalty=config.frequency_penalty,
        stop_token_ids=tuple(config.stop_token_ids),
        thinking_budget=config.thinking_budget,
        thinking_stop_text=config.thinking_stop_text,
    )


def prompts_of(data: DataConfig, tokenizer: Any, folder: RunFolder, label: str) -> PromptSet:
    """The prompts of a dataset; the ids of those too long are written down."""
    prompt_set = load_prompts(data, tokenizer)
    if prompt_set.too_long:
        lines = [
            json.dumps({"prompt_id": prompt_id, "tokens": tokens, "limit": data.max_prompt_tokens})
            for prompt_id, tokens in prompt_set.too_long
        ]
        path = folder.path / f"dropped_prompts_{label}.jsonl"
        write_atomically(path, "\n".join(lines) + "\n")
        LOGGER.warning(
            "%d prompts of %d longer than data.max_prompt_tokens=%d were left out; their ids: %s",
            len(prompt_set.too_long),
            len(prompt_set.too_long) + len(prompt_set.prompts),
            data.max_prompt_tokens,
            path,
        )
    return prompt_set


class ShuffledRewards:
    """A scorer that permutes verdicts inside each group: the control that must not learn."""

    def __init__(self, scorer: Scorer, seed: int) -> None:
        self._scorer, self._seed = scorer, seed

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        self._scorer.submit(groups, step=step)

    def poll(self, timeout_s: float) -> list[ScoredGroup]:
        return [self._shuffled(scored) for scored in self._scorer.poll(timeout_s)]

    def _shuffled(self, scored: ScoredGroup) -> ScoredGroup:
        order = np.random.default_rng([self._seed, scored.group.step, scored.group.index])
        verdicts = [scored.verdicts[i] for i in order.permutation(len(scored.verdicts))]
        return replace(scored, verdicts=tuple(verdicts))

    @property
    def num_pending(self) -> int:
        return self._scorer.num_pending

    def metrics(self) -> Metrics:
        return self._scorer.metrics()


def evaluator(
    prompts: Sequence[Prompt],
    *,
    fleet: RolloutFleet | Recorded,
    service: RewardService | Recorded,
    sampling: SamplingParams,
    num_samples: int,
    metric: str,
    seed: int,
    greedy: bool,
    folder: RunFolder,
) -> Callable[[int], Evaluation]:
    """``evaluate(step)`` on live actors; its rollouts are recorded under eval/."""

    def run(step: int) -> Evaluation:
        result = evaluate(
            prompts,
            generate=lambda requests, params: fleet.generate(requests, sampling=params),
            score=lambda groups: service.score(groups, step=step),
            sampling=sampling,
            num_samples=num_samples,
            metric=metric,
            seed=seed,
            greedy=greedy,
            graders=service.graders,
        )
        folder.write_rollouts(result.sampled, step=step, kind="eval")
        return result

    return run


# --- runs -----------------------------------------------------------------------------------------------------------


def run_rl(config: RLConfig) -> Outcome:
    """One reinforcement learning run, from its latest complete checkpoint if there is one.

    Raises:
        ConfigError: data, model or rewards cannot be used; nothing was started.
        RunStopped, StallError: see ``rl_loop.train``.
    """
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    metric = accuracy_metric(config.reward, config.evaluation.metric)
    with probe(config.reward) as rewards:
        tokenizer = tokenizer_of(config.model.path, trust_remote_code=config.model.trust_remote_code)
        check_servable(config.model.path, config.model, config.max_model_len)
        prompts = prompts_of(config.data, tokenizer, folder, "train")
        held_out = (
            prompts_of(config.evaluation.data, tokenizer, folder, "eval") if config.evaluation.data.path else None
        )
        every = [*prompts.prompts, *(held_out.prompts if held_out else ())]
        check_environment(config.environment, every)
        check_columns(config.reward, every)
        rewards.check(prompts.prompts)
    stream = prompt_stream(prompts.prompts, config)
    found = checkpoint.latest(folder.checkpoints)
    with ray_session(), ExitStack() as stack:
        fleet, service, learner = _start(config, folder, stack)
        if found is not None:
            learner.load(str(found.learner))
            stream.load_state_dict(found.state["prompts"])
        sampling = sampling_params(config.sampling)
        folder.save_json("sampling.json", {"effective": fleet.effective_sampling(), "neutral": sampling.neutral})
        folder.save_json("graders.json", service.versions())
        held_out_evaluation = None
        if held_out is not None:
            held_out_evaluation = evaluator(
                held_out.prompts,
                fleet=fleet,
                service=service,
                sampling=replace(sampling, temperature=config.evaluation.temperature),
                num_samples=config.evaluation.num_samples,
                metric=metric,
                seed=config.seed,
                greedy=config.evaluation.greedy,
                folder=folder,
            )
        writers = Writers(folder, config.tracker, name=config.name, settings=to_dict(config))
        tracker = RunTracker(
            folder,
            name=config.name,
            num_steps=config.num_steps,
            learner=learner,
            checkpoints=config.checkpoint,
            writers=writers,
            evaluate=(lambda step: held_out_evaluation(step).metrics) if held_out_evaluation else None,
            evaluate_every=config.evaluation.every,
            gate=_gate(config, prompts, fleet, learner) if config.publish.parity_gate else None,
            record_rollouts=config.tracker.rollouts,
        )
        stack.callback(tracker.close)
        began = time.perf_counter()
        scorer: Scorer = ShuffledRewards(service, config.seed) if config.reward.shuffle_control else service
        train(config=config, prompts=stream, generator=fleet, scorer=scorer, learner=learner, tracker=tracker)
        learner.export(str(folder.model))
        rows = folder.read_metrics()
        summary = {
            "seconds": round(time.perf_counter() - began, 1),
            "steps": learner.version,
            "before": {k: v for k, v in rows[0].items() if k.startswith("eval/")} if rows else {},
            "after": {k: v for k, v in rows[-1].items() if k.startswith("eval/")} if rows else {},
            "problems": len(held_out.prompts) if held_out else 0,
        }
        return Outcome(str(folder.model), summary)


def _start(config: RLConfig, folder: RunFolder, stack: ExitStack) -> tuple[Any, Any, Any]:
    """Fleet, reward service and learner, started side by side; closed in reverse order with the stack."""
    from actors.learner import LearnerGroup
    from actors.reward_service import RewardService
    from actors.rollout_fleet import RolloutFleet
    from actors.teacher import TeacherFleet
    from actors.weight_sync import WeightSync

    os.environ["RLPLATFORM_LOG_DIR"] = str(folder.logs.resolve())
    with ThreadPoolExecutor(4) as pool:
        starts: list[Future[Any]] = [
            pool.submit(
                RolloutFleet,
                config.model.path,
                config.model,
                config.rollout,
                sampling_params(config.sampling),
                config.max_model_len,
                config.seed,
                environment=config.environment,
            ),
            pool.submit(RewardService, config.reward, folder.path),
            pool.submit(LearnerGroup, config, config.model.path, dump_dir=str(folder.path.resolve())),
        ]
        if config.teacher.path:
            starts.append(pool.submit(TeacherFleet, config.teacher, config.model))
        started, errors = [], []
        for future in starts:
            try:
                actor = future.result()
                stack.callback(actor.close)
                started.append(actor)
            except Exception as error:  # close what did start, then raise
                errors.append(error)
    if errors:
        raise errors[0]
    fleet, service, learner, *teachers = started
    learner.attach(WeightSync(fleet, config.publish))
    for teacher in teachers:
        learner.attach_teacher(teacher)
    return fleet, service, learner


def _gate(config: RLConfig, prompts: PromptSet, fleet: Any, learner: Any) -> Callable[[], Metrics]:
    from actors.parity import parity_gate

    return lambda: parity_gate(
        learner,
        fleet,
        prompts.prompts,
        dtype=config.model.dtype,
        tolerance=config.publish.parity_tolerance,
        seed=config.seed,
    )


def graded_prompts(config: EvalConfig | SampleConfig, folder: RunFolder, label: str) -> tuple[Prompt, ...]:
    """The prompts to ask, with model and rewards checked against them; starts nothing that stays.

    Raises:
        ConfigError: data, model or rewards cannot be used.
    """
    with probe(config.reward) as rewards:
        tokenizer = tokenizer_of(config.model.path, trust_remote_code=config.model.trust_remote_code)
        check_servable(config.model.path, config.model, config.max_model_len)
        prompts = prompts_of(config.data, tokenizer, folder, label).prompts
        check_environment(config.environment, prompts)
        check_columns(config.reward, prompts)
        rewards.check(prompts)
    return prompts


def graded_fleet(
    config: EvalConfig | SampleConfig, folder: RunFolder, stack: ExitStack
) -> tuple[RolloutFleet, RewardService]:
    """Engines of the model and the reward service, closed with the stack."""
    from actors.reward_service import RewardService
    from actors.rollout_fleet import RolloutFleet

    os.environ["RLPLATFORM_LOG_DIR"] = str(folder.logs.resolve())
    fleet = RolloutFleet(
        config.model.path,
        config.model,
        config.rollout,
        sampling_params(config.sampling),
        config.max_model_len,
        config.seed,
        environment=config.environment,
    )
    stack.callback(fleet.close)
    service = RewardService(config.reward, folder.path)
    stack.callback(service.close)
    return fleet, service


def run_eval(config: EvalConfig) -> Outcome:
    """Held-out pass@1 and pass@k of a model; ``results.json`` holds everything needed to repeat it."""
    folder = RunFolder(config.run_dir)
    folder.begin(config)
    metric = accuracy_metric(config.reward, config.metric)
    prompts = graded_prompts(config, folder, "eval")
    with ray_session(), ExitStack() as stack:
        fleet, service = graded_fleet(config, folder, stack)
        result = evaluator(
            prompts,
            fleet=fleet,
            service=service,
            sampling=sampling_params(config.sampling),
            num_samples=config.num_samples,
            metric=metric,
            seed=config.seed,
            greedy=config.greedy,
            folder=folder,
        )(0)
        effective, graders = fleet.effective_sampling(), service.versions()
    summary = {
        "model": config.model.path,
        "data": config.data.path,
        "problems": len(prompts),
        "num_samples": config.num_samples,
        "seed": config.seed,
        "sampling": effective,
        "graders": graders,
        **{name.removeprefix("eval/"): value for name, value in result.metrics.items()},
    }
    return Outcome(str(folder.save_json("results.json", summary)), summary)
