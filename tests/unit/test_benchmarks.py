"""The table of benchmarks: rows of each set's schema become prompts and columns, and golden answers score 1."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rewards.base import resolve
from rewards.composition import read_parts
from rlplatform.config import ConfigError, DataConfig
from rlplatform.datafiles import DataError, read_rows
from rlplatform.evaluation import prompts
from rlplatform.evaluation.benchmarks import BENCHMARKS, MODES, SAMPLING, select
from rlplatform.evaluation.extraction import field_letter, stated
from rlplatform.evaluation.figures import Figure
from rlplatform.evaluation.rows import rows_of, spread, write_rows

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GSM = {"question": "2+2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"}
QUESTION = {"subject": "anatomy", "question": "Which?", "choices": ["a", "b", "c", "d"]}


def shared(name: str) -> list[dict[str, Any]]:
    source = BENCHMARKS[name].source
    if source is None or not (DATA / source.local).is_file():
        pytest.skip(f"{name} is not in ../shared/data")
    return rows_of(BENCHMARKS[name], data_dir=str(DATA))


def grade(name: str, row: dict[str, Any], answer: str, prompt_text: str = "") -> float:
    """The score of one answer by the benchmark's own function and settings; the verdict must be ok."""
    (part,) = read_parts(dict(BENCHMARKS[name].functions)).values()
    columns = {key: [value] for key, value in row.items() if key != "prompt"}
    verdicts = resolve(part.function)(
        prompts=[row["prompt"]], completions=[answer], prompt_text=[prompt_text], **columns, **part.args
    )
    (verdict,) = verdicts  # type: ignore[misc]
    assert verdict.ok, verdict
    return float(verdict.score)


def local(name: str, rows: list[dict[str, Any]], folder: Path, **files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The benchmark's rows from files written for the test."""
    benchmark = BENCHMARKS[name]
    write_rows(rows, folder / "rows.jsonl")
    if benchmark.exemplars is not None:
        write_rows(files["exemplars"], folder / benchmark.exemplars.local.removesuffix(".gz"))
        if benchmark.exemplars.local.endswith(".gz"):
            text = (folder / benchmark.exemplars.local.removesuffix(".gz")).read_bytes()
            (folder / benchmark.exemplars.local).write_bytes(gzip.compress(text))
    return rows_of(benchmark, data_dir=str(folder), path=str(folder / "rows.jsonl"))


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_what_the_report_says() -> None:
    in_house = {"thinkfollow", "lengthctrl", "tooluse", "counterfactqa"}
    assert set(BENCHMARKS) == {*COUNTS, "aime24", "aime25", "own", *in_house}
    assert SAMPLING["thinking"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "presence_penalty": 0.0}
    assert SAMPLING["non_thinking"] == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}
    assert tuple(SAMPLING) == MODES
    for name in ("aime24", "aime25"):
        assert (BENCHMARKS[name].num_samples, BENCHMARKS[name].max_new_tokens) == (64, 38912)
    assert BENCHMARKS["ifeval"].functions["instruction"]["args"] == {"scoring": "all", "strictness": "strict"}
    assert BENCHMARKS["aime24"].figures["Qwen3-32B"] == Figure(81.4, 31.0)
    assert BENCHMARKS["aime25"].figures["Qwen3-0.6B"] == Figure(15.1, 2.6)
    assert BENCHMARKS["thinkfollow"].figures["Qwen3-32B"].of("dialogue") == 98.9
    assert BENCHMARKS["mmlu_redux"].figures["Qwen3-32B"].of("thinking") == 90.9


def test_an_unknown_benchmark_is_named_with_the_nearest() -> None:
    assert [one.name for one in select(["mgsm", "gsm8k", "mgsm"])] == ["mgsm", "gsm8k"]
    assert {one.name for one in select([])} == set(BENCHMARKS) - {"own"}
    with pytest.raises(ConfigError, match="did you mean 'mmlu_redux'"):
        select(["mmlu-redux"])


# --- the sets in ../shared/data -------------------------------------------------------------------------------------

