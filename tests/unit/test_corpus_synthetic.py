"""Synthetic data: prompts, forms, the reward that runs programs, claims solved again, documents that say whence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pretrain.data.document import label_of
from pretrain.data.items import Item
from pretrain.data.synthetic import claims, prompts
from pretrain.data.synthetic_documents import read_responses
from pretrain.data.synthetic_forms import take_apart
from pretrain.data.synthetic_prompts import DOMAINS, FORMS, NUMERIC, PROGRAMMING, READERS
from pretrain.data.synthetic_reward import check_program, judge
from rewards.base import Verdict
from rewards.math import math_reward
from rewards.runner import RewardPool
from rlplatform.config import ConfigError, ResponsesConfig, SampleConfig, SourceConfig
from rlplatform.configfile import build, to_yaml
from rlplatform.datafiles import DataError
from rlplatform.sample_stage import ask, query_rows, response_rows, write_rows
from rlplatform.seeds import request_seed
from rlplatform.types import GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams, ScoredGroup

Row = Mapping[str, Any]
FORM = "pretrain.data.synthetic_reward:form"

# --- prompts --------------------------------------------------------------------------------------------------------


def test_domains_go_round_and_nothing_depends_on_the_other_forms() -> None:
    rows = prompts(3, num={"textbook": 150, "code": 30})["train"]
    texts = [row for row in rows if row["form"] == "textbook"]
    counts = Counter(row["domain"] for row in texts)
    assert set(counts) == set(DOMAINS)
    assert max(counts.values()) - min(counts.values()) == 1  # 150 over 73 domains
    per_domain: dict[str, list[str]] = {}
    for row in texts:
        per_domain.setdefault(row["domain"], []).append(row["reader"])
    assert all(len(set(readers)) == len(readers) for readers in per_domain.values())
    assert {row["domain"] for row in rows if row["form"] == "code"} <= PROGRAMMING
    assert len({row["id"] for row in rows}) == len(rows) == 180
    assert prompts(3, num={"textbook": 150})["train"] == texts  # the same rows without code
    assert prompts(3, num={"textbook": 20})["train"] == texts[:20]
    assert [row["domain"] for row in prompts(4, num={"textbook": 150})["train"]] != [row["domain"] for row in texts]


def test_every_combination_comes_before_one_comes_again() -> None:
    rows = prompts(0, num={"instruction": 12}, domains=("a", "b"), readers=("x", "y"), languages=("de", "en", "fr"))
    drawn = [(row["domain"], row["reader"], row["language"]) for row in rows["train"]]
    assert len(set(drawn)) == 12


def test_the_wording_says_what_was_drawn() -> None:
    [row] = prompts(0, num={"question_answer": 1}, domains=("algebra",), readers=("a cat",), languages=("Latin",))[
        "train"
    ]
    assert "one question on algebra, in Latin, for a cat" in row["prompt"]
    assert "The answer is one number or one formula" in row["prompt"]
    assert "{" not in row["prompt"]
    assert (row["checkable"], row["id"]) == (True, "question_answer-1")
    [prose] = prompts(0, num={"question_answer": 1}, domains=("history",))["train"]
    assert (prose["checkable"], "one number" in prose["prompt"]) == (False, False)
    own = prompts(0, num={"textbook": 1}, domains=("law",), templates={"textbook": "On {domain}."})["train"][0]
    assert own["prompt"] == "On law."
    assert own["template"] != row["template"]


def test_the_lists_are_lists_of_domains() -> None:
    assert len(set(DOMAINS)) == len(DOMAINS) >= 50
    assert set(DOMAINS) > NUMERIC
    assert set(DOMAINS) > PROGRAMMING
    assert len(set(READERS)) == len(READERS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num": {"poem": 1}}, "expected numbers >= 0 of textbook"),
        ({"num": {"textbook": -1}}, "got textbook: -1"),
        ({"num": {"code": 1}, "domains": ["cooking"]}, "code: expected domains"),
        ({"num": {}, "templates": {"textbook": "{topic}"}}, "expected placeholders domain"),
        ({"num": {}, "templates": {"poem": "x"}}, "in a known form, got poem"),
        ({"num": {}, "templates": {"textbook": "a {b"}}, "templates.textbook"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompts(0, **settings)


# --- forms ----------------------------------------------------------------------------------------------------------

QA = "## Question\nWhat is 2 + 3?\n\n## Solution\nCount on from two.\n\n## Answer\n5"
PROGRAM = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0"
CODE = f"## Task\nAdd numbers.\n\n## Program\n```python\n{PROGRAM}\n```\n\n## Tests\n```python\n{TESTS}\n```"


def test_each_form_becomes_the_text_of_its_document() -> None:
    assert take_apart("textbook", "# Optics\nLight bends.").text == "# Optics\nLight bends."
    assert take_apart("question_answer", QA).text == "What is 2 + 3?\n\nCount on from two.\n\nAnswer: 5"
    said = take_apart("instruction", "## Instruction\nName a colour.\n## Response\nBlue.\n### Why\nI like it.")
    assert said.text == "Name a colour.\n\nBlue.\n### Why\nI like it."
    code = take_apart("code", CODE)
    assert code.text == f"Add numbers.\n\n```python\n{PROGRAM}\n```\n\n```python\n{TESTS}\n```"
    assert (code.sections["program"], code.sections["tests"]) == (PROGRAM + "\n", TESTS + "\n")


def test_thoughts_are_no_part_of_the_document() -> None:
    assert take_apart("textbook", "<think>\nhm\n</think>\n\nLight bends.<|im_end|>").text == "Light bends."
    assert take_apart("textbook", "hm\n</think>\n\nLight bends.", opened=True).text == "Light bends."
    assert take_apart("textbook", "still thinking", opened=True).reason == "no answer"
    assert take_apart("textbook", "<think>\nnever ends").reason == "no answer"


@pytest.mark.parametrize(
    ("form", "response", "reason", "detail"),
    [
        ("textbook", " ", "no answer", "nothing"),
        ("question_answer", "What is 2 + 3? 5", "form", "no question"),
        ("question_answer", QA.replace("## Answer\n5", ""), "form", "expected the sections"),
        ("question_answer", QA.replace("\n5", "\n"), "form", "no answer"),
        ("question_answer", "Sure!\n" + QA, "form", "no question"),
        ("question_answer", QA + "\n## Answer\n6", "form", "no question"),
        (
            "question_answer",
            QA.replace("Question", "X").replace("Answer", "Question").replace("X", "Answer"),
            "form",
            "",
        ),
        ("code", CODE.replace("```", ""), "form", "section program: expected a fenced block"),
        ("code", CODE.replace("assert ", "print "), "tests", "no Python"),
        ("code", CODE.replace("assert add(1, 2) == 3", "x = 1").replace(TESTS[22:], "y = 2"), "tests", "no assert"),
    ],
)
def test_what_has_not_its_form_says_why(form: str, response: str, reason: str, detail: str) -> None:
    parsed = take_apart(form, response)
    assert (parsed.text, parsed.reason) == ("", reason)
    assert detail in parsed.detail


def test_a_response_that_was_cut_is_none() -> None:
    assert take_apart("textbook", "Light bends because", cut=True).reason == "cut"
    with pytest.raises(ValueError, match="expected one of textbook"):
        take_apart("poem", "x")


# --- the reward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "tests", "score", "detail"),
    [
        (PROGRAM, TESTS, 1.0, "1 of 1 tests passed"),
        (PROGRAM.replace("+", "-"), TESTS, 0.0, "0 of 1 tests passed"),
        (PROGRAM, "assert True\nassert 1 + 1 == 2", 0.0, "its tests pass without the program"),
        ("def add(a, b):\n    while True: pass", TESTS, 0.0, "0 of 1 tests passed"),
        ("import os\nos._exit(0)", TESTS, 0.0, "0 of 1 tests passed"),
        ("def add(a, b:\n", TESTS, 0.0, "0 of 1 tests passed"),
        ("s = '''\n```\n'''\n" + PROGRAM, TESTS, 1.0, "1 of 1 tests passed"),
    ],
)
def test_programs_are_run_with_their_tests_and_the_tests_without(
    program: str, tests: str, score: float, detail: str
) -> None:
    verdict = check_program(program, tests, timeout_s=2.0 if "while True" in program else 60.0)
    assert (verdict.status, verdict.score) == ("ok", score), verdict
    assert verdict.detail.startswith(detail)


def test_the_reward_says_of_other_forms_whether_they_have_them() -> None:
    assert judge(QA, "question_answer", False) == Verdict(1.0, detail="has its form; what it says is not checked")
    assert judge("5", "question_answer", False).detail.startswith("form: expected the sections question")
    assert judge("x", "poem", False).status == "unparseable"


def test_the_reward_is_loaded_by_its_path_and_grades_in_child_processes() -> None:
    with RewardPool({FORM: 1.0}, timeout_s=60.0) as pool:
        verdicts = pool.score(["", "", ""], [QA, CODE, "5"], {"form": ["question_answer", "code", "question_answer"]})
    assert [(verdict.status, verdict.score) for verdict in verdicts] == [("ok", 1.0), ("ok", 1.0), ("ok", 0.0)]


# --- from prompts to documents --------------------------------------------------------------------------------------


class ScriptedModel:
    """Says what a function of (prompt, sample) says; graded by a real reward. The stage's own code does the rest."""

    def __init__(self, say: Callable[[Prompt, int], str], grade: Callable[[Prompt, str], Verdict]) -> None:
        self.say, self.grade = say, grade

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        return [self._group(request) for request in reversed(requests)]

    def _group(self, request: GenerationRequest) -> RolloutGroup:
        texts = [self.say(request.prompt, sample) for sample in range(request.num_samples)]
        rollouts = tuple(_rollout(text) for text in texts)
        return RolloutGroup(request.prompt, rollouts, request.step, index=request.index)

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [ScoredGroup(g, tuple(self.grade(g.prompt, one.text) for one in g.rollouts)) for g in groups]


