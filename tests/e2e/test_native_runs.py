"""Whole RL runs on native models, dense and mixture of experts, all weights and adapters alone: learner and engine
agree at step 0, training moves what it should, and what is exported is a folder like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.hf import load_policy
from model.init import init_model
from model.qwen3 import Qwen3
from rlplatform.runs import RunFolder

from .conftest import Finished, rlplatform
from .test_rl_runs import ONE_ENGINE, write_config

pytestmark = pytest.mark.slow

STEPS = 3
ADAPTERS = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "o_proj"]}


def assert_parity(run: RunFolder, model: Path) -> None:
    """The gate of step 0 was on and passed, and the engine computed with the learner's weights ever after."""
    rows = run.read_metrics()
    (parity,) = (row for row in rows if "parity/abs_logprob_diff_mean" in row)
    assert parity["parity/abs_logprob_diff_mean"] < parity["parity/tolerance"] == 1e-4
    steps = [row for row in rows if "loss/total" in row]
    assert steps
    assert all(row["mismatch/abs_logprob_diff_mean"] < 1e-4 for row in steps)
    published = {row["publish/verified_tensors"] for row in rows if "publish/verified_tensors" in row}
    assert published == {len(load_file(model / "model.safetensors")) + 1}  # and the engine's tied head


def moved(run: RunFolder, model: Path) -> tuple[set[str], set[str]]:
    """Names of the tensors that training changed, and of those it did not."""
    before, after = (load_file(folder / "model.safetensors") for folder in (model, run.model))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    return changed, before.keys() - changed


def test_the_demo_runs_a_native_dense_model_in_parity(smoke_demo: Finished) -> None:
    model = smoke_demo.folder / "sft" / "model"
    policy = load_policy(str(model), meta=True)
    assert isinstance(policy, Qwen3)
    assert not policy.config.is_moe
    run = RunFolder(smoke_demo.folder / "rl")
    assert_parity(run, model)


@pytest.mark.parametrize(("kind", "lora"), [("moe", {}), ("dense", ADAPTERS)], ids=["moe", "dense-lora"])
def test_a_run_starts_in_parity_and_exports_what_it_trained(
    smoke_demo: Finished, tmp_path: Path, kind: str, lora: dict[str, Any]
) -> None:
    model = smoke_demo.folder / "sft" / "model"
    if kind == "moe":
        model = tmp_path / "model"
        init_model(model, smoke_demo.folder / "init" / "model", {"preset": "tiny-moe", "initializer_range": 0.05})
    config = write_config(
        tmp_path,
        model,
        smoke_demo.folder / "data",
        num_steps=STEPS,
        optimizer={"lr": 1e-2 if lora else 1e-3},
        rollout=ONE_ENGINE,
        learner={"num_workers": 2, "cpus_per_worker": 0.5, "zero_stage": 3 if lora else 2, "lora": lora},
        checkpoint={"every": 0},
    )
    done = rlplatform("run", str(config))
    assert done.returncode == 0, done.stderr[-3000:]

    run = RunFolder(tmp_path / "run")
    assert_parity(run, model)
    assert sum("loss/total" in row for row in run.read_metrics()) == STEPS
    trained = load_policy(str(run.model))
    assert isinstance(trained, Qwen3)
    assert trained.config.is_moe == (kind == "moe")
    changed, still = moved(run, model)
    if lora:
        assert changed == {name for name in changed | still if name.endswith(("q_proj.weight", "o_proj.weight"))}
        assert (run.model / "adapter" / "adapter_config.json").is_file()
    else:
        assert all(".experts." in name for name in still)  # an expert that no token chose may rest
        assert len(still) < len(changed) / 3
