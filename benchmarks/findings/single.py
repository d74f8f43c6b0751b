"""Studies of one config each: general RL task by task, an agent's episodes, a real model through three stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.findings.drawing import canvas, percent, points, save
from benchmarks.findings.measures import (
    Means,
    difference,
    eval_file,
    eval_steps,
    mean_of,
    pooled,
    problem_means,
    value,
)
from benchmarks.findings.study import Numbers, Run, Settings, Study, Unfinished, finished_run, recipe_of


def last_rl(recipe: Mapping[str, Any]) -> str:
    """Name of the last RL stage."""
    return [name for name, stage in recipe["stages"].items() if stage["kind"] == "rl"][-1]


# --- general RL -----------------------------------------------------------------------------------------------------


def general_runs(settings: Settings) -> Iterator[Run]:
    yield Run("general/seed0", "rl/general.yaml")


def collect_general(settings: Settings) -> Numbers:
    from rlplatform.tasks.general.results import read_rows_of
    from rlplatform.tasks.general.suite import TASKS

    folder = settings.folder("general/seed0")
    finished_run(folder, "general")
    recipe = recipe_of(folder, "general")
    stage = last_rl(recipe)
    held_out = recipe["stages"][stage]["evaluation"]
    samples = held_out.get("num_samples", 1)
    data = held_out["data"]["path"].removeprefix("stage:")
    rows = read_rows_of(folder / data / f"{held_out['data'].get('split', 'test')}.jsonl")
    steps = eval_steps(folder / stage)
    before, after = (_rewards(eval_file(folder / stage, step), samples) for step in (steps[0], steps[-1]))
    places = {problem: int(problem.rpartition("-")[2]) for problem in before["score"]}
    tasks = []
    for name in dict.fromkeys(row["task"] for row in rows):
        own = [problem for problem, place in places.items() if rows[place]["task"] == name]
        if own:
            entry: Numbers = {"task": name, "ability": TASKS[name].ability, "problems": len(own)}
            for kind in ("solved", "score"):
                was, now = ({problem: when[kind][problem] for problem in own} for when in (before, after))
                entry[kind] = {
                    "before": value(*mean_of(list(was.values()))),
                    "after": value(*mean_of(list(now.values()))),
                    "gain": value(*mean_of(difference(now, was))),
                }
            tasks.append(entry)
    overall = {kind: value(*mean_of(difference(after[kind], before[kind]))) for kind in ("solved", "score")}
    return {
        "tasks": tasks,
        "missing": sorted(set(TASKS) - {entry["task"] for entry in tasks}),
        "samples": samples,
        "problems": len(places),
        "steps": steps[-1],
        "overall": overall,
    }


def _rewards(file: Path, samples: int) -> dict[str, Means]:
    """Problem -> mean reward, and share of samples with the full reward; a verdict that is not ok counts 0."""
    import pandas as pd

    frame = pd.read_parquet(file, columns=["prompt_id", "reward"])
    frame["reward"] = frame["reward"].fillna(0.0)
    groups = frame.groupby("prompt_id")["reward"]
    score = {str(problem): float(own.sum()) / samples for problem, own in groups}
    solved = {str(problem): float((own >= 1 - 1e-6).sum()) / samples for problem, own in groups}
    return {"score": score, "solved": solved}


def section_general(found: Numbers) -> list[str]:
    lines = [
        f"{len(found['tasks'])} tasks, {found['problems']} held-out prompts x {found['samples']} samples, before and "
        f"after {found['steps']} steps. Solved is the share of samples with the full reward of their task.",
        "",
        "| task | ability | prompts | solved before | solved after | points | reward before | reward after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in found["tasks"]:
        solved, score = entry["solved"], entry["score"]
        lines.append(
            f"| `{entry['task']}` | {entry['ability']} | {entry['problems']} | {100 * solved['before']['value']:.1f} % "
            f"| {100 * solved['after']['value']:.1f} % | {points(solved['gain'])} | {score['before']['value']:.3f} | "
            f"{score['after']['value']:.3f} |"
        )
    better = [e["task"] for e in found["tasks"] if e["solved"]["gain"]["value"] > e["solved"]["gain"]["ci95"]]
    worse = [e["task"] for e in found["tasks"] if e["solved"]["gain"]["value"] < -e["solved"]["gain"]["ci95"]]
    lines += [
        "",
        f"Over all prompts solved rises by {points(found['overall']['solved'])} points. Beyond their own interval "
        f"{len(better)} tasks rise and {len(worse)} fall{f' ({chr(44).join(worse)})' if worse else ''}; with so few "
        "prompts a task most single differences are within it.",
    ]
    if found["missing"]:
        lines.append(f"Not measured: {', '.join(found['missing'])}.")
    return lines


def draw_general(found: Numbers, path: Path) -> None:
    tasks = sorted(found["tasks"], key=lambda entry: entry["solved"]["after"]["value"])
    figure, axis = canvas(height=1.2 + 0.24 * len(tasks))
    for place, entry in enumerate(tasks):
        was, now = (100 * entry["solved"][when]["value"] for when in ("before", "after"))
        axis.plot([was, now], [place, place], color="C2" if now >= was else "C3", linewidth=1.5)
    axis.scatter(
        [100 * e["solved"]["before"]["value"] for e in tasks], range(len(tasks)), color="grey", s=18, label="before"
    )
    axis.scatter(
        [100 * e["solved"]["after"]["value"] for e in tasks], range(len(tasks)), color="C0", s=18, label="after"
    )
    axis.set_yticks(range(len(tasks)), [entry["task"] for entry in tasks], fontsize=7)
    axis.set_xlabel("solved, % of held-out samples")
    axis.legend()
    save(figure, path)


# --- an agent -------------------------------------------------------------------------------------------------------


def agent_runs(settings: Settings) -> Iterator[Run]:
    for seed in settings.seeds:
        yield Run(f"agent/seed{seed}", "recipe/agent.yaml", seed=seed)


def collect_agent(settings: Settings) -> Numbers:
    seeds = []
    for run in agent_runs(settings):
        folder = settings.folder(run.name)
        finished_run(folder, "agent")
        recipe = recipe_of(folder, "agent")
        stage = last_rl(recipe)
        held_out = recipe["stages"][stage]["evaluation"]
        metric, samples = held_out["metric"], held_out.get("num_samples", 1)
        curve = {
            step: problem_means(eval_file(folder / stage, step), metric, samples) for step in eval_steps(folder / stage)
        }
        before, after = curve[min(curve)], curve[max(curve)]
        seeds.append(
            {
                "seed": run.seed,
                "environment": recipe["stages"][stage]["environment"].get("name", ""),
                "episodes": len(after),
                "samples": samples,
                "before": value(*mean_of(list(before.values()))),
                "after": value(*mean_of(list(after.values()))),
                "gain": value(*mean_of(difference(after, before))),
                "curve": [[step, *value(*mean_of(list(means.values()))).values()] for step, means in curve.items()],
            }
        )
    together = {
        key: value(*pooled([(one[key]["value"], one[key]["ci95"]) for one in seeds]))
        for key in ("before", "after", "gain")
    }
    return {"by_seed": seeds, **together}


def section_agent(found: Numbers) -> list[str]:
    first = found["by_seed"][0]
    lines = [
        f"Environment `{first['environment']}`, {first['episodes']} held-out episodes x {first['samples']} samples a "
        "seed. Success is what the environment says at the end of an episode.",
        "",
        "| seed | before RL | after RL | points |",
        "|---|---|---|---|",
    ]
    for one in found["by_seed"]:
        lines.append(f"| {one['seed']} | {percent(one['before'])} | {percent(one['after'])} | {points(one['gain'])} |")
    lines.append(f"| **mean** | {percent(found['before'])} | {percent(found['after'])} | **{points(found['gain'])}** |")
    met = found["gain"]["value"] >= 0.2
    return [
        *lines,
        "",
        f"Success rises by {points(found['gain'])} points: 20 are {'reached' if met else '**missed**'}.",
    ]


def draw_agent(found: Numbers, path: Path) -> None:
    figure, axis = canvas()
    for one in found["by_seed"]:
        steps, means, halves = zip(*one["curve"], strict=True)
        heights, errors = [100 * mean for mean in means], [100 * half for half in halves]
        axis.errorbar(steps, heights, yerr=errors, marker="o", capsize=2, label=f"seed {one['seed']}")
    axis.set_xlabel("RL step")
    axis.set_ylabel("held-out episodes solved, %")
    axis.set_ylim(0, 100)
    axis.legend()
    save(figure, path)


# --- a real model ---------------------------------------------------------------------------------------------------

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
    first, last = found["rows"][0], found["rows"][-1]
    lines += [
        "",
        f"Thinking format goes from {percent(first['thinking_format'])} to {percent(last['thinking_format'])}, right "
        f"answers in thinking mode from {percent(first['thinking_math'])} to {percent(last['thinking_math'])}. What is "
        "learned on such a budget is the form; the intervals say whether the arithmetic moved at all.",
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
        name="general",
        title="General RL, task by task",
        target="A table of all tasks before and after.",
        reported=(
            "Section 4.7, Table 22, Qwen3-32B before and after general RL (thinking / non-thinking): IFEval 78.4 / "
            "78.4 to 85.0 / 83.2, LengthCtrl 70.6 / 84.9 to 73.5 / 87.3, CounterFactQA 61.3 / 64.3 to 68.1 / 66.4, "
            "ThinkFollow 88.7 to 98.9. Section 4.4: over 20 tasks, each with its own criteria."
        ),
        chosen="Steps, learning rates and sizes of the config, on its held-out prompts.",
        runs=general_runs,
        collect=collect_general,
        section=section_general,
        draw=draw_general,
    ),
    Study(
        name="agent",
        title="An agent's episodes",
        target="Success in a tool environment at least 20 points higher on held-out episodes.",
        reported=(
            "Section 4.7, Table 22, Qwen3-32B before and after general RL (thinking / non-thinking): ToolUse 70.4 / "
            "73.2 to 85.5 / 86.5, BFCL v3 68.4 / 61.5 to 70.3 / 63.0."
        ),
        chosen="The environment's level and the config's settings, on seed 0's held-out episodes.",
        runs=agent_runs,
        collect=collect_agent,
        section=section_agent,
        draw=draw_agent,
    ),
    Study(
        name="smollm2",
        title="A real model through cold start, RL and fusion",
        target="SmolLM2-135M-Instruct on a small budget, with whatever numbers come out.",
        reported=(
            "No model of this size. Section 4.6, the smallest, Qwen3-0.6B (thinking / non-thinking): MATH-500 "
            "77.6 / 55.2, AIME'24 10.7 / 3.4, after distillation from a strong teacher and 36 trillion tokens."
        ),
        chosen="Nothing of this study; learning rates are those of configs/rl/gsm8k.yaml.",
        runs=smollm2_runs,
        collect=collect_smollm2,
        section=section_smollm2,
        draw=draw_smollm2,
    ),
)
