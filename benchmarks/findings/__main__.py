"""Run studies, collect their numbers into docs/findings/STUDY.json, and make docs/findings.md of them.

    .venv/bin/python -m benchmarks.findings                      # everything; finished runs are not repeated
    .venv/bin/python -m benchmarks.findings --only stages budget
    .venv/bin/python -m benchmarks.findings --list
    .venv/bin/python -m benchmarks.findings --page               # the page alone, of the numbers that are there

--smoke runs the same path in miniature, in folders of its own, and writes its numbers and page there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.findings import ablations, after_stages, distillation, flags_and_budget, real_model, single
from benchmarks.findings.page import DOCS, read_json, write_json, write_page
from benchmarks.findings.study import Settings, Study, Unfinished, provenance, run_study, shown, without_places

STUDIES: tuple[Study, ...] = (
    *after_stages.STUDIES,
    *flags_and_budget.STUDIES,
    *distillation.STUDIES,
    *ablations.STUDIES,
    *single.STUDIES,
    *real_model.STUDIES,
)


def chosen(names: Sequence[str]) -> list[Study]:
    known = {study.name: study for study in STUDIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--only {' '.join(unknown)}: expected some of {', '.join(known)}")
    return [known[name] for name in known if not names or name in names]


def sizes(texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise SystemExit(f"--size {text}: expected KEY=NUMBER, e.g. num_test=100")
        found[name] = int(number)
    return found


def arguments() -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the studies, and which have numbers")
    parser.add_argument("--only", nargs="+", default=[], metavar="STUDY")
    parser.add_argument("--page", action="store_true", help="make docs/findings.md; run nothing")
    parser.add_argument("--collect", action="store_true", help="numbers and page of finished runs; run nothing")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(default.seeds), help="of the studies over seeds")
    parser.add_argument("--root", type=Path, default=default.root, help="where the runs lie")
    parser.add_argument("--gsm8k", default=default.gsm8k, help="hub id or folder, for smollm2")
    parser.add_argument("--smollm2", default=default.smollm2, help="the model's folder, see `make smollm2`")
    parser.add_argument("--size", nargs="+", default=[], metavar="KEY=NUMBER", help="sizes of smollm2, see its config")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    settings = Settings(args.root, tuple(args.seeds), args.smoke, args.gsm8k, args.smollm2, sizes(args.size))
    docs = args.root / "smoke" if args.smoke else DOCS
    studies = chosen(args.only)
    if args.list:
        for study in studies:
            state = "finished" if read_json(study, docs) else "not run yet"
            print(f"{study.name:14} {state:12} {study.title}")
        return 0
    problems = [] if args.page else work(studies, settings, docs, collect_only=args.collect)
    print(f"page: {shown(write_page(STUDIES, docs))}")
    for problem in problems:
        print(f"unfinished: {problem}", file=sys.stderr)
    return 1 if problems else 0


def work(studies: Sequence[Study], settings: Settings, docs: Path, *, collect_only: bool) -> list[str]:
    """Run and collect each study; one that stops does not keep the others, what stopped them is returned."""
    problems: list[str] = []
    been: set[str] = set()
    for study in studies:
        try:
            if not collect_only:
                run_study(study, settings, been=been)
            found = {**provenance(study, settings), **study.collect(settings)}
        except Unfinished as problem:
            problems.append(str(problem))
            continue
        print(f"{study.name}: {shown(write_json(study, without_places(found, settings), docs))}")
    return problems


if __name__ == "__main__":
    raise SystemExit(main())