COUNTS = {
    "gsm8k": 1319,
    "math500": 500,
    "humaneval": 164,
    "mbpp": 500,
    "ifeval": 324,
    "mmlu": 1140,
    "mmlu_redux": 5330,
    "bbh": 6511,
    "mgsm": 2750,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_a_set_is_read(name: str) -> None:
    rows = shared(name)
    assert len(rows) == COUNTS[name]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert row["prompt"][-1]["content"].strip()
        json.dumps(row)
    categories = Counter(row["category"] for row in rows)
    assert len(categories) == {"math500": 7, "mmlu": 57, "mmlu_redux": 57, "bbh": 27, "mgsm": 11}.get(name, 1)


@pytest.mark.parametrize("name", ["gsm8k", "math500", "mgsm"])
def test_mathematics_golden_and_spoiled(name: str) -> None:
    for row in shared(name)[::25]:
        box = rf"<think>\boxed{{0}}</think>So \boxed{{{row['answer']}}}."
        assert grade(name, row, box) == 1.0, row
        assert grade(name, row, r"<think></think>\boxed{-98765.4321}") == 0.0
        assert grade(name, row, rf"<think>\boxed{{{row['answer']}}}") == 0.0  # the thought is not closed


@pytest.mark.parametrize("name", ["mmlu", "mmlu_redux"])
def test_multiple_choice_golden_and_spoiled(name: str) -> None:
    rows = shared(name)
    assert set(Counter(row["answer"] for row in rows)) == set("ABCD")
    for row in rows[::13]:
        other = "A" if row["answer"] != "A" else "B"
        assert grade(name, row, f'<think>"answer": "{other}"</think>"answer": "{row["answer"]}"') == 1.0
        assert grade(name, row, f'"answer": "{other}"') == 0.0
    if name == "mmlu":
        assert len(rows[0]["prompt"]) == 11  # five exchanges and the question
        assert rows[0]["prompt"][1] == {"role": "assistant", "content": '"answer": "B"'}


def test_bbh_golden_and_spoiled() -> None:
    for row in shared("bbh")[::61]:
        assert row["prompt"][0]["content"].count("\nQ: ") == 4  # three exemplars and the question
        assert "canary" not in row["prompt"][0]["content"]
        assert grade("bbh", row, f"We think. So the answer is {row['answer']}.") == 1.0, row
        assert grade("bbh", row, "So the answer is something else.") == 0.0


def test_programs_golden_and_spoiled() -> None:
    rows, source = shared("humaneval"), (DATA / "humaneval" / "HumanEval.jsonl").read_text().splitlines()
    for row, raw in list(zip(rows, map(json.loads, source), strict=True))[::41]:
        assert raw["prompt"].rstrip() in row["prompt"][0]["content"]
        program = f"{raw['prompt']}{raw['canonical_solution']}"
        assert grade("humaneval", row, f"```python\n{program}```") == 1.0, row["id"]
        assert grade("humaneval", row, f"```python\n{raw['prompt']}    return object\n```") == 0.0


def test_mbpp_golden_and_spoiled() -> None:
    rows = shared("mbpp")
    raws = [json.loads(line) for line in gzip.decompress((DATA / "mbpp" / "mbpp.jsonl.gz").read_bytes()).splitlines()]
    test = [raw for raw in raws if 11 <= raw["task_id"] <= 510]
    for row, raw in list(zip(rows, test, strict=True))[::125]:
        assert len(row["prompt"]) == 7
        assert raw["text"] in row["prompt"][-1]["content"]
        assert grade("mbpp", row, f"```python\n{raw['code']}\n```") == 1.0, row["id"]
        assert grade("mbpp", row, f"```python\ndef {row['entry_point']}(*a, **k):\n    return object\n```") == 0.0


def test_ifeval_is_all_or_nothing_and_strict() -> None:
    row = shared("ifeval")[0]  # no commas
    assert grade("ifeval", row, "Thou shalt travel to Kyoto.") == 1.0
    assert grade("ifeval", row, "Thou shalt travel to Kyoto, and back.") == 0.0
    both = {
        "prompt": row["prompt"],
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {}],
    }
    assert grade("ifeval", both, "this is a short line of words.") == 1.0
    assert grade("ifeval", both, "This is a short line of words.") == 0.0


