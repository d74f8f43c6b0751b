"""The study of a real model: SmolLM2-135M-Instruct through cold start, RL and fusion on GSM8K."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.findings.drawing import canvas, percent, save
from benchmarks.findings.measures import eval_file, eval_steps, mean_of, problem_means, value
from benchmarks.findings.study import Numbers, Run, Settings, Study, Unfinished, finished_run, recipe_of

SIZES = {  # what --size may change
    "num_cold": ("data.args.num_cold",),
    "num_plain": ("data.args.num_plain",),
    "num_train": ("data.args.num_train",),
    "num_queries": ("data.args.num_queries",),
    "num_test": ("data.args.num_test",),
    "cold_steps": ("cold.num_steps",),
    "rl_steps": ("rl.num_steps",),
    "fusion_steps": ("fusion.num_steps",),
    "new_tokens": ("start_thinking.sampling.max_new_tokens",),
}
MODELS = {"start": "SmolLM2-135M-Instruct", "cold": "cold start", "rl": "RL", "fusion": "fusion"}


def smollm2_runs(settings: Settings) -> Iterator[Run]:
    small = settings.small or {}
    unknown = sorted(set(small) - set(SIZES))
    if unknown:
        raise Unfinished(f"smollm2: --size {unknown[0]}: expected some of {', '.join(SIZES)}")
    if not (Path(settings.smollm2) / "config.json").is_file():
        raise Unfinished(f"smollm2: {settings.smollm2}: no model there; run `make smollm2`, or name one with --smollm2")
    overrides = [
        f"stages.data.args.path={settings.gsm8k}",
        f"stages.start_thinking.model.path={settings.smollm2}",
        *(f"stages.{key}={number}" for name, number in sorted(small.items()) for key in SIZES[name]),
    ]
    yield Run("smollm2/seed0", "findings/smollm2.yaml", tuple(overrides))


def collect_smollm2(settings: Settings) -> Numbers:
    folder = settings.folder("smollm2/seed0")
    done = finished_run(folder, "smollm2")
    stages = recipe_of(folder, "smollm2")["stages"]
    samples = stages["start_thinking"].get("num_samples", 4)
    steps = eval_steps(folder / "rl")
    files = {
        ("start", "thinking"): eval_file(folder / "start_thinking"),
        ("start", "plain"): eval_file(folder / "start_plain"),
        ("cold", "thinking"): eval_file(folder / "rl", steps[0]),
        ("cold", "plain"): eval_file(folder / "cold_plain"),
        ("rl", "thinking"): eval_file(folder / "rl", steps[-1]),
        ("rl", "plain"): eval_file(folder / "rl_plain"),
        ("fusion", "thinking"): eval_file(folder / "fusion_thinking"),
        ("fusion", "plain"): eval_file(folder / "fusion_plain"),
    }
    rows = []
    for model in MODELS:
        row: Numbers = {"model": model}
        for mode in ("thinking", "plain"):
            for metric in ("math", "format"):
                means = problem_means(files[model, mode], metric, samples)
                row[f"{mode}_{metric}"] = value(*mean_of(list(means.values())))
        rows.append(row)
    return {
        "rows": rows,
        "problems": len(problem_means(files["start", "thinking"], "math", samples)),
        "samples": samples,
        "seconds_of": {name: one["seconds"] for name, one in done.items()},
        "steps": {name: stages[name]["num_steps"] for name in ("cold", "rl", "fusion")},
        "rejection": done["rejection"]["summary"]["pass_rate"],
    }


def section_smollm2(found: Numbers) -> list[str]:
    steps = found["steps"]
    lines = [
        f"GSM8K, {found['problems']} held-out questions x {found['samples']}. Cold start {steps['cold']} steps on the "
        f"dataset's own rationales as thoughts, RL {steps['rl']} steps, fusion {steps['fusion']} steps on the RL "
        f"model's own well-formed answers ({100 * found['rejection']:.0f} % of its samples) and on "
        "rationales without thought. Format is the share in the mode asked for: a thought and an answer, or, with "
        "`/no_think`, an answer alone.",
        "",
        "| after | thinking: right | thinking: format | non-thinking: right | non-thinking: format |",
        "|---|---|---|---|---|",
    ]
    keys = ("thinking_math", "thinking_format", "plain_math", "plain_format")
    for row in found["rows"]:
        lines.append(f"| {MODELS[row['model']]} | {' | '.join(percent(row[key]) for key in keys)} |")
    first, before, last = found["rows"][0], found["rows"][-2], found["rows"][-1]
    confused = min(last["plain_format"]["value"], last["thinking_format"]["value"]) < 0.9
    lines += [
        "",
        f"Thinking format goes from {percent(first['thinking_format'])} to {percent(last['thinking_format'])}, right "
        f"answers in thinking mode from {percent(first['thinking_math'])} to {percent(last['thinking_math'])}. What is "
        "learned on such a budget is the form; the intervals say whether the arithmetic moved at all.",
        f"Fusion's {steps['fusion']} steps move the non-thinking form from {percent(before['plain_format'])} to "
        f"{percent(last['plain_format'])} and the thinking form from {percent(before['thinking_format'])} to "
        f"{percent(last['thinking_format'])}{': it does not tell the modes apart yet' if confused else ''}.",
        f"Seconds: {', '.join(f'{name} {seconds:.0f}' for name, seconds in found['seconds_of'].items())}.",
    ]
    return lines


def draw_smollm2(found: Numbers, path: Path) -> None:
    figure, (left, right) = canvas(columns=2)
    places = range(len(found["rows"]))
    for axis, metric, label in ((left, "format", "in the mode asked for, %"), (right, "math", "right, %")):
        for mode, name in (("thinking", "thinking"), ("plain", "non-thinking")):
            own = [row[f"{mode}_{metric}"] for row in found["rows"]]
            heights, errors = [100 * one["value"] for one in own], [100 * one["ci95"] for one in own]
            axis.errorbar(places, heights, yerr=errors, marker="o", capsize=3, label=name)
        axis.set_xticks(places, [row["model"] for row in found["rows"]])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend()
    save(figure, path)


STUDIES = (
    Study(
        name="smollm2",
        title="A real model through cold start, RL and fusion",
        target="SmolLM2-135M-Instruct on a small budget, with whatever numbers come out.",
        reported=(
            "No model of this size. Section 4.6, the smallest, Qwen3-0.6B (thinking / non-thinking): MATH-500 "
            "77.6 / 55.2, AIME'24 10.7 / 3.4, after distillation from a strong teacher and 36 trillion tokens."
        ),
        chosen=(
            "Nothing of this study; learning rates are those of configs/rl/gsm8k.yaml. The recorded run shared its two "
            "cores with another process: its seconds are too high."
        ),
        runs=smollm2_runs,
        collect=collect_smollm2,
        section=section_smollm2,
        draw=draw_smollm2,
    ),
)
