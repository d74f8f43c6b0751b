"""Studies that vary one stage of the recipe: entropy control of the reasoning stage, samples of the cold start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.findings.after_stages import STAGES, seed_folder
from benchmarks.findings.drawing import canvas, percent, points, save
from benchmarks.findings.measures import difference, eval_file, eval_steps, mean_of, metrics_of, problem_means, value
from benchmarks.findings.study import Numbers, Run, Settings, Study, done_of, finished_run, recipe_of, shown
from rlplatform.configfile import flat

# --- settings of the recipe's own stages ----------------------------------------------------------------------------


def same_as(parent: Mapping[str, Any], stage: str, keys: Sequence[str], *, of: str) -> list[str]:
    """Overrides that give ``stages.STAGE`` what a stage of the recipe has under ``keys``; no ``stage:`` inputs."""
    settings = flat({key: parent["stages"][of][key] for key in keys if key in parent["stages"][of]})
    kept = {name: one for name, one in settings.items() if not str(one).startswith("stage:")}
    return [f"stages.{stage}.{name}={json.dumps(one)}" for name, one in kept.items()]


def parent_of(settings: Settings, *needed: str) -> tuple[Path, dict[str, Any]]:
    """Folder and recipe of seed 0's run, whose stages ``needed`` are finished.

    Raises:
        Unfinished: one is not.
    """
    folder = seed_folder(settings, 0)
    recipe = recipe_of(folder, STAGES)
    for stage in needed:
        done_of(folder, stage, STAGES)
    return folder, recipe


def parent_key(folder: Path, *stages: str) -> str:
    """Of what a study takes from seed 0's run: other models there, another run folder here."""
    keys = [done_of(folder, stage, STAGES)["key"] for stage in stages]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:8]


# --- entropy --------------------------------------------------------------------------------------------------------

ARMS = {"control": "with entropy control", "none": "without"}
_ENTROPY_NEEDS = ("cold", "rl_queries")
_RL_KEYS = ("prompts_per_step", "group_size", "updates_per_step", "sampling", "reward", "optimizer")


def entropy_runs(settings: Settings) -> Iterator[Run]:
    folder, recipe = parent_of(settings, *_ENTROPY_NEEDS)
    overrides = [
        *same_as(recipe, "control", _RL_KEYS, of="reasoning"),  # its algorithm is what is looked at
        f"stages.control.model.path={shown(folder / 'cold' / 'model')}",
        f"stages.control.data.path={shown(folder / 'rl_queries')}",
        f"stages.control.evaluation.data.path={shown(folder / 'data')}",
    ]
    key = parent_key(folder, *_ENTROPY_NEEDS)
    yield Run(f"entropy/{key}", "findings/entropy.yaml", tuple(overrides))


def collect_entropy(settings: Settings) -> Numbers:
    (run,) = entropy_runs(settings)
    folder = settings.folder(run.name)
    finished_run(folder, "entropy")
    stages = recipe_of(folder, "entropy")["stages"]
    arms: dict[str, Numbers] = {}
    for name in ARMS:
        rows = [row for row in metrics_of(folder / name) if "policy/entropy" in row]
        curve = [(int(row["step"]), float(row["policy/entropy"])) for row in rows]
        start = curve[0][1]
        at, lowest = min(curve, key=lambda point: point[1])
        num = stages[name]["evaluation"].get("num_samples", 1)
        held_out = {
            step: problem_means(eval_file(folder / name, step), "math", num) for step in eval_steps(folder / name)
        }
        first, last = min(held_out), max(held_out)
        arms[name] = {
            "steps": len(curve),
            "entropy": [[step, round(one, 5)] for step, one in curve],
            "start": start,
            "end": curve[-1][1],
            "lowest": lowest,
            "lowest_at": at,
            "lowest_share": lowest / start,
            "coefficient": [
                [int(row["step"]), row["policy/entropy_coef"]] for row in rows if "policy/entropy_coef" in row
            ],
            "accuracy": [[step, *_pair(means)] for step, means in held_out.items()],
            "before": value(*mean_of(list(held_out[first].values()))),
            "after": value(*mean_of(list(held_out[last].values()))),
            "gain": value(*mean_of(difference(held_out[last], held_out[first]))),
            "problems": len(held_out[last]),
            "samples": num,
            "settings": {key: stages[name].get(key) for key in ("algorithm", "optimizer", "updates_per_step")},
        }
    return {"arms": arms}