@pytest.mark.parametrize("name", ["lengthctrl", "tooluse", "counterfactqa"])
def test_generated_sets_golden_and_spoiled(name: str) -> None:
    benchmark = BENCHMARKS[name]
    rows = rows_of(benchmark, seed=3)
    assert benchmark.generator is not None
    made = benchmark.generator(3)["test"]
    assert len(rows) == len(made) == 320
    assert rows == rows_of(benchmark, seed=3) != rows_of(benchmark, seed=4)
    for row, raw in list(zip(rows, made, strict=True))[::16]:
        assert not {"messages", "rejected"} & set(row)
        assert grade(name, row, raw["messages"][-1]["content"]) == 1.0
        assert grade(name, row, raw["rejected"]) < 1.0
    assert all(row["category"] for row in rows)


# --- rows of the same schema, written here --------------------------------------------------------------------------


def test_gsm8k_thousands_and_a_row_without_its_mark(tmp_path: Path) -> None:
    (row,) = local("gsm8k", [GSM], tmp_path)
    assert row["answer"] == "1004"
    assert row["prompt"][0]["content"] == f"2+2?\n\n{prompts.STEP_BY_STEP}"
    with pytest.raises(DataError, match=r"gsm8k: .*rows.jsonl:1.*####"):
        local("gsm8k", [{"question": "?", "answer": "4"}], tmp_path)


@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime_answers_are_numbers_with_or_without_zeros(name: str, tmp_path: Path) -> None:
    """The schemas of HuggingFaceH4/aime_2024 and math-ai/aime25 (and of copies that say ``question``)."""
    rows = [
        {"id": 60, "problem": "Find m+n.", "solution": "...", "answer": "033", "url": "u", "year": "2024"},
        {"question": "Find k.", "answer": 204},
    ]
    first, second = local(name, rows, tmp_path)
    assert (first["answer"], second["answer"]) == ("33", "204")
    assert grade(name, first, r"\boxed{33}") == grade(name, first, r"\boxed{033}") == 1.0
    assert grade(name, first, r"\boxed{34}") == 0.0
    with pytest.raises(DataError, match="from 0 to 999"):
        local(name, [{"problem": "?", "answer": "1/2"}], tmp_path)


def test_bbh_takes_the_exemplars_of_its_task(tmp_path: Path) -> None:
    cot = [
        {"task": "navigate", "prompt": "Canary GUID 1\n-----\nDo you return?\n\nQ: one\nA: So the answer is No."},
        {"task": "snarks", "prompt": "-----\nWhich?\n\nQ: two\nA: So the answer is (B)."},
    ]
    rows = [
        {"task": "navigate", "input": "Turn around.\nOptions:\n- Yes\n- No", "target": "Yes"},
        {"task": "snarks", "input": "(A) x (B) y", "target": "(A)"},
    ]
    first, second = local("bbh", rows, tmp_path, exemplars=cot)
    assert first["prompt"][0]["content"] == (
        "Do you return?\n\nQ: one\nA: So the answer is No.\n\n"
        "Q: Turn around.\nOptions:\n- Yes\n- No\nA: Let's think step by step."
    )
    assert first["category"] == "navigate"
    assert grade("bbh", first, "So the answer is Yes.") == 1.0
    assert [grade("bbh", second, f"So the answer is {said}") for said in ("(A).", "(A) x", "A", "(B)")] == [1, 1, 1, 0]
    with pytest.raises(DataError, match="exemplars for the task 'other'"):
        local("bbh", [{"task": "other", "input": "?", "target": "1"}], tmp_path, exemplars=cot)


def test_mmlu_redux_leaves_broken_questions_out_and_reads_both_copies(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**QUESTION, "answer": "2", "error_type": "ok", "error_type_norm": "ok"},
        {**QUESTION, "answer": "0", "error_type": "ok ", "error_type_norm": "wrong_groundtruth"},
        {**QUESTION, "answer": 3, "error_type": "ok"},
        {**QUESTION, "answer": 1, "error_type": "no_correct_answer"},
    ]
    found = local("mmlu_redux", rows, tmp_path)
    assert [row["answer"] for row in found] == ["C", "D"]
    assert "Which?\nA. a\nB. b\nC. c\nD. d\n\nPlease show your choice" in found[0]["prompt"][0]["content"]


