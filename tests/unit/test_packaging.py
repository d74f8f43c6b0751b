"""What ships, what importing costs, and whose `model` it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlplatform", "actors", "rewards", "model", "pretrain")


def python(code: str, *, path: tuple[Path, ...] = (), cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the given folders first on its path, then the checkout.

    Not from the checkout: `python -c` puts its working directory before everything.
    """
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(str(part) for part in (*path, ROOT)))
    code = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of its sources without network or isolation."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(ROOT)) for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    configs = {f"rlplatform/_configs/{file.relative_to(ROOT / 'configs')}" for file in ROOT.glob("configs/**/*.yaml")}
    assert len(configs) > 0
    assert modules - names == set()
    assert configs - names == set()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_an_installed_wheel_finds_its_configs_and_passes_its_own_guard(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rlplatform.paths import configs_dir, checkout_dir; print(configs_dir(), checkout_dir())",
        ],
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.split() == [str(tmp_path / "rlplatform" / "_configs"), "None"], result.stderr


def test_importing_loads_nothing_heavy() -> None:
    result = python(
        """
        import sys
        import rlplatform, rewards, model, actors, pretrain
        import rlplatform.types, rlplatform.config, rlplatform.roles, rewards.base, rlplatform.cli
        print([name for name in ("ray", "vllm", "deepspeed", "torch", "transformers") if name in sys.modules])
        """
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def fake_distribution(folder: Path, name: str, package: str, *, record: bool) -> None:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if record:
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n")
    else:
        (info / "top_level.txt").write_text(f"{package}\n")


@pytest.mark.parametrize("package", ["actors", "rewards", "model", "pretrain"])
@pytest.mark.parametrize("record", [True, False])
def test_a_foreign_package_stops_the_import_and_its_distribution_is_named(
    tmp_path: Path, package: str, record: bool
) -> None:
    fake_distribution(tmp_path, f"acme-{package}", package, record=record)
    result = python("import rlplatform", path=(tmp_path,))
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert "ForeignPackageError" in message
    assert str(tmp_path / package) in message
    assert f"`acme-{package}`" in message
    assert str(ROOT / package) in message


def test_a_foreign_package_imported_first_is_caught_too(tmp_path: Path) -> None:
    fake_distribution(tmp_path, "acme-model", "model", record=True)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import model; sys.path.pop(0); import rlplatform"
    result = python(code)
    assert "`acme-model`" in result.stderr
    assert result.returncode == 1


def test_a_script_beside_a_model_py_is_told_to_rename_it(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    (tmp_path / "train.py").write_text("import rlplatform\n")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, "train.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert str(tmp_path / "model.py") in result.stderr
    assert "rename it" in result.stderr


def test_a_missing_package_is_an_incomplete_installation(tmp_path: Path) -> None:
    for name in ("rlplatform", "actors", "rewards", "model"):  # not pretrain
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    # -S: the checkout itself may be installed in this environment, and would supply the missing package.
    command = [sys.executable, "-S", "-c", "import rlplatform"]
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert "the package `pretrain`" in result.stderr
    assert "reinstall" in result.stderr


def test_the_environment_is_consistent_but_for_the_known_four(monkeypatch: pytest.MonkeyPatch) -> None:
    uv = shutil.which("uv") or Path(sys.executable).with_name("uv")
    if not Path(uv).exists():
        pytest.skip("uv is neither on PATH nor in this environment")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from set_up import KNOWN_INCOMPATIBILITIES

    command = [str(uv), "pip", "check", "--python", sys.executable]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("The package")]
    assert [line for line in lines if not line.startswith(KNOWN_INCOMPATIBILITIES)] == []


class TestSetUpOptions:
    """Which index, which folder of wheels and which torch uv is told about."""

    @pytest.fixture(autouse=True)
    def _set_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX"):
            monkeypatch.delenv(name, raising=False)

    def options(self, settings: dict[str, str], extra: str = "cpu") -> list[str]:
        from set_up import index_options

        return index_options(settings, extra)

    def test_without_pip_configuration_the_cpu_torch_is_asked_for(self) -> None:
        assert self.options({}) == ["--torch-backend", "cpu"]

    def test_a_folder_with_torch_wheels_is_where_torch_comes_from(self, tmp_path: Path) -> None:
        (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
        assert self.options({"find-links": str(tmp_path)}) == ["--find-links", str(tmp_path)]

    def test_a_folder_without_torch_does_not_replace_the_cpu_build(self, tmp_path: Path) -> None:
        (tmp_path / "torchmetrics-1.0-py3-none-any.whl").touch()
        assert self.options({"find-links": str(tmp_path)}) == [
            "--find-links",
            str(tmp_path),
            "--torch-backend",
            "cpu",
        ]

    def test_a_mirror_is_handed_on_unless_uv_has_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"index-url": "https://mirror.example/index"}
        assert self.options(settings)[:2] == ["--default-index", "https://mirror.example/index"]
        monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other.example/index")
        assert "--default-index" not in self.options(settings)

    def test_for_gpu_the_cpu_build_is_not_asked_for(self, tmp_path: Path) -> None:
        assert self.options({}, "gpu") == []
        assert self.options({"find-links": str(tmp_path)}, "gpu") == ["--find-links", str(tmp_path)]


class TestSetUpScript:
    """scripts/setup.sh with a stand-in for the installation, which takes minutes."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        (tmp_path / "scripts").mkdir()
        (tmp_path / "requirements").mkdir()
        (tmp_path / "requirements" / "cpu.txt").write_text("torch==2.13.0\n")
        (tmp_path / "pyproject.toml").write_text("")
        (tmp_path / "scripts" / "build_ops.py").write_text("")
        shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
        (tmp_path / "scripts" / "set_up.py").write_text(
            textwrap.dedent(
                """
                import os, pathlib, sys
                venv = pathlib.Path(sys.argv[sys.argv.index("--venv") + 1])
                (venv / "bin").mkdir(parents=True, exist_ok=True)
                (venv / "bin" / "python").touch(mode=0o755)
                (venv / "pyvenv.cfg").write_text("version = 3.11.7")
                (venv / ".setup-extra").write_text(sys.argv[sys.argv.index("--extra") + 1])
                print("installing", *sys.argv[1:])
                sys.exit(int(os.environ.get("FAIL", "0")))
                """
            )
        )
        return tmp_path

    def run(self, checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("EXTRA", "PYTHON")}
        command = ["sh", str(checkout / "scripts" / "setup.sh")]
        return subprocess.run(command, env=inherited | env, capture_output=True, text=True, timeout=60)

    def test_it_installs_once_and_again_when_a_pin_changes(self, checkout: Path) -> None:
        assert "installing" in self.run(checkout).stdout
        assert self.run(checkout).stdout == ""
        (checkout / "requirements" / "cpu.txt").write_text("torch==2.14.0\n")
        assert "installing" in self.run(checkout).stdout
        assert self.run(checkout).stdout == ""

    def test_a_failed_installation_is_not_taken_for_a_finished_one(self, checkout: Path) -> None:
        assert self.run(checkout, FAIL="1").returncode != 0
        assert "installing" in self.run(checkout).stdout

    def test_a_removed_or_moved_environment_is_noticed(self, checkout: Path, tmp_path: Path) -> None:
        self.run(checkout)
        (checkout / ".venv" / "bin" / "python").unlink()
        assert "installing" in self.run(checkout).stdout
        (checkout / ".venv" / "pyvenv.cfg").write_text("version = 3.12.1")
        assert "installing" in self.run(checkout).stdout
        moved = tmp_path.parent / f"{tmp_path.name}-moved"
        checkout.rename(moved)
        assert "installing" in self.run(moved).stdout

    def test_gpu_is_remembered(self, checkout: Path) -> None:
        assert "--extra gpu" in self.run(checkout, EXTRA="gpu").stdout
        assert self.run(checkout).stdout == ""
        assert "--extra cpu" in self.run(checkout, EXTRA="cpu").stdout

    def test_without_a_new_enough_python_it_says_what_was_expected_and_found(self, checkout: Path) -> None:
        tools = checkout / "tools"
        tools.mkdir()
        for name in ("sh", "cat", "cksum", "dirname", "grep", "uname", "c++"):
            (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        (tools / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
        (tools / "python3").chmod(0o755)
        result = self.run(checkout, PATH=str(tools))
        assert result.returncode == 1
        assert "expected Python 3.11 or newer" in result.stderr
        assert "Python 3.9.2" in result.stderr
        assert "PYTHON=" in result.stderr

    def test_without_a_compiler_it_says_so_before_installing_anything(self, checkout: Path) -> None:
        tools = checkout / "tools"
        tools.mkdir()
        for name in ("sh", "cat", "cksum", "dirname", "grep", "uname"):
            (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        (tools / "python3").symlink_to(sys.executable)
        result = self.run(checkout, PATH=str(tools))
        assert result.returncode == 1
        assert "C++ compiler" in result.stderr
        assert "installing" not in result.stdout


def test_pins_agree_with_the_stated_ranges_and_name_no_index() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in ("cpu", "gpu"):
        text = (ROOT / "requirements" / f"{extra}.txt").read_text()
        assert "://" not in text
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        pins = {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line)}
        stated = project["dependencies"] + project["optional-dependencies"][extra]
        for requirement in map(Requirement, stated + project["optional-dependencies"]["dev"]):
            (specifier,) = pins[canonicalize_name(requirement.name)].specifier
            assert specifier.operator == "=="
            assert requirement.specifier.contains(specifier.version, prereleases=True), requirement


class TestStaleBuildLocks:
    """torch waits for ever on the lock of a build that was killed."""

    def lock(self, folder: Path, age_s: float) -> Path:
        lock = folder / "cpu_adam" / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        then = time.time() - age_s
        os.utime(lock, (then, then))
        return lock

    def test_an_old_lock_nobody_works_under_is_stale_and_removed(self, tmp_path: Path) -> None:
        from rlplatform.paths import remove_stale_build_locks

        lock = self.lock(tmp_path, 120)
        assert remove_stale_build_locks(tmp_path) == [lock]
        assert not lock.exists()

    def test_a_young_lock_is_left(self, tmp_path: Path) -> None:
        from rlplatform.paths import remove_stale_build_locks

        lock = self.lock(tmp_path, 5)
        assert remove_stale_build_locks(tmp_path) == []
        assert lock.exists()

    def test_a_lock_whose_build_runs_is_left(self, tmp_path: Path) -> None:
        from rlplatform.paths import remove_stale_build_locks

        lock = self.lock(tmp_path, 3600)
        build = subprocess.Popen([sys.executable, "-c", "input()"], cwd=lock.parent, stdin=subprocess.PIPE)
        try:
            assert remove_stale_build_locks(tmp_path) == []
            assert lock.exists()
        finally:
            build.communicate(b"\n", timeout=30)
        assert remove_stale_build_locks(tmp_path) == [lock]

    def test_deepspeed_finds_set_ups_operators_and_its_ninja_first(self, tmp_path: Path) -> None:
        """Another ninja than the one that built an operator builds it again, a minute inside a start-up deadline."""
        result = python(
            f"""
            import os, shutil, sys
            os.environ.update(TORCH_EXTENSIONS_DIR={str(tmp_path / "ops")!r}, PATH="/usr/bin:/bin")
            from rlplatform.paths import prepare_deepspeed
            lock = {str(self.lock(tmp_path / "ops", 120))!r}
            print([str(path) for path in prepare_deepspeed()] == [lock], not os.path.exists(lock))
            prepare_deepspeed()  # twice changes nothing
            print(os.environ["PATH"] == os.path.dirname(sys.executable) + ":/usr/bin:/bin", shutil.which("ninja"))
            """
        )
        ninja = Path(sys.executable).with_name("ninja")
        assert result.stdout.split() == ["True", "True", "True", str(ninja)], result.stderr

    def test_operators_are_kept_apart_by_what_they_were_built_against(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib.metadata import version

        from rlplatform.paths import torch_extensions_dir

        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        assert f"torch{version('torch')}" in torch_extensions_dir().name
        assert f"deepspeed{version('deepspeed')}" in torch_extensions_dir().name
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
        assert torch_extensions_dir() == Path("/elsewhere")
