from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rewards.base import Verdict
from rlplatform import inspection, report
from rlplatform.config import ConfigError, RecipeConfig, RewardConfig, RLConfig, TrackerConfig
from rlplatform.runs import RunFolder
from rlplatform.trackers import Progress, Writers
from rlplatform.types import Prompt, Rollout, RolloutGroup, ScoredGroup


def scored(step: int) -> ScoredGroup:
    prompt = Prompt("train-7", (), np.array([1, 2], dtype=np.int32), "What is <b>1+1</b>?", {"answer": "2"})
    rollouts = tuple(
        Rollout(
            np.arange(n, dtype=np.int32), np.ones(n, dtype=bool), np.full(n, -1, dtype=np.float32),
            np.full(n, step, dtype=np.int32), "stop", text,
        )
        for n, text in [(3, "two"), (5, "three"), (4, "slow")]
    )  # fmt: skip
    verdicts = (Verdict(1.0, parts={"math": 1.0}), Verdict(0.25, parts={"math": 0.25}), Verdict(0.0, "timeout"))
    return ScoredGroup(RolloutGroup(prompt, rollouts, step), verdicts)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    config = RLConfig(reward=RewardConfig(functions={"math": 1.0}))
    folder.begin(config)
    writers = Writers(folder, TrackerConfig(), name="run", settings={})
    for step in range(3):
        folder.write_rollouts([scored(step)], step=step)
        accuracy = 0.6 - 0.2 * step
        writers.write(step, {"reward/mean": 0.1 * step, "eval/accuracy": accuracy, "eval/accuracy_ci95": 0.05})
    writers.close()
    return folder


def test_a_rollout_reads_back_as_it_was_recorded(folder: RunFolder) -> None:
    frame = folder.read_rollouts()
    assert len(frame) == 9
    row = frame.iloc[1]
    assert (row["completion"], row["reward"], row["length"], row["answer"]) == ("three", 0.25, 5, '"2"')
    assert list(row["token_ids"]) == [0, 1, 2, 3, 4]
    assert np.isnan(frame.iloc[2]["reward"])  # a timeout has no reward, not a reward of 0


def test_metrics_read_back_and_survive_a_cut_line(folder: RunFolder) -> None:
    with open(folder.metrics_file, "a") as file:
        file.write('{"step": 1, "reward/mean": 0.5}\n{"step": 9, "rew')
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2]
    assert folder.read_metrics()[1]["reward/mean"] == 0.5
    assert list((folder.path / "tensorboard").glob("events*"))


def test_the_report_shows_curves_and_early_and_late_rollouts(folder: RunFolder) -> None:
    page = report.write_run_report(folder).read_text()
    assert (folder.report / "plots.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64" in page
    assert "Early rollouts (step 0)" in page
    assert "Late rollouts (step 2)" in page
    assert "What is &lt;b&gt;1+1&lt;/b&gt;?" in page  # model and data text is never markup


def test_the_headline_of_benchmarks_names_modes_and_what_the_budget_brings() -> None:
    entries = [
        {"benchmark": "thinkfollow", "mode": "dialogue", "budget": None, "accuracy": 0.975},
        {"benchmark": "own", "mode": "non_thinking", "budget": None, "accuracy": 0.25},
        {"benchmark": "own", "mode": "thinking", "budget": 8, "accuracy": 0.5},
    ]
    sweeps = {"own": {"rise": 0.312, "rise_ci95": 0.0402}}
    said = report.headline("benchmarks", {"entries": entries, "sweeps": sweeps})
    assert said == "thinkfollow 97.5%, own non_thinking 25.0%, own by budget +31.2 ± 4.0 points"


@pytest.mark.parametrize(("names", "title"), [(("rl",), "before RL"), (("reasoning", "student"), "before student")])
def test_the_results_table_says_which_of_several_rl_stages_it_is_about(
    names: tuple[str, ...], title: str, tmp_path: Path
) -> None:
    summary = {"before": {"eval/accuracy": 0.5}, "after": {"eval/accuracy": 0.75}, "problems": 4}
    finished = {name: {"kind": "rl", "seconds": 1.0, "summary": summary} for name in names}
    reward = RewardConfig(functions={"math": 1.0})
    plan = {name: RLConfig(name=name, run_dir=str(tmp_path / name), reward=reward) for name in names}
    for stage in plan.values():
        writers = Writers(RunFolder(stage.run_dir), TrackerConfig(tensorboard=False), name="run", settings={})
        writers.write(0, {"eval/accuracy": 0.5})
        writers.close()
    results = report.recipe_results(RecipeConfig(name="r", stages={"x": {}}), plan, finished)
    assert results["accuracy_after_rl"] == 0.75
    page = report.write_recipe_report(RunFolder(tmp_path), plan, results).read_text()
    assert title in page
    assert page.count("data:image/png;base64") == len(names)


def show(folder: RunFolder, **options: object) -> str:
    out = io.StringIO()
    values = {"step": None, "status": None, "sort": "best", "rows": 2, "held_out": False} | options
    inspection.show(folder.path, **values, console=Console(file=out, width=160))  # type: ignore[arg-type]
    return out.getvalue()


def test_inspect_shows_best_worst_by_step_and_by_status(folder: RunFolder) -> None:
    assert "reward 1.000" in show(folder)
    assert "reward 0.250" in show(folder, sort="worst", rows=1)
    assert "slow" in show(folder, status="timeout", rows=1)
    assert "step 1  prompt train-7" in show(folder, step=1, rows=1)
    assert "timeout" in show(folder)


def test_inspect_points_at_a_reward_that_rises_while_held_out_accuracy_falls(folder: RunFolder) -> None:
    assert "may be gamed" in show(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"sort": "bst"}, "--sort: expected one of"), ({"status": "late"}, "--status"), ({"step": 99}, "no rollout with")],
)
def test_inspect_says_what_is_wrong(folder: RunFolder, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        show(folder, **options)


def test_inspect_of_a_recipe_names_its_stages(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="it has stages"):
        inspection.show(folder.path.parent, step=None, status=None, sort="best", rows=1, held_out=False)


def test_progress_is_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    progress = Progress("rl", 3, stream=out)
    progress.phase("generate")
    progress.step(1, "reward 0.5")
    progress.close()
    assert out.getvalue() == "rl 1/3  reward 0.5\n"


def test_an_unknown_metric_name_is_refused(folder: RunFolder) -> None:
    writers = Writers(folder, TrackerConfig(tensorboard=False), name="run", settings={})
    with pytest.raises(ValueError, match="not in"):
        writers.write(9, {"reward/avg": 1.0})
