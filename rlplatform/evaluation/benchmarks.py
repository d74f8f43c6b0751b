"""THE table of benchmarks: where the rows come from, what is asked, how it is graded and sampled, what is published.

A benchmark becomes a JSONL file of prepared rows, and that is measured by the one runner: whatever a prompt or a
filter does can be read in the file, and its hash is the data hash of the result. Protocols are those of the Qwen3
report (arXiv 2505.09388, sections 3.3 and 4.6) where it gives one; ``notes`` say where it does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlplatform.config import ConfigError
from rlplatform.evaluation import figures, prompts
from rlplatform.evaluation.prompts import Prepare, Row
from rlplatform.tasks.general.inhouse import counterfactqa, lengthctrl, thinkfollow, tooluse
from rlplatform.tasks.general.words import split

THINKING, NON_THINKING = "thinking", "non_thinking"
MODES = (THINKING, NON_THINKING)
# The report's, section 4.6. Presence penalty in thinking mode is 0 but for sets that are not here.
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    THINKING: {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "presence_penalty": 0.0},
    NON_THINKING: {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
}
_CHOICE = {"choice": {"function": "rlplatform.evaluation.extraction:choice_field_reward", "weight": 1.0}}
_STATED = {"stated": {"function": "rlplatform.evaluation.extraction:stated_answer_reward", "weight": 1.0}}
_CODE = {"code": {"weight": 1.0, "timeout_s": 30.0, "args": {"scoring": "all"}}}
_STRICT = {"instruction": {"weight": 1.0, "args": {"scoring": "all", "strictness": "strict"}}}


@dataclass(frozen=True)
class Source:
    """Rows of a set: a hub id or a file. ``local`` lies in ``data_dir``."""

    hub: str  # e.g. openai/gsm8k:main; {} stands for each of ``subsets``
    split: str
    local: str
    subsets: tuple[str, ...] = ()
    subset_column: str = ""  # where the rows lack the name of their subset, it is put here


@dataclass(frozen=True)
class Benchmark:
    """One row of the table."""

    name: str
    about: str
    functions: Mapping[str, Any]  # of a config's reward.functions; the first is the metric
    prepare: Prepare
    source: Source | None = None  # None: a generator makes the rows
    generator: Callable[..., dict[str, list[Row]]] | None = None
    exemplars: Source | None = None
    few_shot: int = 0
    num_samples: int = 1
    max_new_tokens: int = 32768
    category: str = ""  # what the breakdown is by; "" = there is none
    not_counted: str = ""  # a category that stands in the breakdown alone, not in the score
    by_name_only: bool = False  # not one of "all of them"
    multi_turn: bool = False  # a dialogue, driven by think_follow.py; enable_thinking is not used
    figures: figures.Figures = field(default_factory=dict)
    notes: str = ""

    @property
    def metric(self) -> str:
        return next(iter(self.functions))


_BBH_TASKS = tuple(
    split(
        "boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies "
        "geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects "
        "logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting "
        "penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks "
        "sports_understanding temporal_sequences tracking_shuffled_objects_five_objects "
        "tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies word_sorting"
    )
)
_MGSM = tuple(split("bn de en es fr ja ru sw te th zh"))
_SUBJECTS = tuple(
    split(
        "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry "
        "college_computer_science college_mathematics college_medicine college_physics computer_security "
        "conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts "
        "high_school_biology high_school_chemistry high_school_computer_science high_school_european_history "
        "high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_mathematics high_school_microeconomics high_school_physics high_school_psychology "
        "high_school_statistics high_school_us_history high_school_world_history human_aging human_sexuality "
        "international_law jurisprudence logical_fallacies machine_learning management marketing medical_genetics "
        "miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting "
        "professional_law professional_medicine professional_psychology public_relations security_studies "
        "sociology us_foreign_policy virology world_religions"
    )
)

_TABLE = (
    Benchmark(
        "gsm8k",
        "grade-school mathematics",
        {"math": 1.0},
        prompts.gsm8k,
        Source("openai/gsm8k:main", "test", "gsm8k/test.jsonl.gz"),
        figures=figures.GSM8K,
        notes="zero-shot; the report's figures are of base models, 4-shot",
    ),
    Benchmark(
        "math500",
        "competition mathematics",
        {"math": 1.0},
        prompts.math500,
        Source("HuggingFaceH4/MATH-500", "test", "math500/test.jsonl.gz"),
        category="subject",
        figures=figures.MATH500,
    ),
    Benchmark(
        "aime24",
        "AIME 2024, parts I and II",
        {"math": 1.0},
        prompts.aime,
        Source("HuggingFaceH4/aime_2024", "train", "aime24/test.jsonl"),
        num_samples=64,
        max_new_tokens=38912,
        figures=figures.AIME24,
    ),
    Benchmark(
        "aime25",
        "AIME 2025, parts I and II",
        {"math": 1.0},
        prompts.aime,
        Source("math-ai/aime25", "test", "aime25/test.jsonl"),
        num_samples=64,
        max_new_tokens=38912,
        figures=figures.AIME25,
    ),
    Benchmark(
        "humaneval",
        "Python functions from their docstrings",
        _CODE,
        prompts.humaneval,
        Source("openai/openai_humaneval", "test", "humaneval/HumanEval.jsonl"),
        notes="the report has EvalPlus, a mean over four sets, of base models alone",
    ),
    Benchmark(
        "mbpp",
        "Python programs from a sentence",
        _CODE,
        prompts.mbpp,
        Source("google-research-datasets/mbpp:full", "test", "mbpp/mbpp.jsonl.gz"),
        exemplars=Source("google-research-datasets/mbpp:full", "prompt", "mbpp/mbpp.jsonl.gz"),
        few_shot=3,
    ),
    Benchmark(
        "ifeval",
        "instructions that a program checks; strict, whole prompts",
        _STRICT,
        prompts.ifeval,
        Source("google/IFEval", "train", "ifeval/input_data.jsonl"),
        figures=figures.IFEVAL,
    ),
    Benchmark(
        "mmlu",
        "knowledge of 57 subjects",
        _CHOICE,
        prompts.mmlu,
        Source("cais/mmlu:all", "test", "mmlu/test.jsonl.gz"),
        exemplars=Source("cais/mmlu:all", "dev", "mmlu/dev.jsonl"),
        few_shot=5,
        category="subject",
        figures=figures.MMLU,
        notes="the report's figures are of base models",
    ),
    Benchmark(
        "mmlu_redux",
        "MMLU without its broken questions",
        _CHOICE,
        prompts.mmlu_redux,
        Source("edinburgh-dawg/mmlu-redux-2.0:{}", "test", "mmlu_redux/mmlu_redux.jsonl.gz", _SUBJECTS, "subject"),
        category="subject",
        figures=figures.MMLU_REDUX,
    ),
    Benchmark(
        "bbh",
        "27 tasks that were hard for models",
        _STATED,
        prompts.bbh,
        Source("lukaemon/bbh:{}", "test", "bbh/bbh.jsonl.gz", _BBH_TASKS, "task"),
        exemplars=Source("", "", "bbh/cot_prompts.jsonl"),
        few_shot=3,
        category="task",
        figures=figures.BBH,
        notes="the exemplars are the authors' prompt files, which no hub copy has; the figures are of base models",
    ),
    Benchmark(
        "mgsm",
        "GSM8K in eleven languages",
        {"math": 1.0},
        prompts.mgsm,
        Source("juletxara/mgsm@refs/convert/parquet:{}", "test", "mgsm/mgsm.jsonl.gz", _MGSM, "lang"),
        category="language",
        figures=figures.MGSM,
        notes="zero-shot, asked in English to box; the report's figures are of base models, 8-shot",
    ),
    Benchmark(
        "thinkfollow",
        "does the mode follow the flags of a dialogue?",
        {"followed": 1.0},
        prompts.as_made,
        generator=thinkfollow.dialogues,
        category="sort",
        multi_turn=True,
        figures=figures.THINKFOLLOW,
        notes="rebuilt: the report's own set is not published",
    ),
    Benchmark(
        "lengthctrl",
        "writing with a demand on the length",
        lengthctrl.FUNCTIONS,
        prompts.as_made,
        generator=lengthctrl.prompts,
        category="demand",
        figures=figures.LENGTHCTRL,
        notes="rebuilt; the formula is this project's own",
    ),
    Benchmark(
        "tooluse",
        "single-turn, multi-turn and multi-step calls",
        tooluse.FUNCTIONS,
        prompts.as_made,
        generator=tooluse.requests,
        category="sort",
        figures=figures.TOOLUSE,
        notes="rebuilt; mean of intent, format and parameters",
    ),
    Benchmark(
        "counterfactqa",
        "questions whose premise is false",
        counterfactqa.FUNCTIONS,
        prompts.as_made,
        generator=counterfactqa.questions,
        category="sort",
        not_counted=counterfactqa.CONTROL,
        figures=figures.COUNTERFACTQA,
        notes="rebuilt; questions with a true premise stand in the breakdown as `control`",
    ),
    Benchmark(
        "own",
        "problems of your own, with short answers",
        {"math": 1.0},
        prompts.own,
        Source("", "test", "own/test.jsonl"),
        max_new_tokens=4096,
        category="domain",
        by_name_only=True,
        notes="`paths.own`: rows with `prompt` (text or messages), `answer` and perhaps `domain`; asked as they stand",
    ),
)
BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _TABLE}


def select(names: Sequence[str]) -> list[Benchmark]:
    """Those of these names; for none, all that need no rows of the user's own.

    Raises:
        ConfigError: an unknown name; the nearest is named.
    """
    for name in names:
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"benchmark: expected some of {', '.join(BENCHMARKS)}; got {name!r}{hint}")
    return (
        [BENCHMARKS[name] for name in dict.fromkeys(names)]
        if names
        else [one for one in _TABLE if not one.by_name_only]
    )
