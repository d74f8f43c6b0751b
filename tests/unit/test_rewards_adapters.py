"""Functions written for verl and OpenRLHF, unchanged, as their files would hold them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards.adapters import ADAPTERS
from rewards.base import CONVENTIONS, ERROR, OK, RewardLoadError, absolute, resolve, signature_of
from rewards.composition import read_parts
from rewards.runner import RewardPool
from rlplatform.config import DataConfig
from rlplatform.data import normalise
from rlplatform.datafiles import read_rows

VERL = '''
import re
from verl_helper import STRIP

def compute_score(data_source, solution_str, ground_truth, extra_info=None, format_score=0.0, score=1.0):
    """The scoring function of an example, in verl's convention."""
    found = re.findall("#### (.+)", solution_str)
    if not found:
        return 0
    return score if found[-1].strip(STRIP) == ground_truth else format_score

def as_dict(data_source, solution_str, ground_truth, extra_info):
    right = solution_str == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str, "index": extra_info["index"],
            "nan": float("nan"), "nothing": extra_info["num_turns"], "source": data_source}

async def slow(data_source, solution_str, ground_truth, extra_info):
    import asyncio
    await asyncio.sleep(0.01)
    return {"score": float(len(solution_str))} if solution_str != "raise" else 1 / 0

def everything(**kwargs):
    return float(len(kwargs))

def is_right(data_source, solution_str, ground_truth, extra_info):
    return solution_str == ground_truth

def replies(data_source, solution_str, ground_truth, extra_info):
    return {"none": None, "text": "1.0", "dict": {"acc": 1.0}, "nan": float("nan"), "list": [1.0], "raise": None}[
        solution_str] if solution_str != "raise" else 1 / 0

