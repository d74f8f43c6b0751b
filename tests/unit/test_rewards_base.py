"""The contract: finding functions, what they may return, how parts make a whole."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import (
    ERROR,
    NOT_APPLICABLE,
    OK,
    REWARDS,
    RewardContractError,
    RewardLoadError,
    Verdict,
    absolute,
    resolve,
    signature_of,
    to_verdicts,
)


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "import helper_beside\n"
        "NUMBER = 3\n"
        "def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
        "def only_completions(completions):\n    return [helper_beside.SCORE for c in completions]\n"
        "def no_completions(texts, answer):\n    return [0.0]\n"
        "def positional(completions, /):\n    return [0.0]\n"
        "class Scaled:\n    def __init__(self, by): self.by = by\n"
        "    def __call__(self, completions, **kw): return [self.by for c in completions]\n"
        "scaled = Scaled(2.0)\n"
    )
    (tmp_path / "helper_beside.py").write_text("SCORE = 0.25\n")
    return path


class TestResolve:
    def test_every_built_in_name_resolves(self):
        for name in REWARDS:
            assert callable(resolve(name))

    def test_package_function(self):
        assert resolve("rewards.math:math_reward") is resolve("math")

    def test_file_function_with_a_module_beside_it(self, user_file):
        assert resolve(f"{user_file}:length")(prompts=["a"], completions=["abc"]) == [3.0]
        assert resolve(f"{user_file}:only_completions")(completions=["abc"]) == [0.25]

    def test_callable_instance(self, user_file):
        assert resolve(f"{user_file}:scaled")(completions=["a", "b"]) == [2.0, 2.0]

    def test_relative_file_made_absolute(self, user_file, monkeypatch):
        monkeypatch.chdir(user_file.parent)
        assert absolute("my_rewards.py:length") == f"{user_file}:length"
        assert absolute("math") == "math"
        assert resolve("my_rewards.py:length") is resolve(f"{user_file}:length")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mth", ["mth", "did you mean 'math'"]),
            ("rewards.math", ["package.module:fn"]),
            ("no_such_package.rewards:fn", ["no module named 'no_such_package'", "path/file.py:fn"]),
            ("rewards.no_such:fn", ["no module named 'rewards.no_such'"]),
            ("rewards.math:math_rewrd", ["no function 'math_rewrd'", "did you mean 'math_reward'"]),
            ("rewards.base:OK", ["expected a function", "str"]),
            ("rewards.base:Verdict", ["class"]),
        ],
    )
    def test_names_that_do_not_resolve(self, name, words):
        with pytest.raises(RewardLoadError) as caught:
            resolve(name)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("attribute", "words"),
        [
            ("lenght", ["my_rewards.py", "did you mean 'length'"]),
            ("NUMBER", ["expected a function", "int"]),
            ("no_completions", ["expected def fn(prompts, completions, **columns)", "(texts, answer)"]),
            ("positional", ["positional-only"]),
        ],
    )
    def test_functions_that_do_not_fit(self, user_file, attribute, words):
        with pytest.raises(RewardLoadError) as caught:
            resolve(f"{user_file}:{attribute}")
        for word in words:
            assert word in str(caught.value)

    def test_absent_file_lists_what_is_there(self, user_file):
        with pytest.raises(RewardLoadError, match=r"no file .*my_reward\.py; .*my_rewards\.py"):
            resolve(f"{user_file.parent}/my_reward.py:length")

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("x = 1\ny = 1 / 0\n", ["line 2", "ZeroDivisionError"]),
            ("def broken(:\n", ["line 1", "SyntaxError"]),
            ("import no_such_thing\n", ["line 1", "No module named 'no_such_thing'"]),
        ],
    )
    def test_file_that_fails_to_import_names_its_line(self, tmp_path, source, words):
        path = tmp_path / "broken.py"
        path.write_text(source)
        with pytest.raises(RewardLoadError) as caught:
            resolve(f"{path}:fn")
        for word in [str(path), *words]:
            assert word in str(caught.value)

    def test_a_file_shadows_no_installed_package(self, tmp_path):
        (tmp_path / "rewards.py").write_text("def fn(completions):\n    return [1.0]\n")
        (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')\n")
        assert resolve(f"{tmp_path}/rewards.py:fn")(completions=["x"]) == [1.0]
        assert sys.path[0] != str(tmp_path)
        assert resolve("math").__module__ == "rewards.math"

    def test_import_is_light(self):
        code = (
            "import sys, rewards.base, rewards.runner, rewards.format, rewards.math; "
            "print([m for m in ('ray', 'torch', 'sympy', 'math_verify', 'numpy') if m in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert result.stdout.strip() == "[]"


def test_signature_says_which_columns_are_missing():
    def fn(prompts, completions, answer, level, hint="", *, log_extra):
        return []

    signature = signature_of(fn)
    assert signature.missing(["answer"]) == ["level"]
    assert signature.missing(["answer", "level", "other"]) == []
    assert signature.accepts("hint")
    assert not signature.accepts("other")
    assert signature_of(lambda completions, **kw: []).accepts("other")


class TestToVerdicts:
    def test_what_counts_as_a_score(self):
        given_verdict = Verdict(0.5, detail="seen")
        values = [1, 0.5, np.float32(0.25), np.int64(2), None, given_verdict]
        scores = [(v.score, v.status) for v in to_verdicts("f", values, 6)]
        assert scores == [(1.0, OK), (0.5, OK), (0.25, OK), (2.0, OK), (0.0, NOT_APPLICABLE), (0.5, OK)]

    def test_arrays_are_lists(self):
        assert [v.score for v in to_verdicts("f", np.array([1.0, 2.0]), 2)] == [1.0, 2.0]

    @pytest.mark.parametrize(
        "value", [math.nan, math.inf, -math.inf, True, np.bool_(True), "1.0", [1.0], {"score": 1.0}, 1j]
    )
    def test_what_does_not_makes_its_own_row_an_error(self, value):
        verdicts = to_verdicts("my_fn", [1.0, value, 0.0], 3, first_row=10)
        assert [v.status for v in verdicts] == [OK, ERROR, OK]
        assert "'my_fn', row 11" in verdicts[1].detail

    @pytest.mark.parametrize(
        "result", [0.5, np.float64(0.5), np.array(0.5), "ab", b"ab", None, {"a": 1.0, "b": 2.0}, iter([1.0, 2.0])]
    )
    def test_a_single_value_is_not_spread_over_the_rows(self, result):
        with pytest.raises(RewardContractError, match=r"'my_fn': expected a list of 2 scores"):
            to_verdicts("my_fn", result, 2)

    @given(st.lists(st.floats(allow_nan=True, allow_infinity=True)), st.integers(0, 5))
    def test_any_count_but_the_right_one_is_refused(self, values, num_rows):
        if len(values) == num_rows:
            verdicts = to_verdicts("f", values, num_rows)
            assert [v.ok for v in verdicts] == [math.isfinite(value) for value in values]
            assert all(math.isfinite(v.score) for v in verdicts)
        else:
            with pytest.raises(RewardContractError, match=rf"expected {num_rows} scores, one a row, got {len(values)}"):
                to_verdicts("f", values, num_rows)
