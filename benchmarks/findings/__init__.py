"""Findings: runs over seeds, ablations and a real model, each repeated with one command; the page is docs/findings.md.

    .venv/bin/python -m benchmarks.findings --list
    .venv/bin/python -m benchmarks.findings --only stages budget

    study.py      what a study is, its runs as processes, what "finished" means
    measures.py   reading run folders; means, differences by problem, intervals
    after_stages.py  flags_and_budget.py  ablations.py  distillation.py  single.py
    real_model.py                    the studies
    data.py  drawing.py              their own datasets; pictures
    page.py       docs/findings.md and its pictures, from docs/findings/STUDY.json alone

Runs lie in runs/findings/; a run that is finished is not repeated, one that was killed goes on.
"""
