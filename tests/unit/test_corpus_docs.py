"""docs/pretraining_data.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pretrain.data.document import COLUMNS, document
from pretrain.data.sources import FORMAT_OF
from pretrain.data.streams import SUFFIXES
from rlplatform.config import DocumentsConfig
from rlplatform.config.corpus_documents import FORMATS
from rlplatform.configfile import build, load, stages
from rlplatform.paths import configs_dir

PAGE = (Path(__file__).parents[2] / "docs" / "pretraining_data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_format_and_ending_is_in_the_table() -> None:
    table = PAGE.partition("| format | files")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE))
    assert [name for name in FORMATS if name != "auto"] == list(rows)
    for ending, name in FORMAT_OF.items():
        assert f"`{ending}`" in rows[name]
    assert " ".join(SUFFIXES) in PAGE


def test_columns_are_those_of_a_document() -> None:
    assert re.findall(r"^\| `(\w+)` \| (?:string|list)", PAGE, re.MULTILINE) == list(COLUMNS)


def test_the_configuration_loads() -> None:
    [text] = blocks("yaml")
    config = build(yaml.safe_load(text), where="docs")
    assert isinstance(config, DocumentsConfig)
    assert config.sources["papers"].pdf.vision.endpoint().model == "qwen-vl"


def test_the_function_of_the_example_labels_rows() -> None:
    [text] = blocks("python")
    scope: dict[str, Any] = {}
    exec(text.partition("counts = ")[0], scope)
    [row] = scope["lengths"]([document("s", "p", "w", "four")])
    assert row["labels"] == [{"name": "characters", "value": "", "score": 4.0, "labeller": "length"}]


def test_the_stages_of_the_synthetic_recipe_are_in_the_table() -> None:
    recipe: Any = load(configs_dir() / "recipe" / "synthetic.yaml")
    found = dict(re.findall(r"^\| `(\w+)` \| `(dataset|sample|documents)` \|", PAGE, re.MULTILINE))
    assert found == {name: config.kind for name, config in stages(recipe).items()}
