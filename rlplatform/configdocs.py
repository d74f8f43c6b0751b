"""docs/configuration.md, made from the dataclasses of ``rlplatform.config``: `python -m rlplatform.configdocs`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields, is_dataclass

from rlplatform import config
from rlplatform.config import KINDS

HEAD = """# Configuration

Made from `rlplatform/config/` by `python -m rlplatform.configdocs`; a test compares the two.

One YAML file is one run; its `kind` says which of the tables below reads it. Every key has a default, an unknown key is
an error that names the nearest valid one, and `key=value` on the command line overrides the file:

```bash
rlplatform run configs/recipe/demo.yaml stages.rl.optimizer.lr=5e-5 --dry-run
```

`--dry-run` prints the resolved config, the keys that differ from the defaults, the batch arithmetic and the placement.
A run saves the first two as `config.yaml` and `config_diff.yaml`.

Batch size is three numbers, all else follows: `prompts_per_step` questions are asked, `group_size` completions are
sampled for each, and the update takes `updates_per_step` optimiser steps over those rows. A recipe's stages are named;
a stage takes what an earlier one left with `stage:NAME` (`stage:NAME/part` for a file in its folder).

OmegaConf interpolation works: `run_dir: runs/${name}`.
"""

SECTIONS = (
    config.ModelConfig,
    config.DataConfig,
    config.SamplingConfig,
    config.RolloutConfig,
    config.EnvironmentConfig,
    config.RewardConfig,
    config.AlgorithmConfig,
    config.OptimizerConfig,
    config.LearnerConfig,
    config.LoraConfig,
    config.PublishConfig,
    config.EvaluationConfig,
    config.CheckpointConfig,
    config.TrackerConfig,
    config.SourceConfig,
    config.PdfConfig,
    config.EndpointConfig,
    config.ResponsesConfig,
    config.WorkersConfig,
    config.PartConfig,
    config.PackedDataConfig,
    config.CompletionsConfig,
    config.GoldConfig,
    config.FeaturesConfig,
)


def _comments(cls: type) -> dict[str, str]:
    """Field name -> the comment beside it."""
    pattern = r"^    (\w+): (?:.*\(\n.*?|[^\n]*?)  # (.+)$"  # the value may stand on a line of its own
    return dict(re.findall(pattern, inspect.getsource(cls), re.MULTILINE))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(cls: type) -> list[str]:
    """A section: docstring, then key, type, default, meaning."""
    comments = _comments(cls)
    lines = [inspect.getdoc(cls) or "", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for entry in fields(cls):
        value = entry.default if entry.default is not MISSING else entry.default_factory()  # type: ignore[operator, misc]
        shown = "its section" if is_dataclass(value) else f"`{value!r}`"
        cells = (f"`{entry.name}`", f"`{entry.type}`", shown, comments.get(entry.name, ""))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, ""]


def markdown() -> str:
    lines = [HEAD]
    for kind, cls in KINDS.items():
        lines += [f"## kind: {kind}", "", *table(cls)]
    for cls in SECTIONS:
        lines += [f"## {cls.__name__.removesuffix('Config').lower()} ({cls.__name__})", "", *table(cls)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