def _pair(means: Mapping[str, float]) -> list[float]:
    return [round(number, 6) for number in mean_of(list(means.values()))]


def section_entropy(found: Numbers) -> list[str]:
    arms = found["arms"]
    lines = [
        f"Held out: {arms['control']['problems']} problems x {arms['control']['samples']} samples. Entropy is the mean "
        "over sampled tokens of a step, in nats.",
        "",
        "| arm | steps | entropy at the start | lowest, of the start | at step | at the end | accuracy before | after "
        "| gain, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, label in ARMS.items():
        one = arms[name]
        lines.append(
            f"| {label} | {one['steps']} | {one['start']:.3f} | {100 * one['lowest_share']:.0f} % | {one['lowest_at']} "
            f"| {one['end']:.3f} | {percent(one['before'])} | {percent(one['after'])} | {points(one['gain'])} |"
        )
    control = arms["control"]
    met = control["lowest_share"] >= 0.3
    lines += [
        "",
        f"With control the entropy is never under {100 * control['lowest_share']:.0f} % of its start; the "
        f"target of 30 % is {'met' if met else '**missed**'}. Without, "
        f"its lowest is {100 * arms['none']['lowest_share']:.0f} %"
        + (": here nothing had to be controlled." if arms["none"]["lowest_share"] >= 0.3 else "."),
        f"Settings of the control: `{json.dumps(control['settings']['algorithm'])}`.",
    ]
    return lines


def draw_entropy(found: Numbers, path: Path) -> None:
    figure, (left, right) = canvas(columns=2)
    for name, label in ARMS.items():
        arm = found["arms"][name]
        steps, entropy = zip(*arm["entropy"], strict=True)
        left.plot(steps, [one / arm["start"] for one in entropy], label=label)
        at, means, halves = zip(*arm["accuracy"], strict=True)
        right.errorbar(at, [100 * one for one in means], yerr=[100 * one for one in halves], marker="o", label=label)
    left.axhline(0.3, linestyle="--", color="grey")
    left.set_ylim(bottom=0)
    left.set_ylabel("entropy / entropy at the start")
    right.set_ylabel("held-out pass@1, %")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.legend()
    save(figure, path)


# --- the cold start's samples ---------------------------------------------------------------------------------------

COUNTS = (16, 32, 64, 128, 0)  # 0 = all
MORE_STEPS = 4


def cold_start_runs(settings: Settings) -> Iterator[Run]:
    needed = ("base", "cold_data", "cold", "rl_queries")
    folder, recipe = parent_of(settings, *needed)
    key = parent_key(folder, *needed)
    cold_keys = ("tokens_per_step", "max_tokens", "optimizer")
    steps = int(done_of(folder, "cold", STAGES)["summary"]["steps"])  # it ends by ability, these by number
    common = [
        *same_as(recipe, "cold", cold_keys, of="cold"),
        *same_as(recipe, "rl", (*_RL_KEYS, "algorithm"), of="reasoning"),
        f"stages.cold.model.path={shown(folder / 'base' / 'model')}",
        f"stages.cold.data.path={shown(folder / 'cold_data')}",
        f"stages.thinking.data.path={shown(folder / 'data')}",
        f"stages.rl.data.path={shown(folder / 'rl_queries')}",
    ]
    for count in COUNTS:
        own = (f"stages.cold.data.limit={count}", f"stages.cold.num_steps={steps}")
        yield Run(f"cold_start/{key}-{count or 'all'}", "findings/cold_start.yaml", (*common, *own))
    own = ("stages.cold.data.limit=0", f"stages.cold.num_steps={MORE_STEPS * steps}")
    yield Run(f"cold_start/{key}-all-long", "findings/cold_start.yaml", (*common, *own))


def collect_cold_start(settings: Settings) -> Numbers:
    rows = []
    for run in cold_start_runs(settings):
        folder = settings.folder(run.name)
        done = finished_run(folder, "cold_start")
        stages = recipe_of(folder, "cold_start")["stages"]
        samples = stages["thinking"].get("num_samples", 4)
        counts = [samples, stages["rl"]["evaluation"].get("num_samples", 1)]
        files = [eval_file(folder / "thinking"), eval_file(folder / "rl")]
        accuracy = [problem_means(file, "math", num) for file, num in zip(files, counts, strict=True)]
        format_rate = [problem_means(file, "format", num) for file, num in zip(files, counts, strict=True)]
        rows.append(
            {
                "run": run.name.rpartition("/")[2],
                "samples": done["cold"]["summary"]["rows"],
                "steps": done["cold"]["summary"]["steps"],
                "rl_steps": done["rl"]["summary"]["steps"],
                "accuracy": value(*mean_of(list(accuracy[0].values()))),
                "format": value(*mean_of(list(format_rate[0].values()))),
                "after_rl": value(*mean_of(list(accuracy[1].values()))),
                "format_after_rl": value(*mean_of(list(format_rate[1].values()))),
                "rl_gain": value(*mean_of(difference(accuracy[1], accuracy[0]))),
                "problems": len(accuracy[0]),
                "num_samples": samples,
            }
        )
    return {"rows": rows}


def section_cold_start(found: Numbers) -> list[str]:
    rows = found["rows"]
    lines = [
        f"Held out in thinking mode: {rows[0]['problems']} problems x {rows[0]['num_samples']} samples. Format is the "
        f"share of answers with one closed think block and an answer behind it. Then {rows[0]['rl_steps']} steps of "
        "the reasoning stage, the same for all.",
        "",
        "| samples | SFT steps | accuracy | format | accuracy after RL | format after RL | RL's gain, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [percent(row[key]) for key in ("accuracy", "format", "after_rl", "format_after_rl")]
        lines.append(f"| {row['samples']} | {row['steps']} | {' | '.join(cells)} | {points(row['rl_gain'])} |")
    best = max(rows, key=lambda row: row["after_rl"]["value"])
    least = min(
        (row for row in rows if row["after_rl"]["value"] >= best["after_rl"]["value"] - best["after_rl"]["ci95"]),
        key=lambda row: (row["samples"], row["steps"]),
    )
    lines += [
        "",
        f"Best after RL: {best['samples']} samples, {best['steps']} steps. The fewest samples within its interval: "
        f"{least['samples']} ({least['steps']} steps).",
    ]
    return lines


def draw_cold_start(found: Numbers, path: Path) -> None:
    figure, axis = canvas()
    long = [row for row in found["rows"] if row["run"].endswith("long")]
    rows = sorted((row for row in found["rows"] if row not in long), key=lambda row: row["samples"])
    for key, label in (("accuracy", "accuracy"), ("format", "format"), ("after_rl", "accuracy after RL")):
        heights, halves = [100 * row[key]["value"] for row in rows], [100 * row[key]["ci95"] for row in rows]
        line = axis.errorbar([row["samples"] for row in rows], heights, yerr=halves, marker="o", capsize=3, label=label)
        for row in long:
            colour = line.lines[0].get_color()
            axis.scatter([row["samples"]], [100 * row[key]["value"]], marker="*", s=90, color=colour)
    axis.set_xscale("log", base=2)
    axis.set_xticks([row["samples"] for row in rows], [str(row["samples"]) for row in rows])
    axis.set_xlabel("samples of the cold start; star: all of them, four times the steps")
    axis.set_ylabel("%")
    axis.legend()
    save(figure, path)


STUDIES = (
    Study(
        name="entropy",
        title="Entropy over 200 steps of reasoning RL",
        target="Never under 30 % of its start over 200 steps.",
        reported=(
            "Section 4.2: entropy was kept rising steadily or stable by controlling exploration and exploitation, over "
            "170 steps in one run without manual changes (AIME'24 70.1 to 85.1, Qwen3-235B-A22B); how is not said."
        ),
        chosen=(
            "Target and step of the coefficient were tuned on seed 0's runs, over fewer steps; the other settings are "
            "the recipe's."
        ),
        runs=entropy_runs,
        collect=collect_entropy,
        section=section_entropy,
        draw=draw_entropy,
    ),
    Study(
        name="cold_start",
        title="Samples of the cold start",
        target="A curve over the number of samples; no bound was set.",
        reported=(
            "Section 4.1: both samples and steps of the cold start should be minimised, it is to plant the pattern and "
            "leave room for RL. No numbers."
        ),
        chosen=(
            "Learning rate and batch are the recipe's, the steps those after which its own stage ended; fewer samples "
            "were not tuned again."
        ),
        runs=cold_start_runs,
        collect=collect_cold_start,
        section=section_cold_start,
        draw=draw_cold_start,
    ),
)
