"""Files of reward functions that a submitted config names: shipped, or said to be missing before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlplatform.config import ConfigError
from rlplatform.configfile import load_values
from rlplatform.shipped_functions import check_absolute, check_function_files, function_files
from rlplatform.shipping import select_files


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "project"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "reward.py").write_text("def fn(completions): return [1.0]\n")
    (folder / "ignored.py").write_text("def fn(completions): return [1.0]\n")
    (folder / ".rlplatformignore").write_text("ignored.py\n")
    (tmp_path / "outside.py").write_text("def fn(completions): return [1.0]\n")
    return folder


def config(*names: str):
    return load_values({"kind": "eval", "reward": {"functions": dict.fromkeys(names, 1.0)}})


def test_shipped_files_packages_and_built_ins_pass(project):
    names = ("math", "rewards.math:grade", "mine/reward.py:fn", "verl:mine/../mine/reward.py:other")
    assert check_function_files(config(*names), select_files(project), project) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.py:fn", ["outside.py lies outside --working-dir", "reward.functions.fn"]),
        ("verl:../outside.py:fn", ["outside.py lies outside"]),
        ("ignored.py:fn", ["an ignore file or --exclude leaves it out"]),
        ("absent.py:fn", ["there is no file"]),
    ],
)
def test_what_does_not_reach_the_cluster_is_said(project, name, words):
    with pytest.raises(ConfigError) as caught:
        check_function_files(config(name), select_files(project), project)
    for word in [*words, "would not reach the cluster", "--working-dir"]:
        assert word in str(caught.value)


def test_a_path_relative_to_here_and_not_to_the_working_dir(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"outside\.py is there, and is not shipped"):
        check_function_files(config("outside.py:fn"), select_files(project), project)


def test_absolute_paths_need_a_head_that_shares_folders(project, tmp_path):
    names = (f"{project}/mine/reward.py:fn", f"{tmp_path}/outside.py:other")
    absolute = check_function_files(config(*names), select_files(project), project)
    assert [str(path) for _, path in absolute] == [f"{project}/mine/reward.py", f"{tmp_path}/outside.py"]
    check_absolute(absolute, shares_folder=True, working_dir=project)
    with pytest.raises(ConfigError, match=r"relative to --working-dir: mine/reward\.py"):
        check_absolute(absolute, shares_folder=False, working_dir=project)
    with pytest.raises(ConfigError, match="copy it into"):
        check_absolute(absolute[1:], shares_folder=False, working_dir=project)


def test_stages_and_dataset_functions_count():
    recipe = load_values(
        {
            "kind": "recipe",
            "stages": {
                "data": {"kind": "dataset", "function": "rows.py:make"},
                "score": {
                    "kind": "eval",
                    "reward": {"functions": {"math": 1.0, "named": {"function": "verl:a/b.py:fn", "weight": 0.5}}},
                },
            },
        }
    )
    assert [(key, str(path)) for key, path in function_files(recipe)] == [
        ("stages.data.function", "rows.py"),
        ("stages.score.reward.functions.named", "a/b.py"),
    ]
