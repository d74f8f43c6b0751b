"""Which files a submitted job takes along: the user's folder without what is ignored, and this project's own code.

Ignored are version control, environments, caches and ``runs/`` (``DEFAULT_IGNORES``), then what ``.gitignore`` and
``.rlplatformignore`` of each folder say, then the patterns given by hand. All are .gitignore patterns and the last that
matches wins, so ``!runs/`` in ``.rlplatformignore`` ships what is left out by default.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from rlplatform.config import ConfigError
from rlplatform.paths import configs_dir

PACKAGES = ("rlplatform", "actors", "rewards", "model", "pretrain")
IGNORE_FILES = (".gitignore", ".rlplatformignore")
DEFAULT_IGNORES = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    ".venv-*/",
    "venv/",
    "node_modules/",
    "runs/",
    "wandb/",
    "build/",
    "dist/",
    "*.egg-info/",
    ".cache/",
    "__pycache__/",
    ".*_cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    "*.pyc",
    ".DS_Store",
)
MAX_FILES = 20_000  # more means that this is no project folder (a home directory, a data lake)
MIB = 1024**2

Files = dict[str, Path]  # path inside the job's working directory (POSIX) -> file on this machine


def select_files(folder: Path, excludes: Sequence[str] = ()) -> Files:
    """The files of ``folder`` that are not ignored; links are followed, each folder once.

    Raises:
        ConfigError: ``folder`` is none, or holds more than ``MAX_FILES`` files.
    """
    if not folder.is_dir():
        raise ConfigError(f"working directory {folder}: expected a folder")
    files: Files = {}
    last = [("", GitIgnoreSpec.from_lines(excludes))]
    for relative, path in _walk(folder, "", [("", GitIgnoreSpec.from_lines(DEFAULT_IGNORES))], last, set()):
        files[relative] = path
        if len(files) > MAX_FILES:
            raise ConfigError(
                f"working directory {folder}: more than {MAX_FILES} files are not ignored; name a smaller folder with "
                f"--working-dir, or list what to leave out in {folder / '.rlplatformignore'}"
            )
    return files


Specs = list[tuple[str, GitIgnoreSpec]]  # folder the patterns are relative to ("" or "a/b/") and the patterns


def _walk(folder: Path, prefix: str, specs: Specs, last: Specs, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    real = folder.resolve()
    if real in seen:  # a link back up, or to a folder already taken
        return
    seen.add(real)
    for name in IGNORE_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").splitlines()
            specs = [*specs, (prefix, GitIgnoreSpec.from_lines(lines))]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        relative = prefix + entry.name
        if entry.is_dir():
            if not _ignored(relative + "/", [*specs, *last]):
                yield from _walk(Path(entry.path), relative + "/", specs, last, seen)
        elif entry.is_file() and not _ignored(relative, [*specs, *last]):  # sockets and dangling links are neither
            yield relative, Path(entry.path)


def _ignored(relative: str, specs: Specs) -> bool:
    for prefix, spec in reversed(specs):
        verdict = spec.check_file(relative.removeprefix(prefix)).include
        if verdict is not None:
            return verdict
    return False


def check_size(files: Mapping[str, Path], max_mib: float) -> float:
    """Mebibytes of ``files``; more than ``max_mib`` is a ``ConfigError`` that names the largest."""
    sizes = {relative: path.stat().st_size for relative, path in files.items()}
    total = sum(sizes.values()) / MIB
    if total > max_mib:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:10]
        listed = "\n".join(f"  {size / MIB:9.1f} MiB  {relative}" for relative, size in largest)
        raise ConfigError(
            f"the working directory is {total:.1f} MiB in {len(files)} files, more than the {max_mib:g} MiB that are "
            f"shipped. The largest:\n{listed}\nList what the job does not need in .rlplatformignore (patterns as in "
            f".gitignore) or with --exclude, put data where the cluster can read it, or raise --max-mib."
        )
    return total


def package_files() -> Files:
    """This project's own code and configs, as they lie in an installed wheel."""
    home = Path(__file__).resolve().parents[1]
    files: Files = {}
    for name in PACKAGES:
        for path in sorted((home / name).rglob("*")):
            relative = path.relative_to(home)
            if path.is_file() and "__pycache__" not in relative.parts and "_configs" not in relative.parts:
                files[relative.as_posix()] = path
    for path in sorted(configs_dir().rglob("*.yaml")):
        files[f"rlplatform/_configs/{path.relative_to(configs_dir()).as_posix()}"] = path
    return files


def source_digest() -> str:
    """Identifies the project's code: equal digests run the same program, whatever the version says."""
    digest = hashlib.sha256()
    for relative, path in sorted(package_files().items()):
        digest.update(f"{relative}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def holds_packages(files: Mapping[str, Path], folder: Path) -> bool:
    """Whether the user's folder brings this project's packages itself (a checkout).

    Raises:
        ConfigError: it has something else under one of their names, which would be imported instead.
    """
    held = {name for name in PACKAGES if f"{name}/__init__.py" in files}
    if held == set(PACKAGES):
        return True
    taken = sorted(
        {part for part in (relative.split("/")[0] for relative in files) if part.removesuffix(".py") in PACKAGES}
    )
    if taken:
        raise ConfigError(
            f"{folder / taken[0]} would be imported on the cluster instead of rlplatform's own package "
            f"`{taken[0].removesuffix('.py')}`: rename it, or leave it out with --exclude '/{taken[0]}'"
        )
    return False


def stage(files: Mapping[str, Path], target: Path) -> None:
    """Copy ``files`` into ``target``, contents of links included. Ignore files stay behind: they have done their work,
    and Ray would apply them a second time, to this project's packages too."""
    for relative, path in files.items():
        if path.name in (*IGNORE_FILES, ".rayignore"):
            continue
        destination = target / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, destination)
