"""Which files a submitted job takes along."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlplatform.config import ConfigError
from rlplatform.paths import configs_dir
from rlplatform.shipping import (
    MIB,
    PACKAGES,
    check_size,
    holds_packages,
    package_files,
    select_files,
    source_digest,
    stage,
)


def put(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_caches_environments_runs_and_version_control_stay(tmp_path: Path) -> None:
    put(tmp_path, "config.yaml", "data/train.jsonl", "my/rewards_of_mine.py")
    put(tmp_path, ".git/HEAD", ".venv/bin/python", ".venv-trl/x", "runs/demo/model.bin", "a/__pycache__/b.pyc")
    put(tmp_path, ".ruff_cache/x", ".cache/models/w", "pkg.egg-info/PKG-INFO", "my/runs/old")
    assert set(select_files(tmp_path)) == {"config.yaml", "data/train.jsonl", "my/rewards_of_mine.py"}


def test_ignore_files_of_every_folder_count_and_are_relative_to_it(tmp_path: Path) -> None:
    put(tmp_path, "a/big.bin", "a/keep.bin", "b/big.bin", "c/d/only_here.txt", "only_here.txt")
    put(tmp_path, ".gitignore", text="*.bin\n!keep.bin\n")
    put(tmp_path, "c/.rlplatformignore", text="/d/only_here.txt\n")
    assert set(select_files(tmp_path)) == {".gitignore", "a/keep.bin", "c/.rlplatformignore", "only_here.txt"}


def test_later_rules_win_so_a_default_can_be_taken_back_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    put(tmp_path, "runs/sft/model.bin", "x.txt")
    assert set(select_files(tmp_path)) == {"x.txt"}
    put(tmp_path, ".rlplatformignore", text="!runs/\n")
    assert set(select_files(tmp_path)) == {".rlplatformignore", "runs/sft/model.bin", "x.txt"}
    assert set(select_files(tmp_path, ["runs/", "*.txt"])) == {".rlplatformignore"}


def test_links_are_followed_once_and_dangling_ones_skipped(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside, "train.jsonl")
    folder = tmp_path / "project"
    put(folder, "x.txt")
    os.symlink(outside, folder / "data")
    os.symlink(folder, folder / "loop")
    os.symlink(folder / "nowhere", folder / "dangling")
    files = select_files(folder)
    assert set(files) == {"x.txt", "data/train.jsonl"}
    stage(files, tmp_path / "staged")
    assert (tmp_path / "staged" / "data" / "train.jsonl").read_text() == "x"
    assert not (tmp_path / "staged" / "data").is_symlink()


def test_a_folder_over_the_limit_names_the_largest_files_first(tmp_path: Path) -> None:
    for name, size in (("weights.bin", 3 * MIB), ("data/train.jsonl", 2 * MIB), ("small.txt", 10)):
        put(tmp_path, name, text="x" * size)
    files = select_files(tmp_path)
    assert check_size(files, 5.1) == pytest.approx(5.0, abs=1e-4)
    with pytest.raises(ConfigError) as error:
        check_size(files, 5.0)
    lines = str(error.value).splitlines()
    assert lines[1].split() == ["3.0", "MiB", "weights.bin"]
    assert lines[2].split() == ["2.0", "MiB", "data/train.jsonl"]
    assert ".rlplatformignore" in lines[-1]


def test_a_home_directory_is_refused_before_it_is_walked_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlplatform.shipping.MAX_FILES", 3)
    put(tmp_path, *(f"{i}.txt" for i in range(5)))
    with pytest.raises(ConfigError, match="more than 3 files"):
        select_files(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder"):
        select_files(tmp_path / "none")


def test_our_packages_go_along_with_their_configs_as_in_a_wheel() -> None:
    files = package_files()
    assert {name.split("/")[0] for name in files} == set(PACKAGES)
    assert "rlplatform/shipping.py" in files
    configs = {path.relative_to(configs_dir()).as_posix() for path in configs_dir().rglob("*.yaml")}
    assert {name.removeprefix("rlplatform/_configs/") for name in files if "/_configs/" in name} == configs
    assert not any("__pycache__" in name for name in files)


def test_the_digest_is_of_the_code_wherever_it_lies(tmp_path: Path) -> None:
    """Shipped, our packages have the same digest as here; one changed line changes it."""
    import subprocess
    import sys

    stage(package_files(), tmp_path)
    command = [sys.executable, "-c", "from rlplatform.shipping import source_digest; print(source_digest())"]
    run = {"cwd": tmp_path, "env": dict(os.environ, PYTHONPATH=str(tmp_path)), "text": True, "timeout": 60}
    assert subprocess.check_output(command, **run).strip() == source_digest()
    with open(tmp_path / "rewards" / "__init__.py", "a") as file:
        file.write("# changed\n")
    assert subprocess.check_output(command, **run).strip() != source_digest()


def test_a_folder_with_one_of_our_names_is_refused_and_a_checkout_is_not(tmp_path: Path) -> None:
    put(tmp_path, "config.yaml")
    assert not holds_packages(select_files(tmp_path), tmp_path)
    put(tmp_path, "rewards/mine.py")
    with pytest.raises(ConfigError, match=r"rewards would be imported .* --exclude '/rewards'"):
        holds_packages(select_files(tmp_path), tmp_path)
    assert not holds_packages(select_files(tmp_path, ["/rewards"]), tmp_path)
    put(tmp_path, "model.py")
    with pytest.raises(ConfigError, match=r"--exclude '/model\.py'"):
        holds_packages(select_files(tmp_path, ["/rewards"]), tmp_path)
    checkout = tmp_path / "checkout"
    put(checkout, *(f"{name}/__init__.py" for name in PACKAGES))
    assert holds_packages(select_files(checkout), checkout)


def test_ignore_files_are_not_shipped_or_ray_would_apply_them_to_our_packages(tmp_path: Path) -> None:
    put(tmp_path / "a", "x.py")
    put(tmp_path / "a", ".gitignore", ".rayignore", text="model/\n")
    stage(select_files(tmp_path / "a"), tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["x.py"]
