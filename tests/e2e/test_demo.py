"""The main job, short: every stage, every artefact, through the command line."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from rlplatform import checkpoint
from rlplatform.config import KINDS, RecipeConfig
from rlplatform.configfile import load
from rlplatform.reads import reads
from rlplatform.runs import RunFolder

from .conftest import Finished, rlplatform

pytestmark = pytest.mark.slow


def test_the_demo_ends_with_results_report_and_rollouts(smoke_demo: Finished) -> None:
    results = json.loads((smoke_demo.folder / "results.json").read_text())
    assert {"accuracy_before_rl", "accuracy_after_rl", "problems", "seconds", "seed"} <= results.keys()
    assert results["problems"] == 8
    assert (smoke_demo.folder / "report" / "plots.png").stat().st_size > 10_000
    assert "Late rollouts" in (smoke_demo.folder / "report" / "index.html").read_text()
    rl = RunFolder(smoke_demo.folder / "rl")
    assert [row["step"] for row in rl.read_metrics()] == [0, 1, 2]
    frame = rl.read_rollouts()
    assert len(frame) == 2 * 4 * 2
    assert set(frame["status"]) == {"ok"}
    assert (frame["version_min"] == frame["step"]).all()  # strictly on-policy
    assert (frame["version_max"] == frame["step"]).all()


def test_sampler_and_learner_agree_on_the_same_weights(smoke_demo: Finished) -> None:
    for row in RunFolder(smoke_demo.folder / "rl").read_metrics()[1:]:
        assert row["mismatch/abs_logprob_diff_mean"] < 1e-4
        assert row["mismatch/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-3)
        assert row["publish/verified_tensors"] > 0
    first = RunFolder(smoke_demo.folder / "rl").read_metrics()[0]
    assert first["parity/abs_logprob_diff_mean"] < 1e-4


def test_nothing_of_the_libraries_chatter_is_on_the_screen(smoke_demo: Finished) -> None:
    noisy = [
        line
        for line in smoke_demo.output.splitlines()
        if any(
            word in line for word in ("WARNING", "INFO ", "vllm", "DeepSpeed", "deepspeed", "(pid=", "FutureWarning")
        )
    ]
    assert not noisy
    logs = sorted(path.name for path in (smoke_demo.folder / "rl" / "logs").glob("*.log"))
    assert {"learner-0.log", "learner-1.log", "rollout-0.log", "rollout-1.log", "reward-0.log"} <= set(logs)


def test_the_same_command_again_says_it_is_finished(smoke_demo: Finished) -> None:
    base = smoke_demo.folder.with_name("demo")
    done = rlplatform("run", "configs/recipe/demo.yaml", "--smoke", f"run_dir={base}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("finished before") == 4
    assert "report" in done.stdout


def test_checkpoints_are_complete_and_the_exported_model_equals_them(smoke_demo: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = checkpoint.latest(smoke_demo.folder / "rl" / "checkpoints")
    assert found is not None
    assert found.step == 2
    assert found.state["prompts"]["drawn"] == 8
    model = AutoModelForCausalLM.from_pretrained(smoke_demo.folder / "rl" / "model")
    tokenizer = AutoTokenizer.from_pretrained(smoke_demo.folder / "rl" / "model")
    assert tokenizer.chat_template
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")


# Keys that a run of the demo has no reason to read, each with why.
NOT_IN_THIS_RUN = {
    "EvalConfig": "another kind of run; see test_eval_reads_its_config",
    "BenchmarksConfig": "another kind of run; see tests/unit/test_benchmarks_runs.py",
    "EnvironmentConfig": "only with an environment; see tests/integration/test_agent_rollouts.py",
    "SampleConfig": "another kind of run; see tests/integration/test_recipe_stages.py",
    "FilterConfig": "another kind of run; see tests/unit/test_data_stages.py",
    "FusionConfig": "another kind of run; see tests/unit/test_data_stages.py",
    "PreferenceConfig": "another kind of run; see tests/integration/test_preference.py",
    "DocumentsConfig": "another kind of run; see tests/integration/test_corpus_stage.py",
    "AnnotateConfig": "another kind of run; see tests/integration/test_annotate.py",
    "TrainLabellerConfig": "another kind of run; see tests/integration/test_annotate.py",
    "GoldConfig": "only in train_labeller; see tests/integration/test_annotate.py",
    "FeaturesConfig": "only in train_labeller; see tests/integration/test_annotate.py",
    "CleanConfig": "another kind of run; see tests/integration/test_clean_stage.py",
    "DPOConfig": "another kind of run; see tests/integration/test_dpo.py",
    "MixtureSearchConfig": "another kind of run; see tests/integration/test_mixture_search.py",
    "ScalingLawConfig": "another kind of run; see tests/integration/test_scaling.py",
    "MixtureConfig": "another kind of run; see tests/e2e/test_pretrain_mini.py",
    "TokensConfig": "another kind of run; see tests/e2e/test_pretrain_mini.py",
    "PretrainConfig": "another kind of run; see tests/e2e/test_pretrain_mini.py",
    "PackedDataConfig": "only in pretrain; see tests/e2e/test_pretrain_mini.py",
    "CompletionsConfig": "only in pretrain; see tests/e2e/test_pretrain_mini.py",
    "OptimizerConfig.decay_steps": "only with decay; see tests/integration/test_learner.py",
    "CheckpointConfig.portable": "only in supervised training; see tests/integration/test_pretraining.py",
    "WorkersConfig": "only in data stages; see tests/integration/test_corpus_stage.py",
    "RecipeConfig.kind": "decided before the dataclass exists",
    "LoraConfig.alpha": "only with adapters; see test_lora.py and test_rl_runs.py",
    "LoraConfig.dropout": "only with adapters",
    "LoraConfig.targets": "only with adapters",
    "DataConfig.curriculum_buckets": "only with curriculum; see tests/unit/test_data_stages.py",
    "AlgorithmConfig.entropy_delta": "only with entropy_target; see tests/integration/test_recipe_stages.py",
    "AlgorithmConfig.max_sampling_rounds": "only with dynamic_sampling",
    "AlgorithmConfig.at_sampling_cap": "only with dynamic_sampling",
    "AlgorithmConfig.max_empty_steps": "only after a step without a usable group",
}


def leaves(cls: type) -> set[str]:
    default = {entry.name for entry in fields(cls) if not is_dataclass(_default(entry))}
    return {f"{cls.__name__}.{name}" for name in default if name != "kind"}


def _default(entry: Any) -> Any:
    from dataclasses import MISSING

    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def config_classes() -> set[type]:
    found: set[type] = set()

    def walk(cls: type) -> None:
        found.add(cls)
        for entry in fields(cls):
            value = _default(entry)
            if is_dataclass(value):
                walk(type(value))

    for cls in KINDS.values():
        walk(cls)
    return found


def test_every_config_key_is_read_by_somebody(smoke_demo: Finished, tmp_path: Path) -> None:
    seen = reads(smoke_demo.reads)
    assert seen, "no reads were tracked"
    every = set().union(*(leaves(cls) for cls in config_classes()))
    excused = {key for key in every if key in NOT_IN_THIS_RUN or key.split(".")[0] in NOT_IN_THIS_RUN}
    unread = sorted(every - seen - excused)
    assert not unread, f"config keys that nobody read: {unread}"


def test_eval_command_gives_pass_at_1_and_pass_at_k_and_reads_its_config(smoke_demo: Finished, tmp_path: Path) -> None:
    tracked = tmp_path / "reads"
    tracked.mkdir()
    done = rlplatform(
        "eval",
        str(smoke_demo.folder / "rl" / "model"),
        "--data",
        str(smoke_demo.folder / "data" / "test.jsonl"),
        "--out",
        str(tmp_path / "eval"),
        "--reward",
        "math",
        "-n",
        "4",
        "data.limit=8",
        "sampling.max_new_tokens=32",
        "data.max_prompt_tokens=48",
        env={"RLPLATFORM_TRACK_READS": str(tracked)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["problems"] == 8
    assert {"accuracy", "pass_at_2", "pass_at_4", "greedy_accuracy", "accuracy_ci95", "sampling"} <= results.keys()
    seen = reads(tracked)
    assert leaves(KINDS["eval"]) - seen == set()


def test_inspect_shows_the_run(smoke_demo: Finished) -> None:
    done = rlplatform("inspect", str(smoke_demo.folder / "rl"), "--sort", "worst", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "verdicts" in done.stdout
    assert "step" in done.stdout
    wrong = rlplatform("inspect", str(smoke_demo.folder))
    assert wrong.returncode == 2
    assert "it has stages" in wrong.stderr


def test_the_demo_recipe_holds_what_the_readme_says() -> None:
    recipe = load("configs/recipe/demo.yaml")
    assert isinstance(recipe, RecipeConfig)
    assert list(recipe.stages) == ["data", "init", "sft", "rl"]
    assert recipe.stages["rl"]["evaluation"]["num_samples"] == 4
    assert recipe.stages["data"]["args"]["num_test"] >= 256