def _rollout(text: str) -> Rollout:
    ones = np.ones(3, dtype=np.int32)
    finish = "length" if text.endswith("...") else "stop"
    return Rollout(ones, ones.astype(np.bool_), np.zeros(3, np.float32), ones, finish, text)


def run_sample(folder: Path, rows: Sequence[Row], model: ScriptedModel, reward: str, num_samples: int) -> Path:
    """What ``rlplatform.sample_stage.sample`` leaves, with this model in place of the fleet."""
    config = build(
        {
            "kind": "sample",
            "name": folder.name,
            "seed": 5,
            "run_dir": str(folder),
            "num_samples": num_samples,
            "model": {"path": "models/writer"},
            "sampling": {"temperature": 0.7, "max_new_tokens": 64},
            "reward": {"functions": {reward: 1.0}},
        },
        where="test",
    )
    assert isinstance(config, SampleConfig)
    prompted = [
        Prompt(
            prompt_id=f"train-{number}",
            messages=({"role": "user", "content": row["prompt"]},),
            token_ids=np.array([1], dtype=np.int32),
            text="<|im_start|>assistant\n",
            columns={key: value for key, value in row.items() if key != "prompt"},
        )
        for number, row in enumerate(rows)
    ]
    groups = ask(
        prompted,
        generate=model.generate,
        score=model.score,
        sampling=SamplingParams(),
        num_samples=num_samples,
        seed=config.seed,
    )
    metric = reward.rpartition(":")[2]
    responses = [row for group in groups for row in response_rows(group, metric)]
    write_rows(folder / "responses.jsonl", responses)
    write_rows(folder / "queries.jsonl", query_rows(prompted, responses))
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder / "responses.jsonl"


