"""What a stage reads beside its model, and marks that change with it: content of files, lists of files of a corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rlplatform.config import BenchmarksConfig, CleanConfig, DocumentsConfig, DPOConfig, PreferenceConfig, RLConfig
from rlplatform.reads import reads_do_not_count

STARTED, DONE = "started.json", "done.json"
MARKS = ("config.yaml", STARTED, DONE)  # what a run itself writes into its folder


def data_hashes(resolved: Any) -> dict[str, str]:
    """Path -> SHA-256 of the content of the data files and folders a stage reads; of a corpus, of its list of files.

    A config of its own kind names them: ``files`` are read, of ``folders`` of shards names, sizes and times count.
    """
    with reads_do_not_count():
        paths = [getattr(getattr(resolved, "data", None), "path", ""), *getattr(resolved, "files", [])]
        if isinstance(resolved, RLConfig):
            paths.append(resolved.evaluation.data.path)
        if isinstance(resolved, PreferenceConfig | DPOConfig):
            paths.append(resolved.heldout.path)
        if isinstance(resolved, BenchmarksConfig):
            from rlplatform.evaluation.rows import files_of

            paths += files_of(resolved)
        if isinstance(resolved, CleanConfig):
            from rlplatform.evaluation.contents import item_files

            paths += [file for step in resolved.contamination().values() for file in item_files(step)]
        listed = _corpus(resolved) if isinstance(resolved, DocumentsConfig) else {}
        for folder in filter(None, getattr(resolved, "folders", [])):
            listed |= _shards(folder)
    return listed | {path: content_hash(Path(path)) for path in paths if path and Path(path).exists()}


def _corpus(config: DocumentsConfig) -> dict[str, str]:
    """Source -> SHA-256 of the names, sizes and times of its files: a corpus is too large to be read twice."""
    from pretrain.data.sources import plan

    tasks, _ = plan(config)
    names = dict.fromkeys(task.name for task in tasks)
    files = {name: [file for task in tasks if task.name == name for file in task.files] for name in names}
    return {name: hashlib.sha256(repr(found).encode()).hexdigest() for name, found in files.items()}


def _shards(folder: str) -> dict[str, str]:
    """Folder of documents -> SHA-256 of the names, sizes and times of its shards."""
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(Path(folder).glob("*.parquet"))
    ]
    return {folder: hashlib.sha256(repr(files).encode()).hexdigest()} if files else {}


def content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name not in MARKS:
            digest.update(file.name.encode())
            with open(file, "rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
