"""What docs/evaluation.md holds of the table of benchmarks: `python -m rlplatform.evaluation.page`."""

from __future__ import annotations

from rlplatform.evaluation.benchmarks import BENCHMARKS, Benchmark, Source

_HEADER = (
    "| benchmark | rows from | file in `data_dir` | asked | graded by | n | max tokens | breakdown | "
    "the report: thinking / non-thinking |"
)
_MODELS = ("Qwen3-32B", "Qwen3-0.6B", "Qwen3-8B-Base")  # whose figures stand in the page


def table() -> str:
    """One line a benchmark."""
    return "\n".join([_HEADER, f"|{'---|' * (_HEADER.count('|') - 1)}", *map(_line, BENCHMARKS.values())])


def _line(one: Benchmark) -> str:
    source, file = _source(one.source) if one.source else (f"`{_module(one)}`", "-")
    shots = f"{one.few_shot} exemplars" if one.few_shot else "zero-shot"
    cells = (
        f"`{one.name}`: {one.about}",
        source,
        file,
        "turn by turn" if one.multi_turn else shots,
        _graded_by(one),
        str(one.num_samples),
        f"{one.max_new_tokens:,}",
        one.category or "-",
        "; ".join(filter(None, [_figures(one), one.notes])) or "-",
    )
    return f"| {' | '.join(cells)} |"


def _source(source: Source) -> tuple[str, str]:
    hub = f"`{source.hub.replace('{}', '*')}`, {source.split}" if source.hub else "a file of yours"
    return hub, f"`{source.local}`"


def _module(one: Benchmark) -> str:
    return "" if one.generator is None else f"{one.generator.__module__.rpartition('.')[2]}.{one.generator.__name__}"


def _graded_by(one: Benchmark) -> str:
    if one.multi_turn:
        return "`thinkfollow.followed`"
    name, value = next(iter(one.functions.items()))
    if not isinstance(value, dict):
        return f"`{name}`"
    settings = ", ".join(f"{key}={setting}" for key, setting in value.get("args", {}).items())
    return f"`{value.get('function', name).rpartition(':')[2]}`{f' ({settings})' if settings else ''}"


def _figures(one: Benchmark) -> str:
    shown = []
    for model in _MODELS:
        if figure := one.figures.get(model):
            both = f"{figure.thinking} / {figure.non_thinking}"
            shown.append(f"{model.removeprefix('Qwen3-')} {both if figure.single is None else figure.single}")
    return ", ".join(shown)


if __name__ == "__main__":
    print(table())