def by_form(prompt: Prompt, text: str) -> Verdict:
    verdict = judge(text, prompt.columns["form"], False, timeout_s=60.0)
    return Verdict(verdict.score, verdict.status, {"form": verdict.score}, verdict.detail)


def by_answer(prompt: Prompt, text: str) -> Verdict:
    [verdict] = math_reward([""], [text], answer=[prompt.columns["answer"]])
    return Verdict(verdict.score, verdict.status, {"math": verdict.score}, verdict.detail)


def write(prompt: Prompt, sample: int) -> str:
    form = prompt.columns["form"]
    if form == "code":
        return CODE if sample == 0 else CODE.replace("a + b", "a - b")
    if form == "question_answer":
        return QA if sample == 0 else QA.replace("## Answer\n5", "## Answer\n6")
    if form == "textbook":
        return "Light bends at the surface of water." if sample == 0 else "Light bends at the ..."
    return "no headings at all"


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    rows = prompts(1, num=dict.fromkeys(FORMS, 1), domains=("algebra",))["train"]
    return run_sample(folder, rows, ScriptedModel(write, by_form), FORM, 2)


def items(path: Path, **settings: Any) -> dict[str, Item]:
    source = SourceConfig(path=(str(path),), format="responses", responses=ResponsesConfig(**settings))
    found = list(read_responses(path, source))
    assert all(isinstance(item, Item) for item in found)
    return {f"{item.meta['form']}#{item.meta['sample']}": item for item in found}  # type: ignore[union-attr]


