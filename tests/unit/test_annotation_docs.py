"""docs/annotation.md: its blocks run, its configs load, its table is the schema's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from pretrain.data.annotate import Annotator
from pretrain.data.document import document
from pretrain.data.label_schema import schema_table
from pretrain.data.labels import LABELLERS, bind, identified
from rewards.base import load_function
from rlplatform.config import AnnotateConfig, RecipeConfig, TrainLabellerConfig
from rlplatform.configfile import load, load_values, stages
from rlplatform.paths import configs_dir

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "annotation.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """(file name or "", content) of the page's blocks of a language."""
    found = re.findall(rf"^```{language}(?: file=(\S+))?\n(.*?)^```$", PAGE, re.M | re.S)
    assert found
    return found


def test_python_blocks_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in blocks("python"):
        if name:
            Path(name).write_text(content)
        else:
            exec(content, {})
    assert capsys.readouterr().out.splitlines() == ["deu_Latn language True", "4"]
    assert "prints `deu_Latn language True`" in PAGE
    assert "prints `4`" in PAGE


def test_yaml_blocks_are_configs() -> None:
    kinds = [type(load_values(yaml.safe_load(content))) for _, content in blocks("yaml")]
    assert kinds == [AnnotateConfig, TrainLabellerConfig]


def test_the_recipe_of_the_language_classifier_loads() -> None:
    recipe = load(configs_dir() / "recipe" / "language_labeller.yaml")
    assert isinstance(recipe, RecipeConfig)
    built = stages(recipe)
    assert list(built) == ["udhr", "documents", "classifier"]
    assert inspect.signature(load_function(built["udhr"].function, "udhr")).parameters.keys() >= {
        "seed",
        *built["udhr"].args,
    }


def test_the_table_is_the_schemas_and_every_labeller_and_setting_is_there() -> None:
    assert "\n".join(schema_table()) in PAGE
    for name, target in LABELLERS.items():
        row = re.search(rf"^\| `{name}` \|(.*)$", PAGE.partition("## Labellers")[2], re.M)
        assert row, name
        parameters = inspect.signature(load_function(target, name)).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"`{parameter.name}`" in row[1], (name, parameter.name)


def test_the_example_labels() -> None:
    mine = identified(bind(f"{ROOT}/examples/label_questions.py:questions", {}))
    [row] = Annotator([mine])([document("s", "1", "s:1", "Why?\nBecause. Really?")])
    assert {entry["name"]: entry["value"] for entry in row["labels"]} == {"questions": "2", "asks": "yes"}


def test_the_page_of_languages_lists_all_119_and_who_can_tell_each() -> None:
    from benchmarks.languages import told_by
    from pretrain.data.languages import LANGUAGES

    page = (ROOT / "docs" / "languages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \|", page.partition("## Every language")[2], re.M)
    assert rows == [(one.name, one.code, told_by(one)) for one in sorted(LANGUAGES, key=lambda one: one.name)]
    nobody = [one for one in LANGUAGES if not one.udhr and not one.py3langid]
    assert len(nobody) == 13
    assert all(f"{one.name} (`{one.code}`)" in page for one in nobody)
