"""Every metric a run writes: name, unit, how it is reduced, over which rows, what it tells. docs/metrics.md is this.

A name that is not in the table is an error at the first step that logs it, so the documentation cannot fall behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """``name`` may hold ``{part}``, e.g. one reward function each."""

    name: str
    unit: str
    reduction: str  # how many values become one
    rows: str  # which rows it speaks of
    meaning: str


ALL, USED, TOKENS = "all rollouts of the step", "rows trained on", "tokens with loss_mask 1"
EPISODES = "rollouts that an environment took part in"
PAIRS, HELD_OUT_PAIRS = "pairs of the step", "held-out pairs"
ROUTED = "tokens of rows trained on, prompts included; mean over optimiser steps"

REGISTRY: tuple[Metric, ...] = (
    Metric("reward/mean", "reward", "mean", "rollouts with an ok verdict", "what the policy earns; watch this first"),
    Metric("reward/std", "reward", "standard deviation", "rollouts with an ok verdict", "spread over all groups"),
    Metric("reward/trained_mean", "reward", "mean", USED, "the same after groups were dropped: what the loss sees"),
    Metric(
        "reward/part/{part}", "reward", "mean", "rollouts with an ok verdict", "one reward function, before its weight"
    ),
    Metric(
        "reward/pass_at_group",
        "share",
        "mean over groups",
        ALL,
        "groups whose best rollout has the highest reward seen in the step's maximum range: pass@group_size",
    ),
    Metric(
        "verdict/{part}", "count", "sum", ALL, "verdicts by status; what is not ok reaches neither statistics nor loss"
    ),
    Metric("groups/total", "count", "sum", "groups of the step", "groups that came back scored"),
    Metric("groups/kept", "count", "sum", "groups of the step", "groups trained on"),
    Metric(
        "groups/zero_variance", "count", "sum", "groups of the step", "groups whose rewards are all equal: no gradient"
    ),
    Metric(
        "groups/all_min",
        "count",
        "sum",
        "groups of the step",
        "zero-variance groups at the lowest reward of the step: too hard",
    ),
    Metric(
        "groups/all_max",
        "count",
        "sum",
        "groups of the step",
        "zero-variance groups at the highest reward of the step: too easy",
    ),
    Metric("groups/too_small", "count", "sum", "groups of the step", "groups with fewer than two usable rollouts"),
    Metric(
        "groups/acceptance", "share", "kept / total", "groups of the step", "how much of the sampling is trained on"
    ),
    Metric("sampling/rounds", "count", "last", "the step", "rounds of sampling, refills by dynamic sampling included"),
    Metric("rollout/length_mean", "tokens", "mean", ALL, "completion length, truncated ones included"),
    Metric("rollout/length_max", "tokens", "max", ALL, "longest completion"),
    Metric(
        "rollout/terminated_length_mean",
        "tokens",
        "mean",
        "rollouts that met a stop id",
        "length without truncated ones",
    ),
    Metric("rollout/truncated_share", "share", "mean", ALL, "cut by sampling.max_new_tokens, as the engine says"),
    Metric(
        "rollout/duplicate_share",
        "share",
        "1 - distinct / all, mean over groups",
        ALL,
        "identical completions in a group",
    ),
    Metric("rollout/rejected", "count", "sum", ALL, "left out for a missing logprob or an aborted request"),
    Metric("rollout/truncated_dropped", "count", "sum", ALL, "left out of the loss by algorithm.drop_truncated"),
    Metric("rollout/not_ok_dropped", "count", "sum", ALL, "left out because their verdict is not ok"),
    Metric(
        "rollout/empty_dropped",
        "count",
        "sum",
        ALL,
        "left out because the policy sampled no token of them, or the engine aborted them",
    ),
    Metric("episode/turns_mean", "turns", "mean", EPISODES, "assistant turns that were finished"),
    Metric("episode/tool_calls_mean", "calls", "mean", EPISODES, "results of tools that the environment gave"),
    Metric(
        "episode/limit_share",
        "share",
        "mean",
        EPISODES,
        "ended by a limit of turns or tokens instead of the environment; success is reward/part/environment",
    ),
    Metric("lag/mean", "versions", "mean over tokens", ALL, "how many publishes ago a token was sampled"),
    Metric("lag/max", "versions", "max over tokens", ALL, "never above max_lag"),
    Metric("loss/total", "nats", "sum / global denominator", TOKENS, "what was minimised"),
    Metric(
        "loss/policy",
        "nats",
        "sum / global denominator",
        TOKENS,
        "the policy gradient's surrogate; its value says little",
    ),
    Metric("loss/kl", "nats", "sum / global denominator", TOKENS, "KL to the reference, before its coefficient"),
    Metric(
        "policy/entropy",
        "nats a token",
        "mean",
        TOKENS,
        "of the policy's next-token distribution; falling to 0 is collapse",
    ),
    Metric(
        "policy/entropy_coef", "", "as used", "the update", "of the entropy bonus, with algorithm.entropy_target only"
    ),
    Metric("policy/kl_ref", "nats a token", "mean", TOKENS, "k3 estimate of KL(policy || reference)"),
    Metric(
        "distill/divergence", "nats", "mean", TOKENS, "from the teacher, as algorithm.divergence says; watch this fall"
    ),
    Metric("teacher/tokens", "tokens", "sum", "the step", "prompt and completion tokens the teacher read"),
    Metric("teacher/seconds", "s", "sum", "the step", "waited for the teacher"),
    Metric("teacher/flops", "FLOP", "sum", "the step", "of the teacher's forward passes, counted from its shape"),
    Metric("policy/ratio_mean", "ratio", "mean", TOKENS, "new / old probability; 1 on the first optimiser step"),
    Metric("policy/clip_low_share", "share", "mean", TOKENS, "tokens whose ratio was clipped from below"),
    Metric("policy/clip_high_share", "share", "mean", TOKENS, "tokens whose ratio was clipped from above"),
    Metric(
        "mismatch/abs_logprob_diff_mean",
        "nats",
        "mean",
        TOKENS,
        "|learner - sampler| on the same weights; fp32: about 1e-6",
    ),
    Metric("mismatch/abs_logprob_diff_max", "nats", "max", TOKENS, "the worst token"),
    Metric("mismatch/kl_k3", "nats a token", "mean", TOKENS, "k3 estimate of KL(sampler || learner)"),
    Metric(
        "mismatch/importance_ratio_mean", "ratio", "mean", TOKENS, "learner / sampler probability; 1 when they agree"
    ),
    Metric(
        "mismatch/effective_sample_size", "share", "(sum w)^2 / (n sum w^2)", TOKENS, "1 when sampler and learner agree"
    ),
    Metric("mismatch/truncated_share", "share", "mean", TOKENS, "importance weights cut at algorithm.importance_cap"),
    Metric(
        "router/balance_loss",
        "1",
        "mean over layers",
        ROUTED,
        "experts only: E sum f p over the whole optimiser step; 1 when even, E / k when k experts take all",
    ),
    Metric(
        "router/balance_loss_micro",
        "1",
        "mean over tokens and layers",
        ROUTED,
        "experts only: the same within each micro-batch; its distance from the above is specialisation",
    ),
    Metric("router/z_loss", "nats^2", "mean over tokens and layers", ROUTED, "experts only: logsumexp(logits)^2"),
    Metric("router/entropy", "nats", "mean over tokens and layers", ROUTED, "experts only: of the router's softmax"),
    Metric(
        "router/load_max", "ratio", "mean over layers", ROUTED, "experts only: tokens of the busiest expert / the mean"
    ),
    Metric(
        "router/load_min", "ratio", "mean over layers", ROUTED, "experts only: tokens of the idlest expert / the mean"
    ),
    Metric("router/unused_share", "share", "mean over layers", ROUTED, "experts only: experts that no token chose"),
    Metric("optimizer/lr", "1", "last", "the step", "learning rate of the last optimiser step"),
    Metric("optimizer/grad_norm", "1", "last", "the step", "before clipping"),
    Metric(
        "optimizer/skipped_steps",
        "count",
        "sum since start",
        "the run",
        "optimiser steps skipped for a non-finite gradient",
    ),
    Metric("optimizer/steps", "count", "sum since start", "the run", "optimiser steps taken"),
    Metric("learner/tokens", "tokens", "sum", USED, "tokens the learner computed on, prompts included"),
    Metric("learner/loss_tokens", "tokens", "sum", TOKENS, "the token-mean denominator"),
    Metric("learner/rows", "count", "sum", USED, "rows of the update"),
    Metric("learner/seconds", "s", "sum", "the step", "time in update"),
    Metric("learner/tokens_per_s", "tokens/s", "tokens / seconds", "the step", "training throughput"),
    Metric("generate/tokens", "tokens", "sum", ALL, "completion tokens sampled"),
    Metric(
        "generate/tokens_per_s",
        "tokens/s",
        "tokens / busy seconds",
        ALL,
        "throughput while at least one request was running",
    ),
    Metric("generate/busy_seconds", "s", "sum", "the step", "time with at least one request running"),
    Metric("generate/prefix_hit_share", "share", "hits / queries", ALL, "prompt tokens found in the prefix cache"),
    Metric("generate/restarts", "count", "sum since start", "the run", "rollout workers restarted"),
    Metric("generate/requeued", "count", "sum since start", "the run", "groups sampled again after a worker was lost"),
    Metric("score/seconds_p50", "s", "median", ALL, "time to grade one rollout"),
    Metric("score/seconds_p99", "s", "99th percentile", ALL, "the slow ones"),
    Metric(
        "score/error_rate",
        "share",
        "mean",
        ALL,
        "verdicts with status error or timeout; reward.max_error_rate stops the run",
    ),
    Metric("score/seconds_p50/{part}", "s", "median", ALL, "time one reward function takes for a rollout"),
    Metric(
        "score/seconds_p99/{part}", "s", "99th percentile", ALL, "its slow ones; slow_rewards.jsonl has the slowest"
    ),
    Metric("score/error_rate/{part}", "share", "mean", ALL, "its verdicts with status error or timeout"),
    Metric("score/queue_groups/{part}", "groups", "max", "the step", "groups that waited for it at the same time"),
    Metric(
        "score/queue_seconds/{part}",
        "s",
        "max",
        "the step",
        "longest wait of a group for a worker; rising from step to step: it needs workers of its own",
    ),
    Metric(
        "score/critical_seconds",
        "s",
        "sum",
        "the step",
        "time in which the loop had nothing to do but wait for verdicts: everything is generated, not all is graded",
    ),
    Metric("score/restarts", "count", "sum since start", "the run", "reward workers or their children restarted"),
    Metric("score/custom/{part}", "1", "mean", ALL, "what a reward function logged with log_metric"),
    Metric("publish/seconds", "s", "sum", "the step", "pause, send, reset prefix cache, verify, resume"),
    Metric("publish/bytes", "bytes", "last", "the step", "weights sent to each engine"),
    Metric(
        "publish/verified_tensors",
        "count",
        "last",
        "the step",
        "tensors compared exactly with what the engine computes with",
    ),
    Metric("publish/probed_tensors", "count", "last", "the step", "tensors compared through probes"),
    Metric("parity/abs_logprob_diff_mean", "nats", "mean", "step 0", "the parity gate's measure"),
    Metric("parity/abs_logprob_diff_max", "nats", "max", "step 0", "the worst token of the parity gate"),
    Metric("parity/tolerance", "nats", "last", "step 0", "what the gate allows"),
    Metric("memory/learner_rss_gib", "GiB", "max over ranks", "the step", "resident memory of a learner process"),
    Metric("memory/rollout_rss_gib", "GiB", "max over workers", "the step", "resident memory of a rollout worker"),
    Metric("eval/accuracy", "share", "mean", "held-out problems x samples", "pass@1 sampled: the number to believe"),
    Metric(
        "eval/accuracy_ci95",
        "share",
        "1.96 x standard error over problems",
        "held-out problems",
        "half width of the 95 % interval",
    ),
    Metric(
        "eval/pass_at_{part}",
        "share",
        "mean over problems",
        "held-out problems",
        "at least one of k samples is right (unbiased estimator)",
    ),
    Metric("eval/greedy_accuracy", "share", "mean", "held-out problems", "one greedy sample a problem"),
    Metric(
        "eval/part/{part}",
        "share",
        "mean",
        "held-out problems it applies to x samples",
        "one reward function, held out",
    ),
    Metric("eval/length_mean", "tokens", "mean", "held-out problems x samples", "completion length"),
    Metric("eval/truncated_share", "share", "mean", "held-out problems x samples", "cut by max_new_tokens"),
    Metric(
        "eval/not_ok", "count", "sum", "held-out problems x samples", "verdicts that are not ok; they count as wrong"
    ),
    Metric("loss", "nats a target", "sum / targets of the step", "supervised steps", "cross-entropy of the targets"),
    Metric(
        "target_probability",
        "share",
        "mean over rows",
        "supervised steps",
        "probability that sampling writes the whole target: an estimate of accuracy",
    ),
    Metric("tokens", "tokens", "sum", "supervised steps", "packed tokens of the step"),
    Metric("loss_tokens", "tokens", "sum", "supervised steps", "targets: the loss's denominator"),
    Metric("seconds", "s", "sum", "supervised steps", "time of the step"),
    Metric("tokens_per_s", "tokens/s", "tokens / seconds", "supervised steps", "throughput"),
    Metric("pairs", "count", "sum", PAIRS, "pairs of the step: the loss's denominator"),
    Metric("preference/accuracy", "share", "mean, ties count half", PAIRS, "chosen scored above rejected"),
    Metric("preference/margin", "nats", "mean", PAIRS, "chosen score minus rejected score"),
    Metric(
        "preference/score_mean", "nats", "mean over both answers", PAIRS, "level of the scores; centring keeps it at 0"
    ),
    Metric("preference/score_std", "nats", "standard deviation over both answers", PAIRS, "spread of the scores"),
    Metric("eval/pair_accuracy", "share", "mean, ties count half", HELD_OUT_PAIRS, "chosen scored above rejected"),
    Metric("eval/pair_loss", "nats", "mean", HELD_OUT_PAIRS, "-log sigmoid(margin); 0.693 is no opinion"),
    Metric("eval/pair_margin", "nats", "mean", HELD_OUT_PAIRS, "chosen score minus rejected score"),
    Metric(
        "eval/pair_calibration_error",
        "share",
        "mean over pairs of the gap in their bin",
        HELD_OUT_PAIRS,
        "confidence (sigmoid of the absolute margin) against the share right, 10 bins",
    ),
    Metric(
        "eval/pair_length_correlation",
        "1",
        "Pearson over pairs",
        HELD_OUT_PAIRS,
        "of margin and length difference: how far length explains the scores",
    ),
    Metric("epoch", "epochs", "last", "supervised steps", "how often the dataset was gone through"),
    Metric("time/{part}", "s", "sum", "the step", "seconds in a phase of the loop"),
    Metric("time/step", "s", "sum", "the step", "the whole step, evaluation and saving included"),
    Metric("samples_per_s", "rollouts/s", "rollouts / seconds", "the step", "without evaluation and saving"),
)

_PATTERNS = [re.compile(re.escape(m.name).replace(r"\{part\}", r"[^/].*") + r"\Z") for m in REGISTRY]


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a metric the registry does not know."""
    unknown = [name for name in names if not any(pattern.match(name) for pattern in _PATTERNS)]
    if unknown:
        raise ValueError(f"metrics {unknown} are not in rlplatform.metrics.REGISTRY; add them with unit and meaning")


def markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made from `rlplatform/metrics.py` by `python -m rlplatform.metrics`; a test compares the two. `{part}` stands",
        "for a name, e.g. of a reward function. Watch `eval/accuracy`, `reward/mean`, `policy/entropy`,",
        "`rollout/truncated_share` and `mismatch/abs_logprob_diff_mean` first.",
        "",
        "| metric | unit | reduction | over | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| `{m.name}` | {m.unit} | {m.reduction} | {m.rows} | {m.meaning} |" for m in REGISTRY]
    return (
        "\n".join(lines)
        .replace("|learner - sampler|", "abs(learner - sampler)")
        .replace("(policy || ", "(policy, ")
        .replace("(sampler || ", "(sampler, ")
        + "\n"
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased pass@k from n samples with c correct: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: k is not in 1..num_samples or num_correct not in 0..num_samples.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@k: expected 1 <= k <= n and 0 <= c <= n, got n={num_samples}, c={num_correct}, k={k}")
    wrong = num_samples - num_correct
    if wrong < k:
        return 1.0
    return 1.0 - float(np.prod([(wrong - i) / (num_samples - i) for i in range(k)]))


if __name__ == "__main__":
    print(markdown(), end="")