def labels(item: Item) -> dict[str, tuple[str, Any, str]]:
    return {entry["name"]: (entry["value"], entry["score"], entry["labeller"]) for entry in item.labels}


def test_every_response_is_a_document_or_has_a_reason(responses: Path) -> None:
    found = items(responses)
    assert {name: item.reason for name, item in found.items()} == {
        "textbook#0": "",
        "textbook#1": "cut",
        "question_answer#0": "",
        "question_answer#1": "",
        "instruction#0": "form",
        "instruction#1": "form",
        "code#0": "",
        "code#1": "tests failed",
    }
    assert labels(found["code#0"]) == {
        "synthetic": ("code", None, "prompt"),
        "domain": ("algebra", None, "prompt"),
        "verified": ("yes", 1.0, "sandbox"),
    }
    assert labels(found["textbook#0"])["verified"] == ("unchecked", None, "none")
    assert labels(found["question_answer#1"])["verified"] == ("unchecked", None, "none")  # wrong, and nobody looked
    assert found["textbook#0"].text == "Light bends at the surface of water."


def test_where_a_document_comes_from_stands_on_it(responses: Path) -> None:
    item = items(responses)["question_answer#1"]
    rows = prompts(1, num=dict.fromkeys(FORMS, 1), domains=("algebra",))["train"]
    index = [row["form"] for row in rows].index("question_answer")
    assert item.meta["model"] == "models/writer"
    assert item.meta["group_seed"] == request_seed(5, 0, index, 2, stream="sample")
    assert item.meta["sampling"]["temperature"] == 0.7
    assert item.meta["prompt"] == rows[index]["prompt"]
    assert {key: item.meta[key] for key in ("id", "sample", "domain", "reader", "language", "template")} == {
        **{key: rows[index][key] for key in ("id", "domain", "reader", "language", "template")},
        "sample": 1,
    }
    assert item.meta["sections"] == {"question": "What is 2 + 3?", "solution": "Count on from two.", "answer": "6"}
    json.dumps(item.meta)


