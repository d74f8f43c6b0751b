"""Where things lie: configs, caches, compiled operators. Standard library only; set-up and every process use it."""

from __future__ import annotations

import os
import platform
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def configs_dir() -> Path:
    """The shipped YAML: ``configs/`` of a checkout, ``rlplatform/_configs`` of an installed wheel."""
    for candidate in (_PACKAGE / "_configs", _PACKAGE.parent / "configs"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no configs at {_PACKAGE / '_configs'} (wheel) or {_PACKAGE.parent / 'configs'} (checkout): the installation "
        f"is incomplete; reinstall rlplatform"
    )


def checkout_dir() -> Path | None:
    """The repository this package is run from, or None for an installed wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "configs").is_dir() else None


def user_cache_dir() -> Path:
    """``$RLPLATFORM_CACHE``, else ``$XDG_CACHE_HOME/rlplatform``, else ``~/.cache/rlplatform``; not created here."""
    explicit = os.environ.get("RLPLATFORM_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlplatform"


# --- DeepSpeed's C++ operators ---------------------------------------------------------------------------------------


def torch_extensions_dir() -> Path:
    """Where DeepSpeed's operators are compiled to; every process that imports DeepSpeed sets it as
    ``TORCH_EXTENSIONS_DIR``.

    An explicit ``TORCH_EXTENSIONS_DIR`` wins. Otherwise the operators live in the Python environment whose torch they
    are linked against, so that any working directory (a Ray job's copy, too) finds them, and in the user's cache when
    the environment cannot be written. The last component names what a compiled operator depends on: interpreter,
    torch, DeepSpeed and the CPU's instruction set (they are built with ``-march=native``).
    """
    explicit = os.environ.get("TORCH_EXTENSIONS_DIR")
    if explicit:
        return Path(explicit)
    prefix = Path(sys.prefix)
    isolated = sys.prefix != sys.base_prefix and os.access(prefix, os.W_OK)
    base = prefix / "var" / "rlplatform" if isolated else user_cache_dir()
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    parts = (version, f"torch{_installed('torch')}", f"deepspeed{_installed('deepspeed')}", _cpu_tag())
    return base / "torch_extensions" / "-".join(parts)


def prepare_deepspeed() -> list[Path]:
    """Call before importing DeepSpeed: sets ``TORCH_EXTENSIONS_DIR`` and ``PATH`` of this process, so that it loads
    the operators that set-up compiled. Returns the stale build locks it removed, for the caller to report.

    ``PATH``: torch runs ``ninja`` before loading an operator, and a ninja of another version than the one that built
    it (a system package, where this environment's ``bin`` is not on ``PATH``) compiles everything again.
    """
    folder = torch_extensions_dir()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    tools = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != tools:
        os.environ["PATH"] = tools + os.pathsep + path
    return remove_stale_build_locks(folder)


def stale_build_locks(folder: Path, *, min_age_s: float = 60.0) -> list[Path]:
    """Build locks under ``folder`` that no running build holds.

    torch waits for ``<op>/lock`` to disappear, for ever and silently; a killed build leaves it behind. A lock is stale
    when it is older than ``min_age_s`` and no process of this machine works in the operator's folder (ninja and the
    compilers do). Where processes cannot be listed (no /proc), only locks older than half an hour count.
    """
    locks = [lock for lock in folder.glob("*/lock") if _age_s(lock) >= min_age_s]
    if not locks:
        return []
    busy = _working_directories()
    if busy is None:
        return [lock for lock in locks if _age_s(lock) > 1800.0]
    return [lock for lock in locks if lock.parent.resolve() not in busy]


def remove_stale_build_locks(folder: Path, *, min_age_s: float = 60.0) -> list[Path]:
    """Delete what ``stale_build_locks`` finds and return it, for the caller to report."""
    removed = []
    for lock in stale_build_locks(folder, min_age_s=min_age_s):
        lock.unlink(missing_ok=True)
        removed.append(lock)
    return removed


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # released between listing and looking
        return 0.0


def _working_directories() -> set[Path] | None:
    proc = Path("/proc")
    if not (proc / "self" / "cwd").exists():
        return None
    found = set()
    for link in proc.glob("[0-9]*/cwd"):
        try:
            found.add(Path(os.readlink(link)))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "-none"


def _cpu_tag() -> str:
    """Machine type and a checksum of the instruction set, e.g. ``x86_64-1f2e3d4c``."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
