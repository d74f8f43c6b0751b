"""Which files a source has, in an order that is always the same, and how they are divided into tasks."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.streams import plain_suffix
from rlplatform.config import ConfigError
from rlplatform.config.corpus_documents import DocumentsConfig, SourceConfig

FORMAT_OF = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
    ".arc": "warc",
    ".pdf": "pdf",
}  # of files with format auto, compressed or not


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or a hub dataset."""

    path: str
    place: str  # within its source, the same wherever the data lie: what ids follow from
    size: int = 0  # bytes
    changed_ns: int = 0
    beside: tuple[tuple[str, int, int], ...] = ()  # path, bytes, time of other files that its reader looks at


@dataclass(frozen=True)
class Task:
    """Files of one source and one format that are read together."""

    name: str  # of the source
    source: SourceConfig
    format: str
    files: tuple[SourceFile, ...]


def plan(config: DocumentsConfig) -> tuple[list[Task], dict[str, list[str]]]:
    """(tasks in order, source -> files in its folders that have an ending nobody reads).

    Raises:
        ConfigError: a source without files, a file whose format cannot be told, or two files at one place.
    """
    tasks: list[Task] = []
    ignored: dict[str, list[str]] = {}
    for name, source in config.sources.items():
        if source.format == "hub":
            sets = [SourceFile(path, path, beside=_beside(*Path(path).rglob("*"))) for path in source.path]
            tasks += [Task(name, source, "hub", (one,)) for one in sets]
            continue
        files, ignored[name] = files_of(name, source)
        tasks += _tasks(name, source, files, config.task_mib << 20)
    limited = [task.name for task in tasks if task.source.limit]
    doubled = next((name for name in limited if limited.count(name) > 1), None)
    if doubled is not None:
        raise ConfigError(
            f"sources.{doubled}.limit: expected files of one format, or one hub dataset; split the source"
        )
    return tasks, ignored


def _tasks(name: str, source: SourceConfig, files: list[tuple[SourceFile, str]], max_bytes: int) -> Iterator[Task]:
    """Neighbours of one format, up to ``max_bytes``; a limited source is read by one task."""
    group: list[SourceFile] = []
    of_group, size = "", 0
    for file, kind in files:
        full = size + file.size > max_bytes and not source.limit
        if group and (kind != of_group or full):
            yield Task(name, source, of_group, tuple(group))
            group, size = [], 0
        group.append(file)
        of_group, size = kind, size + file.size
    yield Task(name, source, of_group, tuple(group))


def files_of(name: str, source: SourceConfig) -> tuple[list[tuple[SourceFile, str]], list[str]]:
    """((file, format) in order, ignored files) of a source; errors as in ``plan``."""
    found: dict[str, tuple[SourceFile, str]] = {}
    ignored: list[str] = []
    beside = _beside(Path(source.responses.solutions)) if source.format == "responses" else ()
    for pattern in source.path:
        base, paths, named = _expand(name, pattern)
        known = {file.path for file, _ in found.values()}
        for path in paths:
            if str(path) in known:  # two patterns that share files: each is read once
                continue
            kind = source.format if source.format != "auto" else FORMAT_OF.get(plain_suffix(path), "")
            if not kind and named:
                endings = ", ".join(FORMAT_OF)
                raise ConfigError(f"sources.{name}: {path}: expected an ending of {endings}; or name its format")
            if not kind:
                ignored.append(str(path))
                continue
            stat = os.stat(path)
            place = path.relative_to(base).as_posix()
            if place in found and found[place][0].path != str(path):
                raise ConfigError(
                    f"sources.{name}: {found[place][0].path} and {path} would have the same ids; name a folder above "
                    "both, or make them two sources"
                )
            found[place] = (SourceFile(str(path), place, stat.st_size, stat.st_mtime_ns, beside), kind)
    if not found:
        raise ConfigError(f"sources.{name}.path: no file to read in {', '.join(source.path)} ({len(ignored)} ignored)")
    return list(found.values()), ignored


def _beside(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    """Those of them that are files: of a dataset in a folder all, of one on the hub none."""
    stats = [(str(path), os.stat(path)) for path in sorted(paths) if path.is_file()]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def _expand(name: str, pattern: str) -> tuple[Path, list[Path], bool]:
    """(folder that places are relative to, files in order, named by hand?) of a file, folder or glob."""
    path = Path(pattern)
    if path.is_file():
        return path.parent, [path], True
    if path.is_dir():
        return path, sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)), False
    if not glob.has_magic(pattern):
        raise ConfigError(f"sources.{name}.path: {pattern}: no such file or folder (format: hub for hub datasets)")
    parts = path.parts
    fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    found = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    return Path(*parts[:fixed]), [file for file in found if file.is_file()], True


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