def no_ground_truth(data_source, solution_str, extra_info): return 0.0
def open_end(data_source, solution_str, ground_truth, extra_info, tolerance): return 0.0
def hidden(data_source, /, solution_str, ground_truth, extra_info): return 0.0
'''


@pytest.fixture(scope="module")
def verl_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verl") / "verl_scores.py"
    path.write_text(textwrap.dedent(VERL))
    (path.parent / "verl_helper.py").write_text("STRIP = ' $'\n")
    return path


SCHEMA = {  # two rows as verl's parquet holds them
    "data_source": ["openai/gsm8k", "openai/gsm8k"],
    "ability": ["math", "math"],
    "reward_model": [{"style": "rule", "ground_truth": "72"}, {"style": "rule", "ground_truth": "10"}],
    "extra_info": [{"index": 0, "split": "train"}, {"index": 1, "split": "train"}],
}
COMPLETIONS = [[{"role": "assistant", "content": "so\n#### $72"}], [{"role": "assistant", "content": "#### 11"}]]


def test_every_convention_has_its_adapter():
    assert set(CONVENTIONS) == set(ADAPTERS)


class TestVerl:
    def test_reads_verls_columns(self, verl_file):
        fn = resolve(f"verl:{verl_file}:compute_score")
        assert [v.score for v in fn(completions=COMPLETIONS, **_accepted(fn, SCHEMA))] == [1.0, 0.0]

    def test_settings_are_its_further_parameters(self, verl_file):
        fn = resolve(f"verl:{verl_file}:compute_score")
        scores = fn(completions=COMPLETIONS, **_accepted(fn, SCHEMA), format_score=0.25, score=2.0)
        assert [v.score for v in scores] == [2.0, 0.25]

    def test_ground_truth_before_reward_model_before_answer(self, verl_file):
        fn = resolve(f"verl:{verl_file}:is_right")
        columns = {"ground_truth": ["a"], "reward_model": [{"ground_truth": "b"}], "answer": ["c"]}
        for expected in "abc":
            given = {name: values * 3 for name, values in columns.items()}
            scores = [verdict.score for verdict in fn(completions=["a", "b", "c"], **given)]
            assert scores == [float(letter == expected) for letter in "abc"]
            del columns[next(iter(columns))]

    def test_a_dict_gives_parts_and_detail(self, verl_file):
        fn = resolve(f"verl:{verl_file}:as_dict")
        first, second = fn(completions=["72", "9"], **_accepted(fn, SCHEMA))
        assert (first.score, first.parts) == (1.0, {"acc": 1.0, "index": 0.0})
        assert (second.score, second.parts) == (-1.0, {"acc": 0.0, "index": 1.0})
        assert second.detail.splitlines() == ["pred: 9", "nan: nan", "source: openai/gsm8k"]

    def test_verls_parquet_from_the_file_to_the_verdict(self, verl_file, tmp_path):
        """Rows as verl's preprocessing writes them, through ``rlplatform.data``, to what the function is given."""
        rows = [
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": "70 + 2?"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "72"},
                "extra_info": {"index": 7, "split": "train", "interaction": None},
            },
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        config = DataConfig(path=str(tmp_path / "train.parquet"))
        [(where, row)] = read_rows(config)
        prompt, columns = normalise(row, where, config)
        assert columns["answer"] == "72"
        with RewardPool({f"verl:{verl_file}:as_dict": 1.0}) as pool:
            verdicts = pool.score([prompt] * 2, ["72", "73"], {name: [value] * 2 for name, value in columns.items()})
        assert [v.score for v in verdicts] == [1.0, -1.0]
        assert verdicts[0].parts == {"as_dict": 1.0, "as_dict/acc": 1.0, "as_dict/index": 7.0}
        assert "source: openai/gsm8k" in verdicts[0].detail

    def test_functions_of_keywords_alone(self, verl_file):
        assert resolve(f"verl:{verl_file}:everything")(completions=["x"], answer=["y"])[0].score == 4.0

    def test_in_a_pool_sync_and_async(self, verl_file):
        with RewardPool({f"verl:{verl_file}:{name}": 1.0 for name in ("as_dict", "slow")}) as pool:
            verdicts = pool.score(["p", "p"], ["72", "9"], SCHEMA)
        assert [v.score for v in verdicts] == [1.0 + 2.0, -1.0 + 1.0]
        assert verdicts[0].parts == {"as_dict": 1.0, "as_dict/acc": 1.0, "as_dict/index": 0.0, "slow": 2.0}

    def test_async_rows_fail_alone(self, verl_file):
        with RewardPool({f"verl:{verl_file}:slow": 1.0}) as pool:
            verdicts = pool.score(["p"] * 3, ["a", "raise", "ccc"], {"answer": ["1"] * 3})
        assert [(v.score, v.status) for v in verdicts] == [(1.0, OK), (0.0, ERROR), (3.0, OK)]
        assert f'File "{verl_file}", line' in verdicts[1].detail
        assert verdicts[1].detail.endswith("ZeroDivisionError: division by zero")

    def test_what_is_no_score_is_an_error_of_its_own_row(self, verl_file):
        completions = ["none", "text", "dict", "nan", "list", "raise"]
        with RewardPool({f"verl:{verl_file}:replies": 1.0}) as pool:
            verdicts = pool.score(["p"] * 7, [*completions, "none"], {"answer": ["1"] * 7})
            none = pool.score(["p"], ["none"])
        assert [v.status for v in verdicts] == [ERROR] * 7
        for verdict, words in zip(
            verdicts,
            ["got None", "got '1.0'", "dict with 'score', got ['acc']", "finite", "[1.0]", "1 / 0"],
            strict=False,
        ):
            assert words in verdict.detail
        assert f"{verl_file}" in verdicts[5].detail
        assert "a column reward_model" in none[0].detail

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            ("no_ground_truth", ["without ground_truth", "(data_source, solution_str, extra_info)"]),
            ("open_end", ["tolerance has no default"]),
            ("hidden", ["data_source can't be passed by keyword"]),
            ("compute_scores", ["did you mean 'compute_score'"]),
        ],
    )
    def test_what_does_not_fit_is_told_at_once(self, verl_file, function, words):
        with pytest.raises(RewardLoadError) as caught:
            resolve(f"verl:{verl_file}:{function}")
        for word in [f"verl:{verl_file}", *words]:
            assert word in str(caught.value)

    def test_names_are_short_and_paths_absolute(self, verl_file, monkeypatch):
        monkeypatch.chdir(verl_file.parent)
        assert absolute("verl:verl_scores.py:compute_score") == f"verl:{verl_file}:compute_score"
        assert list(read_parts({"verl:verl_scores.py:compute_score": 1.0})) == ["compute_score"]
        assert absolute("verl:package.module:fn") == "verl:package.module:fn"

    def test_it_keeps_name_and_docstring(self, verl_file):
        fn = resolve(f"verl:{verl_file}:compute_score")
        assert fn.__name__ == "compute_score"
        assert "in verl's convention" in (fn.__doc__ or "")
        assert fn.rowwise

    def test_a_module_called_verl_is_not_hidden(self):
        with pytest.raises(RewardLoadError, match="no module named 'verl'"):
            resolve("verl:compute_score")


OPENRLHF = """
import torch

def reward_func(queries, prompts, labels):
    return torch.tensor([float(len(q) - len(p) == l) for q, p, l in zip(queries, prompts, labels)])

def with_logs(queries, prompts, labels, bonus=0.0):
    rewards = torch.tensor([len(query) + bonus for query in queries])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    logs = {"prompt": lengths, "mean": rewards.mean(), "none": None}
    return {"rewards": rewards, "scores": rewards / 10, "extra_logs": logs}

def short(queries, prompts, labels):
    return {"rewards": [1.0]}
"""


def test_verl_rows_of_mixed_files_have_each_their_own_ground_truth(verl_file):
    """A file whose rows have different columns gives None where a row lacks one; that is no ground truth."""
    columns = {
        "ground_truth": ["a", None, None, None],
        "reward_model": [None, {"ground_truth": "b"}, None, {"style": "rule"}],
        "answer": [None, "x", "c", None],
        "data_source": ["s"] * 4,
    }
    with RewardPool({f"verl:{verl_file}:is_right": 1.0}, timeout_s=60.0) as pool:
        verdicts = pool.score(["q"] * 4, ["a", "b", "c", "d"], columns)
    assert [(v.score, v.status) for v in verdicts] == [(1.0, OK)] * 3 + [(0.0, ERROR)]
    assert "a column ground_truth or answer" in verdicts[3].detail


@pytest.fixture(scope="module")
def openrlhf_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openrlhf") / "reward_func.py"
    path.write_text(OPENRLHF)
    return path


class TestOpenRLHF:
    def test_tensors_and_dicts(self, openrlhf_file):
        fn = resolve(f"openrlhf:{openrlhf_file}:reward_func")
        assert fn(prompts=["p", "q"], completions=["abc", "d"], answer=[3, 2]).tolist() == [1.0, 0.0]
        assert fn(prompts=["p", "q"], completions=["abc", "d"], label=[3, 1], answer=[0, 0]).tolist() == [1.0, 1.0]
        assert fn(prompts=["p", "q"], completions=["abc", "d"], label=[3, None], answer=[0, 1]).tolist() == [1.0, 1.0]
        fn = resolve(f"openrlhf:{openrlhf_file}:with_logs")
        message = [{"role": "user", "content": "hello"}]
        [verdict] = fn(prompts=[message], completions=[[{"role": "assistant", "content": "x"}]], bonus=1.0)
        assert (verdict.score, verdict.parts) == (7.0, {"scores": pytest.approx(0.7), "prompt": 5.0})
        logged: dict[str, float] = {}
        [verdict] = fn(prompts=[message], completions=["x"], prompt_text=["<user>hello"], log_metric=logged.__setitem__)
        assert verdict.score == 12.0
        assert logged == {"mean": 12.0}

    def test_in_a_pool(self, openrlhf_file):
        name = f"openrlhf:{openrlhf_file}:"
        with RewardPool({f"{name}reward_func": 1.0}, timeout_s=60.0) as pool:
            verdicts = pool.score(["p", "q"], ["abc", "d"], {"answer": [3, 2]})
        assert [(v.score, v.status) for v in verdicts] == [(1.0, OK), (0.0, OK)]
        with RewardPool({f"{name}short": 1.0}, timeout_s=60.0) as pool:
            verdicts = pool.score(["p", "q"], ["abc", "d"], {"answer": [3, 2]})
        assert all(v.status == ERROR and "expected 2 values" in v.detail for v in verdicts)


def _accepted(fn, columns):
    signature = signature_of(fn)
    return {name: values for name, values in columns.items() if signature.accepts(name)}
