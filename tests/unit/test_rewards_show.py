"""`rlplatform reward list` and `reward show`: what they print is what the functions are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.base import REWARDS, RewardLoadError
from rewards.examples import EXAMPLES
from rlplatform.reward_show import describe, list_rewards, show_reward

MINE = '''
from rewards.base import groupwise, rowwise, served_by

@rowwise
def settled(prompts, completions, answer, hint=None, prompt_text=None, log_metric=None, *,
            scale: float = 2.0, words=("a",), **columns):
    """Scale where the answer is there. Else 0.

    More of it.
    """
    return [scale if a in c else 0.0 for a, c in zip(answer, completions)]

settled.examples = [
    {"completion": "it is 7", "answer": "7", "expect": 2.0},
    {"completion": "it is 8", "answer": "7", "expect": 2.0},
    {"completion": "it is 8", "answer": None, "expect": "error"},
]

@groupwise
async def together(completions): return [0.0] * len(completions)

@served_by("package.module:Class")
def model(completions): return [0.0] * len(completions)

class Callable:
    """An instance that scores."""
    def __call__(self, completions, **columns): return [1.0] * len(completions)

instance = Callable()

def broken_examples(completions): return [0.0] * len(completions)
broken_examples.examples = [{"text": "x"}]

def compute_score(data_source, solution_str, ground_truth, extra_info, format_score=0.1):
    """verl's."""
    return 1.0
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return path


class TestDescribe:
    def test_columns_settings_and_what_is_supplied(self, mine):
        one = describe(f"{mine}:settled")
        assert (one.required, one.optional, one.takes_all) == (("answer",), ("hint",), True)
        assert one.settings == {"scale": "float = 2.0", "words": "= ('a',)"}
        assert one.supplied == ("prompt_text", "log_metric")
        assert one.summary == "Scale where the answer is there"
        assert one.source == f"{mine}:4"
        assert (one.kind, one.origin) == ("rowwise", "")

    def test_kinds(self, mine):
        kinds = {name: describe(f"{mine}:{name}").kind for name in ("together", "model", "instance")}
        assert kinds == {"together": "groupwise async", "model": "batch served", "instance": "batch"}
        assert describe(f"{mine}:instance").source.startswith(f"{mine}:")
        assert describe(f"{mine}:instance").summary == "An instance that scores"

    def test_an_adapted_function_is_described_as_itself(self, mine):
        one = describe(f"verl:{mine}:compute_score")
        assert one.summary == "verl's"
        assert one.source.startswith(f"{mine}:")
        assert one.settings == {"format_score": "= 0.1"}
        assert "reward_model" in one.optional

    @pytest.mark.parametrize("name", sorted(REWARDS))
    def test_every_built_in_says_something_of_itself(self, name):
        one = describe(name)
        assert one.summary
        assert one.origin == "built in"
        assert Path(one.source.rpartition(":")[0]).is_file()
        columns = {column for example in EXAMPLES.get(name, ()) for column in example.columns}
        assert columns <= {*one.required, *one.optional, "completion_ids"}


class TestList:
    def test_json_has_every_built_in(self, capsys):
        list_rewards(as_json=True)
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert set(rows) >= set(REWARDS)
        assert rows["math"]["columns"] == ["answer"]
        assert rows["format"]["columns"] == ["[thinking]"]
        assert rows["math"]["kind"] == "rowwise"

    def test_packages_are_named_and_not_imported(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "plug_list-1.0.dist-info").mkdir()
        (tmp_path / "plug_list-1.0.dist-info" / "METADATA").write_text("Name: plug-list\nVersion: 1.0\n")
        (tmp_path / "plug_list-1.0.dist-info" / "entry_points.txt").write_text(
            "[rlplatform.rewards]\nworth_list = plug_list:worth\nmath = plug_list:worth\n"
        )
        (tmp_path / "plug_list.py").write_text("raise RuntimeError('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        list_rewards()
        told = capsys.readouterr().out
        assert "worth_list" in told
        assert "from plug-list 1.0" in told
        assert "does not load: reward 'math' is declared more than once" in told
        assert "plug_list" not in sys.modules

    def test_the_command(self):
        command = [sys.executable, "-m", "rlplatform", "reward", "list"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert all(f"\n{name} " in "\n" + done.stdout for name in REWARDS)


class TestShow:
    def test_a_built_in(self, capsys):
        show_reward("exact")
        told = capsys.readouterr().out
        assert told.startswith("exact (built in), rowwise\n")
        assert "rewards/text.py:" in told
        assert "1.0 where the whole answer is one of the references" in told
        lines = [line.split() for line in told[told.index("examples") :].splitlines()[1:]]
        assert [line[0] for line in lines] == ["1", "0", "1", "unparseable"]
        assert "expected" not in told

    def test_settings_are_shown(self, capsys):
        show_reward("json_schema")
        assert "  fenced: str = 'allowed'" in capsys.readouterr().out

    def test_a_function_of_ones_own_with_examples(self, mine, capsys):
        show_reward(f"{mine}:settled")
        told = capsys.readouterr().out
        lines = told[told.index("examples") :].splitlines()[1:]
        assert lines[0].split() == ["2", '"it', "is", '7"', 'answer="7"']
        assert lines[2].split()[:2] == ["expected", "2.0."]  # the second example does not say what it claims
        assert lines[3].split()[0] == "error"
        assert len(lines) == 4

    def test_json(self, mine, capsys):
        show_reward(f"{mine}:settled", as_json=True)
        told = json.loads(capsys.readouterr().out)
        assert told["settings"] == {"scale": "float = 2.0", "words": "= ('a',)"}
        assert [(one["score"], one["status"], one["agrees"]) for one in told["examples"]] == [
            (2.0, "ok", True),
            (0.0, "ok", False),
            (None, "error", True),
        ]

    def test_without_examples(self, mine, capsys):
        show_reward(f"{mine}:instance")
        assert "no examples: try it on rows of your own" in capsys.readouterr().out

    def test_what_is_wrong(self, mine):
        with pytest.raises(RewardLoadError, match="did you mean 'exact'"):
            show_reward("exct")
        with pytest.raises(RewardLoadError, match="examples, row 0: expected `completion`"):
            show_reward(f"{mine}:broken_examples")
