"""Studies of one config each: general RL task by task, an agent's episodes."""

from __future__ import annotations

import re
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
from benchmarks.findings.study import Numbers, Run, Settings, Study, finished_run, recipe_of


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
    for entry in sorted(found["tasks"], key=lambda entry: (entry["ability"], entry["task"])):
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
    from rlplatform.tasks.general.results import read_rows_of

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
        data = held_out["data"]["path"].removeprefix("stage:")
        rows = read_rows_of(folder / data / f"{held_out['data'].get('split', 'test')}.jsonl")
        kinds: dict[str, list[str]] = {}  # episodes by their prompt's form
        for problem in after:
            kinds.setdefault(re.sub(r"\d+", "N", rows[int(problem.rpartition("-")[2])]["prompt"]), []).append(problem)
        seeds.append(
            {
                "seed": run.seed,
                "environment": recipe["stages"][stage]["environment"].get("name", ""),
                "episodes": len(after),
                "samples": samples,
                "before": value(*mean_of(list(before.values()))),
                "after": value(*mean_of(list(after.values()))),
                "gain": value(*mean_of(difference(after, before))),
                "by_kind": {
                    kind: [value(*mean_of([when[problem] for problem in own])) for when in (before, after)]
                    for kind, own in sorted(kinds.items())
                },
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
    lines += [
        "",
        "By what is asked, before and after:",
        "",
        "| seed | asked | before RL | after RL |",
        "|---|---|---|---|",
    ]
    for one in found["by_seed"]:
        for kind, (before, after) in one["by_kind"].items():
            lines.append(f"| {one['seed']} | {kind} | {percent(before)} | {percent(after)} |")
    never = [
        f"{kind} in seed {one['seed']}"
        for one in found["by_seed"]
        for kind, (before, _) in one["by_kind"].items()
        if not before["value"]
    ]
    if never:
        lines += ["", f"What the warm-up never solves gives no reward to learn from: {', '.join(never)}."]
    met = found["gain"]["value"] >= 0.2
    under = [str(one["seed"]) for one in found["by_seed"] if one["gain"]["value"] < 0.2]
    return [
        *lines,
        "",
        f"Success rises by {points(found['gain'])} points over the seeds: 20 are {'reached' if met else '**missed**'}"
        f"{f', not in seed {chr(44).join(under)}' if under else ''}.",
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
        chosen=(
            "The environment's level and the config's settings, on seed 0's held-out episodes. The warm-up's steps "
            "went from 900, in which seed 2 did not learn the task, to 1,800 (with 900, seed 0 went from 32.4 to "
            "56.6 % and seed 1 from 35.5 to 80.1 %); it ends earlier, when it is sure enough of its text."
        ),
        runs=agent_runs,
        collect=collect_agent,
        section=section_agent,
        draw=draw_agent,
    ),
)
