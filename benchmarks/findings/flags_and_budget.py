"""Studies that read the recipe's ``benchmarks`` stages: are flags obeyed, and what a thinking budget costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.findings.after_stages import STAGES, seed_folder, seed_runs
from benchmarks.findings.drawing import canvas, percent, points, save
from benchmarks.findings.measures import pooled, value
from benchmarks.findings.study import HARNESS, Numbers, Settings, Study, Unfinished, recipe_of, shown
from rlplatform.budget import STOP_TEXT
from rlplatform.stages.pass_rates import PassRate

# --- flags ----------------------------------------------------------------------------------------------------------


def benchmark_stages(settings: Settings, study: str) -> dict[int, dict[str, tuple[Path, Numbers]]]:
    """Seed -> stage -> (folder, results.json) of the recipe's ``benchmarks`` stages, all finished.

    Raises:
        Unfinished: a run is not finished, or its recipe has no such stage.
    """
    found: dict[int, dict[str, tuple[Path, Numbers]]] = {}
    for seed in settings.seeds:
        folder = seed_folder(settings, seed)
        own = {}
        for name, stage in recipe_of(folder, STAGES)["stages"].items():
            if stage["kind"] != "benchmarks":
                continue
            path = folder / name / "results.json"
            if not (folder / name / "done.json").is_file() or not path.is_file():
                raise Unfinished(
                    f"{study}: stage {name} of {shown(folder)} is not finished; run `{HARNESS} --only {STAGES}`"
                )
            own[name] = (folder / name, json.loads(path.read_text(encoding="utf-8")))
        if not own:
            raise Unfinished(f"{study}: the recipe in {shown(folder)} has no stage of kind benchmarks")
        found[seed] = own
    return found


def collect_think_follow(settings: Settings) -> Numbers:
    by_stage: dict[str, list[Numbers]] = {}
    for seed, stages in benchmark_stages(settings, "think_follow").items():
        for name, (folder, results) in stages.items():
            for entry in results["entries"]:
                if entry["benchmark"] == "thinkfollow":
                    by_stage.setdefault(name, []).append({"seed": seed, **_followed(folder, entry)})
    if not by_stage:
        raise Unfinished("think_follow: no benchmarks stage of the recipe has thinkfollow among its benchmarks")
    recipe = recipe_of(seed_folder(settings, settings.seeds[0]), STAGES)["stages"]
    models = {name: str(recipe[name].get("model", {}).get("path", "")).removeprefix("stage:") for name in by_stage}
    return {"stages": [{"model": models[name], **_all_seeds(seeds)} for name, seeds in by_stage.items()]}


def _all_seeds(seeds: list[Numbers]) -> Numbers:
    per_turn = pooled([(one["per_turn"]["value"], one["per_turn"]["ci95"]) for one in seeds])
    whole = sum(round(one["per_dialogue"]["value"] * one["dialogues"]) for one in seeds)
    num = sum(one["dialogues"] for one in seeds)
    low, high = PassRate(whole, num).interval()
    sorts: dict[str, Numbers] = {}
    for sort in dict.fromkeys(sort for one in seeds for sort in one["sorts"]):
        own = [one["sorts"][sort] for one in seeds if sort in one["sorts"]]
        mean, half = pooled([(entry["value"], entry["ci95"]) for entry in own])
        sorts[sort] = {**value(mean, half), "turns": sum(entry["turns"] for entry in own)}
    return {
        "by_seed": seeds,
        "per_turn": value(*per_turn),
        "per_dialogue": {"value": whole / num, "low": low, "high": high},
        "dialogues": num,
        "turns": sum(one["turns"] for one in seeds),
        "sorts": sorts,
    }


def _followed(folder: Path, entry: Mapping[str, Any]) -> Numbers:
    file = folder / "rows" / "thinkfollow.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    low, high = entry["per_dialogue_interval"]
    return {
        "dialogues": entry["problems"],
        "turns": entry["turns"],
        "fewest_turns": min(len(row["users"]) for row in rows),
        "flags_in_system": sum("/think" in row["system"] or "/no_think" in row["system"] for row in rows),
        "per_turn": value(entry["accuracy"], entry["accuracy_ci95"]),
        "per_dialogue": {"value": entry["per_dialogue"], "low": low, "high": high},
        "sorts": {
            sort: {**value(one["accuracy"], one["accuracy_ci95"]), "turns": one["problems"]}
            for sort, one in entry["categories"].items()
        },
        "not_asked": entry["num_too_long"] + entry["num_rejected"],
    }


SORTS = {
    "flagged": "the turn has a flag",
    "after_flag": "no flag, after a turn with one",
    "after_system_flag": "no flag, one in the system message",
    "no_flag": "no flag so far: thinking",
}


def section_think_follow(found: Numbers) -> list[str]:
    *_, final = found["stages"]
    seeds = final["by_seed"]
    lines = [
        f"{final['dialogues']} dialogues, {final['turns']} turns, over seeds "
        f"{', '.join(str(one['seed']) for one in seeds)}; at least {min(one['fewest_turns'] for one in seeds)} user "
        f"turns a dialogue, {sum(one['flags_in_system'] for one in seeds)} with a flag in the system message; "
        "`enable_thinking` is not used. Turns that did not fit any more count as not followed: "
        f"{sum(one['not_asked'] for one in seeds)}.",
        "",
        "| after stage | seed | dialogues | per turn | per dialogue |",
        "|---|---|---|---|---|",
    ]
    for stage in found["stages"]:
        for one in stage["by_seed"]:
            cells = f"{one['seed']} | {one['dialogues']} | {percent(one['per_turn'])} | {_low_high(one)}"
            lines.append(f"| `{stage['model']}` | {cells} |")
        cells = f"all | {stage['dialogues']} | **{percent(stage['per_turn'])}** | {_low_high(stage)}"
        lines.append(f"| `{stage['model']}` | {cells} |")
    lines += ["", f"| what decides the mode, after `{final['model']}` | turns | followed |", "|---|---|---|"]
    for sort, entry in final["sorts"].items():
        lines.append(f"| {SORTS.get(sort, sort)} | {entry['turns']} | {percent(entry)} |")
    met = final["per_turn"]["value"] >= 0.95
    fewest = min(one["dialogues"] for one in seeds)
    lines += [
        "",
        f"After `{final['model']}` {percent(final['per_turn'])} per turn: the target of 95 % is "
        f"{'met' if met else '**missed**'}."
        + ("" if fewest >= 300 else f" A seed has {fewest} dialogues, fewer than the 300 asked for."),
    ]
    return lines


def _low_high(one: Numbers) -> str:
    entry = one["per_dialogue"]
    return f"{100 * entry['value']:.1f} % ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"


def draw_think_follow(found: Numbers, path: Path) -> None:
    figure, axis = canvas(height=3.6)
    kinds = {"all": "all turns"} | SORTS
    kinds = {kind: label for kind, label in kinds.items() if kind == "all" or kind in found["stages"][-1]["sorts"]}
    thick = 0.8 / len(found["stages"])
    for number, stage in enumerate(found["stages"]):
        bars = {"all": stage["per_turn"]} | stage["sorts"]
        places = [-place - thick * number for place, kind in enumerate(kinds) if kind in bars]
        own = [bars[kind] for kind in kinds if kind in bars]
        widths, errors = [100 * one["value"] for one in own], [100 * one["ci95"] for one in own]
        axis.barh(places, widths, height=thick, xerr=errors, capsize=2, label=f"after {stage['model']}")
    axis.axvline(95, linestyle="--", color="grey")
    axis.set_yticks([-place for place in range(len(kinds))], list(kinds.values()))
    axis.set_xlim(0, 100)
    axis.legend(loc="lower left")
    axis.set_xlabel("followed, % of turns; dashed: the target")
    save(figure, path)


# --- the thinking budget --------------------------------------------------------------------------------------------


def collect_budget(settings: Settings) -> Numbers:
    seeds = []
    for seed, stages in benchmark_stages(settings, "budget").items():
        swept = {name: results for name, (_, results) in stages.items() if results["sweeps"]}
        for name, results in list(swept.items())[-1:]:  # the recipe's last
            for benchmark, sweep in list(results["sweeps"].items())[:1]:
                own = [one for one in results["entries"] if one["benchmark"] == benchmark]
                curve = sorted((one for one in own if one["budget"] is not None), key=lambda one: one["budget"])
                plain = next((one for one in own if one["mode"] == "non_thinking" and one["budget"] is None), None)
                seeds.append(
                    {
                        "seed": seed,
                        "stage": name,
                        "benchmark": benchmark,
                        "problems": min(one["problems"] for one in curve),
                        "samples": min(one["num_samples"] for one in curve),
                        "points": [
                            {
                                "budget": one["budget"],
                                **value(one["accuracy"], one["accuracy_ci95"]),
                                "cut": one.get("cut_share", 0.0),
                                "thinking_tokens": one.get("thinking_tokens", 0.0),
                            }
                            for one in curve
                        ],
                        "stop_text": curve[0].get("sampling", {}).get("thinking_stop_text", STOP_TEXT),
                        "monotone": sweep["monotone"],
                        "steps": sweep["steps"],
                        "rise": value(sweep["rise"], sweep["rise_ci95"]),
                        "non_thinking": value(plain["accuracy"], plain["accuracy_ci95"]) if plain else None,
                    }
                )
    if not seeds:
        raise Unfinished("budget: no benchmarks stage of the recipe has budgets")
    budgets = [point["budget"] for point in seeds[0]["points"]]
    if any([point["budget"] for point in one["points"]] != budgets for one in seeds):
        raise Unfinished(f"budget: the seeds were measured at different budgets; run `{HARNESS} --only {STAGES}` again")
    curve = [
        {
            "budget": budget,
            **value(*pooled([(one["points"][k]["value"], one["points"][k]["ci95"]) for one in seeds])),
            "cut": sum(one["points"][k]["cut"] for one in seeds) / len(seeds),
            "thinking_tokens": sum(one["points"][k]["thinking_tokens"] for one in seeds) / len(seeds),
        }
        for k, budget in enumerate(budgets)
    ]
    plain = [one["non_thinking"] for one in seeds if one["non_thinking"]]
    return {
        "by_seed": seeds,
        "curve": curve,
        "non_thinking": value(*pooled([(one["value"], one["ci95"]) for one in plain])) if plain else None,
        "rise": value(*pooled([(one["rise"]["value"], one["rise"]["ci95"]) for one in seeds])),
        "monotone": all(one["monotone"] for one in seeds),
    }


def section_budget(found: Numbers) -> list[str]:
    fewest, samples = (min(one[key] for one in found["by_seed"]) for key in ("problems", "samples"))
    lines = [
        f"`{found['by_seed'][0]['benchmark']}`, {fewest} problems x {samples} samples a seed and budget, seeds "
        f"{', '.join(str(one['seed']) for one in found['by_seed'])}; the same problems and seeds at every budget.",
        "",
        "| budget, tokens | pass@1 | thoughts cut | thinking tokens, mean |",
        "|---|---|---|---|",
    ]
    for point in found["curve"]:
        lines.append(
            f"| {point['budget']} | {percent(point)} | {100 * point['cut']:.0f} % | {point['thinking_tokens']:.1f} |"
        )
    if found["non_thinking"]:
        lines.append(f"| non-thinking | {percent(found['non_thinking'])} | | |")
    drops = [
        f"seed {one['seed']}, {step['from']} to {step['to']}: {points({**step, 'value': step['difference']})}"
        for one in found["by_seed"]
        for step in one["steps"]
        if step["difference"] + step["ci95"] < 0
    ]
    rise = found["rise"]
    stop_texts = {one["stop_text"] for one in found["by_seed"]} - {STOP_TEXT}
    lines += ["", *(f"The stop text is `{json.dumps(text)}` instead of the official sentence." for text in stop_texts)]
    lines += [
        f"Top less bottom: {points(rise)} points; the target of 20 is "
        f"{'met' if rise['value'] >= 0.2 else '**missed**'}. "
        + ("No step down beyond its interval." if found["monotone"] else f"**Steps down**: {'; '.join(drops)}."),
    ]
    if len(found["curve"]) < 6 or fewest < 256 or samples < 4:
        lines.append(
            f"Asked for were 6 budgets, 256 problems and 4 samples; here {len(found['curve'])}, {fewest} and {samples}."
        )
    return lines


def draw_budget(found: Numbers, path: Path) -> None:
    figure, axis = canvas()
    budgets = [point["budget"] for point in found["curve"]]
    for one in found["by_seed"] if len(found["by_seed"]) > 1 else ():
        axis.plot(budgets, [100 * point["value"] for point in one["points"]], color="grey", linewidth=0.8)
    axis.errorbar(
        budgets,
        [100 * point["value"] for point in found["curve"]],
        yerr=[100 * point["ci95"] for point in found["curve"]],
        marker="o",
        capsize=3,
        label="thinking, mean of seeds",
    )
    if found["non_thinking"]:
        axis.axhline(100 * found["non_thinking"]["value"], linestyle="--", color="C1", label="non-thinking")
    if budgets[0] == 0:
        axis.set_xscale("symlog", base=2, linthresh=1)
    else:
        axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.set_xlabel("thinking budget, tokens")
    axis.set_ylabel("pass@1, %")
    axis.legend()
    save(figure, path)


STUDIES = (
    Study(
        name="think_follow",
        title="ThinkFollow: does the mode follow the flags?",
        target=(
            "At least 95 % per turn on at least 300 held-out dialogues of at least four turns, with turns without a "
            "flag after flags and flags in the system message; per dialogue it is stated."
        ),
        reported=(
            "Section 4.7, Table 22: 88.7 after fusion, 98.9 after general RL (Qwen3-32B; its dialogues are not "
            "published and how turns count is not said)."
        ),
        chosen="As for the stages: settings by seed 0, whose dialogues are drawn with its seed.",
        runs=seed_runs,
        collect=collect_think_follow,
        section=section_think_follow,
        draw=draw_think_follow,
    ),
    Study(
        name="budget",
        title="Accuracy against the thinking budget",
        target=(
            "Six budgets on at least 256 problems with 4 samples: no drop beyond the interval, top less bottom at "
            "least 20 points."
        ),
        reported=(
            "Section 4.6, Figure 2, Qwen3-235B-A22B at 1K, 2K, 4K, 8K, 16K, 32K tokens, read off the plot: AIME'24 42, "
            "43, 56, 72, 84, 87 (non-thinking 40.1); GPQA-Diamond 64, 64, 68, 70, 71, 72 (62.9)."
        ),
        chosen="The six budgets were chosen with the lengths of seed 0's thoughts in view.",
        runs=seed_runs,
        collect=collect_budget,
        section=section_budget,
        draw=draw_budget,
    ),
)