def test_mmlu_exemplars_are_the_subject_s_own(tmp_path: Path) -> None:
    dev = [{**QUESTION, "subject": s, "answer": n % 4} for s in ("anatomy", "virology") for n in range(6)]
    (row,) = local("mmlu", [{**QUESTION, "answer": 1}], tmp_path, exemplars=dev)
    assert [m["content"] for m in row["prompt"][1::2]] == [f'"answer": "{x}"' for x in "ABCDA"]


def test_mgsm_and_mbpp_of_the_hub(tmp_path: Path) -> None:
    (row,) = local("mgsm", [{"question": "?", "answer": None, "answer_number": 1800, "lang": "th"}], tmp_path)
    assert (row["answer"], row["category"]) == ("1800", "th")
    task: dict[str, Any] = {"text": "Add.", "code": "def add(a, b):\r\n  return a + b", "test_setup_code": "x = 1"}
    task |= {"test_list": ["assert add(1, x) == 2"]}
    rows = [{**task, "task_id": n} for n in (1, 10, 11, 510, 511)]
    dev = [{**task, "task_id": n} for n in (1, 2, 3, 4, 5)]
    found = local("mbpp", rows, tmp_path, exemplars=dev)
    assert [len(row["prompt"]) for row in found] == [7, 7]
    assert found[0]["prompt"][1]["content"] == "```python\ndef add(a, b):\n  return a + b\n```"
    assert (found[0]["entry_point"], found[0]["tests"]) == ("add", [{"code": "x = 1\nassert add(1, x) == 2"}])
    assert grade("mbpp", found[0], "```python\ndef add(a, b):\n    return a + b\n```") == 1.0


HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "openai/gsm8k:main": [GSM],
    "HuggingFaceH4/MATH-500": [{"problem": "?", "answer": "1", "subject": "Algebra", "level": 1, "unique_id": "u"}],
    "HuggingFaceH4/aime_2024": [
        {"id": 1, "problem": "?", "solution": "s", "answer": "033", "url": "u", "year": "2024"}
    ],
    "math-ai/aime25": [{"problem": "?", "answer": "70", "id": "0"}],
    "openai/openai_humaneval": [
        {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "", "test": "", "entry_point": "f"}
    ],
    "google-research-datasets/mbpp:full": [
        {"task_id": n, "text": "?", "code": "def f(): 1", "test_list": ["assert f()"], "test_setup_code": ""}
        for n in (2, 3, 4, 11)
    ],
    "google/IFEval": [
        {"key": 1, "prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": None}]}
    ],
    "cais/mmlu:all": [{**QUESTION, "answer": 3}],
    "edinburgh-dawg/mmlu-redux-2.0:": [{"question": "?", "choices": ["a", "b"], "answer": 0, "error_type": "ok"}],
    "lukaemon/bbh:": [{"input": "?", "target": "Yes"}],
    "juletxara/mgsm@refs/convert/parquet:": [
        {"question": "?", "answer": None, "answer_number": 4, "equation_solution": None}
    ],
}


