"""The page of the clean stage: its Python runs, its numbers hold, its steps, settings and reasons are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pretrain.data.clean_steps import STEPS, _parameters, steps_of
from pretrain.data.duplicates import Near
from pretrain.data.privacy import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cleaning.md").read_text(encoding="utf-8")


def test_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S):
        exec(block, {})
    shown = capsys.readouterr().out
    assert "[0.27, 0.918, 0.998]" in shown
    assert "0.6\n" in shown  # 8 bigrams each, 6 shared
    assert "[('email', 'a@b.org'), ('phone', '+49 30 901820'), ('card', '4111 1111 1111 1111')]" in shown
    assert "Edited(edits=(Edit(start=1, end=2" in shown


def test_the_recall_table_is_the_curve() -> None:
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE[PAGE.index("| similarity |") :].split("\n\n")[0].split("\n")
    ]
    for row in rows:
        bands, rows_ = map(int, re.findall(r"\d+", row[0])[:2])
        for similarity, cell in zip(header[1:], row[1:], strict=True):
            digits = len(cell.partition(".")[2].split()[0]) if "." in cell else 0
            recall = 100 * Near(bands=bands, rows=rows_).recall(float(similarity))
            assert float(cell.removesuffix(" %")) == pytest.approx(recall, abs=0.51 * 10**-digits), (row[0], similarity)


def test_every_step_setting_and_kind_stands_on_the_page() -> None:
    table = {line.split("|")[1].strip(" `"): line for line in PAGE.split("\n") if line.startswith("| `")}
    for name in STEPS:
        assert name in table
        settings = set(_parameters(name, name))
        if name in ("safety", "repeated_paragraphs"):  # said by reference to another line
            settings -= {"keep", "name", "drop", "min_score", "labeller", "missing", "ngram", "bands", "rows", "seed"}
            settings -= {"max_compare"}
        assert [one for one in settings if f"`{one}`" not in table[name]] == []
    assert [kind for kind in KINDS if f"`{kind}`" not in PAGE] == []


def test_every_reason_stands_on_the_page() -> None:
    for name in ("filters", "contamination", "corpus_steps", "fates"):
        source = (ROOT / "pretrain" / "data" / f"{name}.py").read_text(encoding="utf-8")
        reasons = re.findall(
            r'Decision\(\s*"([a-z_]+)"|Edit\([^"]*?"",\s*"([a-z_]+)"|NOTHING_LEFT = "([a-z_]+)"', source
        )
        assert reasons
        assert [one for found in reasons for one in found if one and f"`{one}`" not in PAGE] == []


def test_the_steps_of_page_and_example_are_understood() -> None:
    shown = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)[1])["clean"]["steps"]  # type: ignore[index]
    del shown["mine"]  # a package that is not there
    assert len(steps_of(shown)) == 9
    example = yaml.safe_load((ROOT / "examples" / "corpus" / "clean.yaml").read_text(encoding="utf-8"))
    assert len(example["stages"]["clean"]["steps"]) == 7
