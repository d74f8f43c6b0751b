"""Rewards of installed packages: names, clashes, broken ones, and that listing imports nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rewards.base import RewardLoadError, resolve
from rewards.plugins import installed
from rewards.runner import RewardPool

ROOT = Path(__file__).parents[2]
MODULE = """
print("IMPORTED")
from {package}_helper import WORTH

def {name}(completions, **columns):
    '''The worth of anything.'''
    return [WORTH for _ in completions]
"""


def distribution(folder: Path, package: str, *lines: str, version: str = "1.2", source: str | None = None) -> None:
    """What `pip install` leaves behind of a small package: a module, one beside it, and a dist-info folder."""
    folder.mkdir(exist_ok=True)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[rlplatform.rewards]\n" + "".join(f"{line}\n" for line in lines))
    name = lines[0].rpartition(":")[2]
    (folder / f"{package}.py").write_text(MODULE.format(package=package, name=name) if source is None else source)
    (folder / f"{package}_helper.py").write_text("WORTH = 0.75\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_name_of_an_installed_package_resolves(site):
    distribution(site, "plug_a", "worth_a = plug_a:worth")
    assert resolve("worth_a")(completions=["x", "y"]) == [0.75, 0.75]


def test_listing_imports_nothing(site):
    distribution(site, "plug_b", "worth_b = plug_b:worth", "another_b = plug_b:absent")
    code = (
        "from rewards.plugins import installed; import sys\nfor one in installed(): print(one.name, one.distribution)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["another_b plug_b 1.2", "worth_b plug_b 1.2"]
    assert "plug_b" not in sys.modules
    assert [one.line for one in installed("worth_b")] == ["worth_b = plug_b:worth"]


def test_in_the_pools_child(site):
    distribution(site, "plug_c", "worth_c = plug_c:worth")
    with RewardPool({"worth_c": 2.0}) as pool:
        assert [v.score for v in pool.score(["a", "b"], ["x", "y"])] == [1.5, 1.5]
    assert resolve("worth_c").__module__ == "plug_c"


def test_a_clash_with_a_built_in_names_both(site):
    distribution(site, "plug_d", "math = plug_d:worth")
    with pytest.raises(RewardLoadError, match="declared more than once") as caught:
        resolve("math")
    assert "rlplatform (math = rewards.math:math_reward)" in str(caught.value)
    assert "plug_d 1.2 (math = plug_d:worth)" in str(caught.value)
    assert resolve("rewards.math:math_reward")  # the way out that the message tells
    assert resolve("format")  # nothing else is hurt


def test_a_clash_between_two_packages_names_both(site, tmp_path, monkeypatch):
    distribution(site, "plug_e", "worth_e = plug_e:worth")
    distribution(tmp_path / "other", "plug_f", "worth_e = plug_f:worth", version="3.0")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    with pytest.raises(
        RewardLoadError, match=r"plug_e 1\.2 \(worth_e = plug_e:worth\); plug_f 3\.0 \(worth_e = plug_f"
    ):
        resolve("worth_e")


def test_one_package_in_two_places_is_no_clash(site, tmp_path, monkeypatch):
    distribution(site, "plug_g", "worth_g = plug_g:worth")
    distribution(tmp_path / "newer", "plug_g", "worth_g = plug_g:worth", version="2.0")
    monkeypatch.syspath_prepend(str(tmp_path / "newer"))
    assert [one.distribution for one in installed("worth_g")] == ["plug_g 2.0"]


@pytest.mark.parametrize(
    ("line", "source", "words"),
    [
        ("fn = {p}:fn", "import no_such_thing\n", ["{p} 1.2 (fn = {p}:fn)", "{p}.py:1", "no_such_thing"]),
        ("fn = {p}:fn", "x = 1\ny = x / 0\n", ["{p} 1.2 (fn = {p}:fn)", "{p}.py:2", "ZeroDivisionError"]),
        ("fn = {p}:fn", "def broken(:\n", ["{p} 1.2 (fn = {p}:fn)", "{p}.py:1", "SyntaxError"]),
        ("fn = {p}:fn", "def fm(completions): ...\n", ["{p} 1.2 (fn = {p}:fn)", "no function 'fn'", "'fm'"]),
        ("fn = {p}_absent:fn", "", ["{p} 1.2 (fn = {p}_absent:fn)", "no module named"]),
        ("fn = {p}", "", ["{p} 1.2 (fn = {p})", "expected fn = package.module:fn"]),
        ("fn = {p}:fn", "def fn(texts): ...\n", ["without `completions`"]),
    ],
)
def test_a_broken_one_names_distribution_and_line(site, request, line, source, words):
    package = f"plug_broken_{abs(hash(request.node.name))}"
    line = line.format(p=package).replace("fn =", f"{package} =", 1)
    distribution(site, package, line, source=source)
    with pytest.raises(RewardLoadError) as caught:
        resolve(package)
    for word in words:
        assert word.format(p=package).replace("fn =", f"{package} =", 1) in str(caught.value)


def test_an_unknown_name_suggests_those_of_packages_too(site):
    distribution(site, "plug_h", "brevity_h = plug_h:worth")
    with pytest.raises(RewardLoadError, match="did you mean 'brevity_h'"):
        resolve("brevity_j")