@pytest.mark.parametrize("name", [name for name, one in BENCHMARKS.items() if one.source and one.source.hub])
def test_a_set_of_the_hub_is_read_subset_by_subset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as the hub's dataset cards show them; what is asked of the hub is noted."""
    benchmark, asked = BENCHMARKS[name], []
    assert benchmark.source is not None

    def read_hub(path: str, split: str) -> Any:
        asked.append((path, split))
        key = path if path in HUB_ROWS else path.partition(":")[0] + ":"
        return ((f"{path} row", row) for row in HUB_ROWS[key])

    monkeypatch.setattr("rlplatform.datafiles.read_hub", read_hub)
    folder = ""
    if name == "bbh":  # its exemplars are files
        folder = str(tmp_path)
        (tmp_path / "bbh").mkdir()
        cot = [{"task": task, "prompt": "-----\nThink."} for task in benchmark.source.subsets]
        write_rows(cot, tmp_path / "bbh" / "cot_prompts.jsonl")
    rows = rows_of(benchmark, data_dir=folder, path=benchmark.source.hub)
    subsets = len(benchmark.source.subsets) or 1
    assert len(rows) == subsets
    own = [path for path, split in asked if split == benchmark.source.split]
    assert len(set(own)) == subsets
    assert subsets == {"mgsm": 11, "bbh": 27, "mmlu_redux": 57}.get(name, 1)
    if subsets > 1:
        assert {row["category"] for row in rows} == set(benchmark.source.subsets)


def test_own_problems_are_asked_as_they_stand(tmp_path: Path) -> None:
    dialogue = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    rows = local(
        "own", [{"prompt": "1 + 1?", "answer": 2, "domain": "sums"}, {"prompt": dialogue, "answer": "x"}], tmp_path
    )
    assert rows == [
        {"id": "own-00000", "prompt": [{"role": "user", "content": "1 + 1?"}], "category": "sums", "answer": "2"},
        {"id": "own-00001", "prompt": dialogue, "category": "", "answer": "x"},
    ]
    with pytest.raises(DataError, match=r"expected data_dir to hold own/test.jsonl, which is on no hub"):
        rows_of(BENCHMARKS["own"])


def test_a_limit_meets_every_part_of_the_set() -> None:
    rows = [{"n": n} for n in range(7)]
    assert spread(rows, 0) == spread(rows, 9) == rows
    assert [row["n"] for row in spread(rows, 3)] == [0, 2, 4]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected gsm8k/test.jsonl.gz in data_dir, or paths.gsm8k"):
        rows_of(BENCHMARKS["gsm8k"], data_dir=str(tmp_path))
    rows = write_rows([{"task": "t", "input": "i", "target": "1"}], tmp_path / "r.jsonl")
    with pytest.raises(DataError, match="on no hub"):
        rows_of(BENCHMARKS["bbh"], path=str(rows))
    with pytest.raises(DataError, match="expected a column question"):
        local("gsm8k", [{"answer": "#### 1"}], tmp_path)


# --- extraction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ('"answer": "C"', "C"),
        ('{"answer": "c"}', "C"),
        ("`answer`: `B`", "B"),
        ('"answer": "(D)"', "D"),
        ('First "answer": "A", no: "answer": "B".', "B"),
        ('"answer": "A or B"', ""),
        ('"answer": ""', ""),
        (r"\boxed{B}", "B"),
        ("The answer is B.", "B"),
        ("B", "B"),
        ("A dog is an animal", ""),
    ],
)
def test_the_choice_field(text: str, letter: str) -> None:
    assert field_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("So the answer is True.", "True"),
        ("the answer is 1. No, the answer is **-50**.", "-50"),
        ("The answer is yes. That was easy.", "yes"),
        ("So the answer is 3.5", "3.5"),
        ("So the answer is 1.\nSo the answer is -50.", "-50"),
        (r"The answer is \boxed{24}.", "24"),
        (r"\boxed{\text{valid}}", "valid"),
        ("The answer is ] ] >.", "] ] >"),
        ("yes", "yes"),
    ],
)
def test_the_stated_answer(text: str, said: str) -> None:
    assert stated(text) == said


def test_a_hub_id_may_name_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> list[dict[str, Any]]:
        asked.append((name, subset, options))
        return [{"question": "?"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("owner/name@refs/convert/parquet:de", "owner/name:main", "owner/name"):
        (found,) = read_rows(DataConfig(path=path, split="test"))
        assert found == (f"{path}[test] row 1", {"question": "?"})
    assert asked == [
        ("owner/name", "de", {"split": "test", "revision": "refs/convert/parquet", "streaming": False}),
        ("owner/name", "main", {"split": "test", "revision": None, "streaming": False}),
        ("owner/name", None, {"split": "test", "revision": None, "streaming": False}),
    ]
