"""Every command in the documentation is run, or is named here with the test that runs it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT, Finished, rlplatform

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that another test runs, or that are this very suite.
ELSEWHERE = {
    "make demo": "tests/e2e/test_demo.py runs the recipe with --smoke; .ci/run runs make",
    "make test": "this suite",
    "make setup": "tests/unit/test_packaging.py",
    "rlplatform doctor": "tests/unit/test_doctor.py",
    "rlplatform reward serve math format --port 8000 --token-file token.txt": (
        "tests/integration/test_reward_serving.py"
    ),
    "rlplatform run configs/recipe/demo.yaml --smoke": "tests/e2e/test_demo.py",
    "rlplatform run configs/preference/synthetic.yaml --smoke": "tests/integration/test_preference.py",
    ".venv/bin/python -m benchmarks.demo_seeds": "tests/e2e/test_demo.py, test_rl_runs.py: the recipe; a control",
    "rlplatform run configs/recipe/preference.yaml --smoke": (
        "tests/integration/test_preference.py trains reward models and has a reward service start one"
    ),
    "rlplatform run configs/recipe/language_labeller.yaml stages.udhr.args.path=PATH/udhr.jsonl.gz": (
        "tests/integration/test_annotate.py runs its stages on a small collection"
    ),
    "rlplatform run configs/recipe/pretrain_mini.yaml": "tests/e2e/test_pretrain_mini.py: with --smoke, less of it",
    "rlplatform run configs/recipe/qwen3_mini.yaml --smoke": (
        "tests/integration/test_recipe_stages.py runs stages of each kind on engines; these 34 take too long here"
    ),
    "rlplatform run configs/recipe/qwen3_mini.yaml --from cold": "tests/unit/test_plan.py",
    "rlplatform run configs/recipe/qwen3_mini.yaml --only fusion": "tests/unit/test_plan.py",
    "rlplatform eval runs/demo/rl/model --data runs/demo/data/test.jsonl --reward math -n 4": "tests/e2e/test_demo.py",
    "rlplatform chat runs/demo/rl/model --budget 64": "tests/integration/test_serve.py",
    "rlplatform serve runs/demo/rl/model --port 8000 --name demo": "tests/integration/test_serve.py",
    "rlplatform submit configs/recipe/demo.yaml --address http://127.0.0.1:8265 --smoke": (
        "tests/integration/test_submit.py"
    ),
}


def commands() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0].strip()
                if line and not line.startswith("#") and line not in found:
                    found.append(line)
    return found


RUN_HERE = [command for command in commands() if command not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_HERE)
def test_documented_command(command: str, smoke_demo: Finished, tmp_path: Path) -> None:
    command = command.replace("runs/demo/", f"{smoke_demo.folder}/").replace(
        "verdicts.jsonl", f"{tmp_path}/verdicts.jsonl"
    )
    words = shlex.split(command)
    if words[0] == "rlplatform":
        done = rlplatform(*words[1:])
    elif words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    else:
        words[0] = words[0].replace(".venv/bin/python", str(ROOT / ".venv/bin/python"))
        smoke = ["--smoke"] if "benchmarks." in command else []
        done = subprocess.run([*words, *smoke], cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_table_of_commands_holds_nothing_that_is_not_documented() -> None:
    assert set(ELSEWHERE) <= set(commands())


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
