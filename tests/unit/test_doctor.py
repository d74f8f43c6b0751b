"""The doctor: a broken component is a failed line with a remedy, never a crash, never a hang."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from rlplatform import doctor
from rlplatform.doctor import GIB, Check

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a module with the given source before the installed one, for child processes only."""

    def put(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    return put


def test_an_import_error_is_a_failed_line_with_its_last_words(broken) -> None:
    broken("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    check = doctor.check_torch(30)
    assert not check.ok
    assert check.detail == "ImportError: libcudart.so.13: cannot open shared object file"
    assert check.remedy


def test_a_crash_in_native_code_is_a_failed_line(broken) -> None:
    broken("vllm", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    check = doctor.check_vllm(30)
    assert not check.ok
    assert "killed by signal 11" in check.detail


def test_a_hang_ends_at_the_deadline_with_everything_it_started(broken, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    broken(
        "ray",
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n",
    )
    check = doctor.check_ray(3)
    assert not check.ok
    assert check.detail == "no answer within 3 s"
    grandchild = int(pid_file.read_text())
    for _ in range(100):  # killed, then reaped by whoever inherits it
        status = Path(f"/proc/{grandchild}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the hung child's own child is still running")


def test_a_vllm_for_another_device_than_torch_fails(broken, tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("__version__ = '0.0'")
    (tmp_path / "vllm" / "platforms.py").write_text("class current_platform:\n    device_type = 'cpu'\n")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    broken("unused", "")
    check = doctor.check_vllm(30)
    assert not check.ok
    assert "EXTRA=gpu" in check.remedy


def test_the_lock_of_a_killed_build_fails_and_says_how_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    check = doctor.check_deepspeed(30)
    assert not check.ok
    assert str(lock) in check.detail
    assert check.remedy == f"rm {lock}"


def test_operators_that_were_not_built_fail_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    broken("deepspeed", "__version__ = '0.19.8'")
    check = doctor.check_deepspeed(60)
    assert not check.ok
    assert "not built" in check.detail
    assert "cpu_adam" in check.detail
    assert "make setup" in check.remedy


def test_versions_are_held_against_the_stated_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["ray<3,>=2.50", "torch>=2.8", "transformers<6,>=5.0", "wandb>=0.19; extra == 'wandb'"]
    installed = {"ray": "2.49.0", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name not in installed:
            raise doctor.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: stated)
    monkeypatch.setattr(doctor.metadata, "version", version)
    check = doctor.check_packages()
    assert not check.ok
    assert "ray 2.49.0 is outside" in check.detail
    assert "transformers is missing" in check.detail
    assert "torch" not in check.detail  # a local version is inside its range
    assert "wandb" not in check.detail  # of an extra nobody asked for


def test_docker_default_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(GIB // 16, 0, GIB // 16))
    check = doctor.check_shared_memory()
    assert not check.ok
    assert "--shm-size" in check.remedy


def test_a_disk_nearly_full_fails_where_ray_would_refuse_to_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1000 * GIB, 960 * GIB, 40 * GIB))
    check = doctor.check_disk()
    assert not check.ok
    assert "95 %" in check.remedy
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1000 * GIB, 940 * GIB, 60 * GIB))
    assert doctor.check_disk().ok


def test_a_check_that_raises_is_a_failed_line_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_torch", "check_vllm", "check_deepspeed", "check_ray"):

        def fine(timeout_s: float, name: str = name) -> Check:
            return Check(name.removeprefix("check_"), True, "stand-in")

        monkeypatch.setattr(doctor, name, fine)

    def check_disk() -> Check:
        raise PermissionError("no")

    monkeypatch.setattr(doctor, "check_disk", check_disk)
    checks = doctor.run_checks()
    names = [check.name for check in checks]
    assert names == [
        "python",
        "packages",
        "torch",
        "vllm",
        "deepspeed",
        "ray",
        "sandbox",
        "shared memory",
        "memory",
        "disk",
    ]
    assert checks[-1].detail == "the check raised PermissionError: no"
    assert not checks[-1].ok


def test_the_report_shows_every_line_and_the_remedy_of_each_failure() -> None:
    output = io.StringIO()
    checks = [Check("python", True, sys.executable), Check("ray", False, "no [answer]", "look [here]")]
    doctor.render(checks, Console(file=output, width=200))
    text = output.getvalue()
    assert "pass" in text
    assert "FAIL" in text
    assert "no [answer]" in text  # brackets are text, not markup
    assert "ray: look [here]" in text
    assert "1 of 2 checks failed" in text