def test_claims_are_solved_again_and_the_wrong_one_goes(responses: Path, tmp_path: Path) -> None:
    asked = claims(0, responses=str(responses))["train"]
    assert [(row["id"], row["answer"]) for row in asked] == [("question_answer-1#0", "5"), ("question_answer-1#1", "6")]
    assert asked[0]["prompt"].startswith("What is 2 + 3?\n\nReason step by step")

    def solve(prompt: Prompt, sample: int) -> str:  # three of four are right
        return f"So \\boxed{{{'5' if sample < 3 else '7'}}}"

    solutions = run_sample(tmp_path / "solve", asked, ScriptedModel(solve, by_answer), "math", 4)
    found = items(responses, solutions=str(solutions))
    assert labels(found["question_answer#0"])["verified"] == ("yes", 0.75, "agreement of 4 solutions by models/writer")
    wrong = found["question_answer#1"]
    assert (wrong.reason, wrong.detail) == ("solutions disagree", "0 of 4 solutions agree")
    assert items(responses, solutions=str(solutions), min_agreement=0.8)["question_answer#0"].reason
    few = items(responses, solutions=str(solutions), min_solutions=5)
    assert labels(few["question_answer#0"])["verified"][0] == "unchecked"
    only = items(responses, solutions=str(solutions), only_verified=True)
    assert {name for name, item in only.items() if not item.reason} == {"question_answer#0", "code#0"}
    assert only["textbook#0"].reason == "unchecked"


def test_a_score_of_another_reward_verifies_no_program(responses: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("responses.jsonl", "queries.jsonl"):
        (folder / name).write_text((responses.parent / name).read_text())
    config = yaml.safe_load((responses.parent / "config.yaml").read_text())
    config["reward"]["functions"] = {"format": 1.0, FORM: 1.0}  # the first is the metric
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = items(folder / "responses.jsonl")
    assert labels(found["code#0"])["verified"][0] == labels(found["code#1"])["verified"][0] == "unchecked"
    config["metric"] = "form"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert labels(items(folder / "responses.jsonl")["code#0"])["verified"][0] == "yes"


def test_a_grader_that_failed_verifies_nothing(responses: Path, tmp_path: Path) -> None:
    folder = tmp_path / "failed"
    folder.mkdir()
    for name in ("config.yaml", "queries.jsonl"):
        (folder / name).write_text((responses.parent / name).read_text())
    rows = [json.loads(line) for line in responses.read_text().splitlines()]
    rows = [{**row, "status": "timeout", "score": None, "detail": "10 s"} for row in rows if row["form"] == "code"]
    write_rows(folder / "responses.jsonl", [*rows, {"id": "textbook-1"}])
    source = SourceConfig(path=("x",), format="responses")
    first, second, broken = read_responses(folder / "responses.jsonl", source)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert isinstance(broken, Item)
    assert (first.reason, second.reason, first.detail) == ("grader timeout", "grader timeout", "10 s")
    assert (broken.is_error, broken.reason) == (True, "response")


def test_responses_without_their_stage_are_refused(responses: Path, tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(responses.read_text())
    source = SourceConfig(path=("x",), format="responses")
    with pytest.raises(ConfigError, match="expected the folder of a sample stage"):
        list(read_responses(path, source))
    (tmp_path / "config.yaml").write_text("kind: dataset\n")
    with pytest.raises(ConfigError, match="expected the folder of a sample stage"):
        list(read_responses(path, source))
    bad = tmp_path / "solve" / "responses.jsonl"
    write_rows(bad, [{"id": "a", "sample": 0, "status": "?"}])
    for name in ("config.yaml", "queries.jsonl"):
        (bad.parent / name).write_text((responses.parent / name).read_text())
    settings = ResponsesConfig(solutions=str(bad))
    with pytest.raises(DataError, match="expected status to be one of"):
        list(read_responses(responses, SourceConfig(path=("x",), format="responses", responses=settings)))


def test_documents_carry_the_labels() -> None:
    """The names that later stages look for."""
    row = {"labels": [{"name": "verified", "value": "yes", "score": 1.0, "labeller": "sandbox"}]}
    found = label_of(row, "verified")
    assert found is not None
    assert found["value"] == "yes"
