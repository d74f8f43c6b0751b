"""On-policy distillation against reinforcement, from one off-policy student, with what each cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.findings.ablations import parent_key, parent_of, same_as
from benchmarks.findings.drawing import canvas, percent, points, save
from benchmarks.findings.measures import (
    difference,
    eval_file,
    eval_steps,
    mean_of,
    metrics_of,
    pass_at,
    problem_means,
    value,
)
from benchmarks.findings.study import Numbers, Run, Settings, Study, finished_run, recipe_of, shown
from rlplatform.flops import forward_flops

if TYPE_CHECKING:
    from model.config import Qwen3Config

NAME = "distillation"
ARMS = {"student": "on-policy distillation", "rl": "reinforcement (GRPO)"}
RATES = {"student": (1e-4, 2e-4, 4e-4), "rl": (1e-4, 2e-4, 4e-4)}
KS = (1, 2, 4, 8)
MODES = ("thinking", "plain")
_NEEDED = ("data", "general_data", "general", "student_off_policy")


def trial_name(arm: str, rate: float, key: str) -> str:
    return f"{NAME}/{key}-{arm}-{rate:g}"


def trials(settings: Settings) -> Iterator[tuple[str, float, Run]]:
    """(arm, learning rate, run): the same prompts, the same start, as many trials for each."""
    folder, recipe = parent_of(settings, *_NEEDED)
    key = parent_key(folder, *_NEEDED)
    start = shown(folder / "student_off_policy" / "model")
    for arm, rates in RATES.items():
        common = [
            *_problems(folder),
            f"stages.arm.model.path={start}",
            f"stages.arm.data.path={shown(folder / 'data')}",
        ]
        if arm == "student":
            common += same_as(recipe, "arm", ("num_steps", "group_size", "algorithm", "sampling"), of="student")
            common += [f"stages.arm.teacher.path={shown(folder / 'general' / 'model')}"]
        else:
            common += same_as(recipe, "arm", ("sampling",), of="student")
        for rate in rates:
            overrides = (*common, f"stages.arm.optimizer.lr={rate:g}")
            yield arm, rate, Run(trial_name(arm, rate, key), f"findings/distillation_{arm}.yaml", overrides)


def _problems(folder: Path) -> list[str]:
    return [f"stages.problems.args.unlike=[{shown(folder / 'data')},{shown(folder / 'general_data')}]"]


def runs(settings: Settings) -> Iterator[Run]:
    """All trials, then the test of the best of each arm."""
    for _, _, run in trials(settings):
        yield run
    folder, _ = parent_of(settings, *_NEEDED)
    best = {arm: _best(found) for arm, found in judged(settings).items()}
    models = [f"stages.start_thinking.model.path={shown(folder / 'student_off_policy' / 'model')}"]
    for arm, one in best.items():
        models.append(f"stages.{arm}_thinking.model.path={shown(settings.folder(one['run']) / 'arm' / 'model')}")
    name = "-".join([f"{NAME}/{parent_key(folder, *_NEEDED)}-test", *(f"{one['rate']:g}" for one in best.values())])
    yield Run(name, "findings/distillation_test.yaml", (*_problems(folder), *models))


def judged(settings: Settings) -> dict[str, list[Numbers]]:
    """Every trial with its accuracy on the validation split, before and after."""
    found: dict[str, list[Numbers]] = {}
    for arm, rate, run in trials(settings):
        folder = settings.folder(run.name)
        finished_run(folder, NAME)
        evaluation = recipe_of(folder, NAME)["stages"]["arm"]["evaluation"]
        steps = eval_steps(folder / "arm")
        curve = [_accuracy(folder, step, evaluation.get("num_samples", 1)) for step in steps]
        found.setdefault(arm, []).append(
            {
                "run": run.name,
                "rate": rate,
                "before": value(*curve[0]),
                "after": value(*curve[-1]),
                "curve": [[step, *(round(one, 6) for one in point)] for step, point in zip(steps, curve, strict=True)],
                "problems": len(problem_means(eval_file(folder / "arm"), "math", evaluation.get("num_samples", 1))),
            }
        )
    return found


def _accuracy(folder: Path, step: int, samples: int) -> tuple[float, float]:
    return mean_of(list(problem_means(eval_file(folder / "arm", step), "math", samples).values()))


def _best(found: Sequence[Numbers]) -> Numbers:
    """The highest accuracy on the validation split; of equal ones the first."""
    return max(found, key=lambda one: one["after"]["value"])


def shape_of(model: Path) -> Qwen3Config:
    """Raises ValueError where it is no Qwen3."""
    from actors.teacher import read_qwen3_config

    config = read_qwen3_config(str(model))
    if config is None:
        raise ValueError(f"{model}: expected a Qwen3 model")
    return config


# --- what it cost ---------------------------------------------------------------------------------------------------


def cost(stage: Path, config: Qwen3Config, *, recomputes: bool) -> list[Numbers]:
    """A row a step: FLOPs of sampling, training and the teacher, samples and seconds; none of them of evaluations.

    Counted from the recorded rollouts' lengths, by ``rlplatform/flops.py``. Sampling is one forward pass a completion,
    its prompt included (shared prefixes are counted each time), training three over the rows trained on, and one more
    where the learner recomputes the old probabilities. The teacher's are its own count.
    """
    import pandas as pd

    metrics = {int(row["step"]): row for row in metrics_of(stage)}
    found = []
    for file in sorted((stage / "rollouts").glob("step-*.parquet")):
        step = int(file.stem.split("-")[1]) + 1  # its metrics are those of the update it led to
        frame = pd.read_parquet(file, columns=["prompt_token_ids", "token_ids"])
        lengths = [(len(prompt), len(tokens)) for prompt, tokens in frame.itertuples(index=False)]
        sampling = sum(forward_flops(config, p + c, num_prompt_tokens=max(p - 1, 0)) for p, c in lengths)
        row = metrics[step]
        per_token = sum(forward_flops(config, p + c, num_prompt_tokens=p) for p, c in lengths) / sum(map(sum, lengths))
        found.append(
            {
                "step": step,
                "sampling": float(sampling),
                "training": (4 if recomputes else 3) * per_token * row["learner/tokens"],
                "teacher": float(row.get("teacher/flops", 0.0)),
                "samples": len(lengths),
                "seconds": row["time/step"] - row.get("time/evaluate", 0.0),
            }
        )
    return found


PARTS = ("sampling", "training", "teacher")


def spent(rows: Sequence[Mapping[str, Any]], last: int | None = None) -> Numbers:
    """Sums over the steps up to ``last``."""
    own = [row for row in rows if last is None or row["step"] <= last]
    sums = {key: sum(row[key] for row in own) for key in (*PARTS, "samples", "seconds")}
    return {**sums, "flops": sum(sums[part] for part in PARTS)}


# --- numbers and page -----------------------------------------------------------------------------------------------


def collect(settings: Settings) -> Numbers:
    *_, test = runs(settings)
    folder = settings.folder(test.name)
    finished_run(folder, NAME)
    stages = recipe_of(folder, NAME)["stages"]
    tested = {arm: _tested(folder, stages, arm) for arm in ("start", *ARMS)}
    found: Numbers = {"trials": judged(settings), "tested": tested, "arms": {}, "problems": 0}
    for arm, own in found["trials"].items():
        best = _best(own)
        stage = settings.folder(best["run"]) / "arm"
        config = shape_of(stage / "model")
        raw = recipe_of(settings.folder(best["run"]), NAME)["stages"]["arm"]
        rows = cost(stage, config, recomputes=raw.get("updates_per_step", 1) > 1)
        all_flops = sum(
            spent(cost(settings.folder(one["run"]) / "arm", config, recomputes=raw.get("updates_per_step", 1) > 1))[
                "flops"
            ]
            for one in own
        )
        gains = {
            mode: value(*mean_of(difference(_means(folder, stages, arm, mode), _means(folder, stages, "start", mode))))
            for mode in MODES
        }
        found["arms"][arm] = {
            "best": best,
            "steps": raw["num_steps"],
            "group_size": raw["group_size"],
            "spent": spent(rows),
            "all_trials_flops": all_flops,
            "gain": gains,
            "curve": [[point[1], point[2], spent(rows, point[0])["flops"]] for point in best["curve"]],
        }
    found["problems"] = len(_means(folder, stages, "start", "thinking"))
    ahead = {
        mode: difference(_means(folder, stages, "student", mode), _means(folder, stages, "rl", mode)) for mode in MODES
    }
    found["ahead"] = {mode: value(*mean_of(one)) for mode, one in ahead.items()}
    return found


def _means(folder: Path, stages: Mapping[str, Any], arm: str, mode: str) -> dict[str, float]:
    stage = f"{arm}_{mode}"
    return problem_means(eval_file(folder / stage), "math", stages[stage].get("num_samples", 4))


def _tested(folder: Path, stages: Mapping[str, Any], arm: str) -> Numbers:
    """pass@k of each mode."""
    found: Numbers = {}
    for mode in MODES:
        stage = f"{arm}_{mode}"
        samples = stages[stage].get("num_samples", 4)
        file = eval_file(folder / stage)
        found[mode] = {str(k): value(*pass_at(file, "math", samples, k)) for k in KS if k <= samples}
    return found


def section(found: Numbers) -> list[str]:
    ks = list(found["tested"]["start"]["thinking"])
    rates = {arm: ", ".join(f"{one['rate']:g}" for one in own) for arm, own in found["trials"].items()}
    lines = [
        f"Learning rates tried: {rates['student']} for distillation, {rates['rl']} for reinforcement; the best on "
        f"{found['arms']['rl']['best']['problems']} validation problems; the table is of {found['problems']} other "
        f"problems x {ks[-1]} samples. Same start, same prompts.",
        "",
        f"| | mode | {' | '.join(f'pass@{k}' for k in ks)} |",
        f"|---|---|{'---|' * len(ks)}",
    ]
    labels = {"start": "off-policy distillation"} | {arm: f"+ {label}" for arm, label in ARMS.items()}
    for arm, label in labels.items():
        for mode in MODES:
            cells = " | ".join(percent(found["tested"][arm][mode][k]) for k in ks)
            lines.append(f"| {label} | {'thinking' if mode == 'thinking' else 'non-thinking'} | {cells} |")
    lines += [
        "",
        "| arm | learning rate | steps x samples | sampling, FLOP | training | teacher | in all | seconds | "
        "all trials, FLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, label in ARMS.items():
        one = found["arms"][arm]
        flops = " | ".join(f"{one['spent'][part]:.2e}" for part in (*PARTS, "flops"))
        size = f"{one['steps']} x {one['spent']['samples'] // max(one['steps'], 1)}"
        lines.append(
            f"| {label} | {one['best']['rate']:g} | {size} | {flops} | {one['spent']['seconds']:.0f} | "
            f"{one['all_trials_flops']:.2e} |"
        )
    return [*lines, "", *_reading(found, ks)]


def _reading(found: Numbers, ks: Sequence[str]) -> list[str]:
    share = found["arms"]["student"]["spent"]["flops"] / found["arms"]["rl"]["spent"]["flops"]
    time = found["arms"]["student"]["spent"]["seconds"] / found["arms"]["rl"]["spent"]["seconds"]
    lines = []
    for mode, label in (("thinking", "Thinking"), ("plain", "Non-thinking")):
        ahead = found["ahead"][mode]
        word = "not distinguishable from"
        if abs(ahead["value"]) > ahead["ci95"]:
            word = "better than" if ahead["value"] > 0 else "**worse** than"
        lines.append(
            f"{label}: distillation is {word} reinforcement, {points(ahead)} points of pass@1 "
            f"(gains {points(found['arms']['student']['gain'][mode])} and "
            f"{points(found['arms']['rl']['gain'][mode])})."
        )
    top = ks[-1]
    moves = [
        f"{ARMS[arm]} {100 * (found['tested'][arm]['thinking'][top]['value'] - start):+.1f}"
        for start in [found["tested"]["start"]["thinking"][top]["value"]]
        for arm in ARMS
    ]
    lines.append(
        f"Distillation took {share:.2f} of reinforcement's FLOPs and {time:.2f} of its seconds. "
        f"pass@{top} in thinking mode moved by {', '.join(moves)} points."
    )
    edges = [
        ARMS[arm]
        for arm in ARMS
        if found["arms"][arm]["best"]["rate"] == max(one["rate"] for one in found["trials"][arm])
    ]
    if edges:
        lines.append(f"The highest rate was the best for {' and '.join(edges)}: a higher one may be better.")
    return lines


def draw(found: Numbers, path: Path) -> None:
    figure, (left, right) = canvas(columns=2)
    for arm, label in ARMS.items():
        curve = found["arms"][arm]["curve"]
        left.errorbar(
            [flops for _, _, flops in curve],
            [100 * mean for mean, _, _ in curve],
            yerr=[100 * half for _, half, _ in curve],
            marker="o",
            capsize=2,
            label=label,
        )
    left.set_xlabel("FLOPs: sampling, training, teacher")
    left.set_ylabel("validation pass@1, %, both modes")
    for arm, label in ({"start": "before"} | ARMS).items():
        own = found["tested"][arm]["thinking"]
        right.plot([int(k) for k in own], [100 * one["value"] for one in own.values()], marker="o", label=label)
    right.set_xscale("log", base=2)
    ks = [int(k) for k in found["tested"]["start"]["thinking"]]
    right.set_xticks(ks, [str(k) for k in ks])
    right.set_xlabel("k")
    right.set_ylabel("test pass@k, %, thinking")
    left.legend()
    right.legend()
    save(figure, path)


STUDIES = (
    Study(
        name=NAME,
        title="Distillation against reinforcement",
        target=(
            "From one off-policy checkpoint, both arms tuned over the same number of trials: pass@1, pass@k and "
            "compute side by side."
        ),
        reported=(
            "Section 4.7, Table 21, Qwen3-8B from the same off-policy checkpoint, AIME'24 pass@1 (pass@64): 55.0 "
            "(90.0) before, 67.6 (90.0) after RL in 17,920 GPU hours, 74.4 (93.3) after on-policy distillation in "
            "1,800."
        ),
        chosen=(
            "Each arm's learning rate, on the validation split. Steps and group sizes were not tuned; the test split "
            "was used once. Unit tests ran beside some trials, which seconds show and FLOPs do not."
        ),
        runs=runs,
        collect=collect,
        section=section,
        draw=draw,
    ),
)
