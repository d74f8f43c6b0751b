r"""The `math` reward against labels set by hand. Every call here is bounded: hostile answers go through a pool."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.answer import after_thoughts, last_box
from rewards.base import OK, TIMEOUT, UNPARSEABLE
from rewards.math import grade, is_equal, math_reward
from rewards.quantity import read_quantity, same_number
from rewards.runner import RewardPool

DATA = Path(__file__).parents[2].parent / "shared" / "data"

# (reference, answer): equal, by hand
EQUAL = [
    # plain numbers, as people write them
    ("7", "7"),
    ("7", "7.0"),
    ("7", "07"),
    ("7", "+7"),
    ("7", "7."),
    ("7", " 7 "),
    ("-3", "-3"),
    ("-3", "−3"),
    ("0", "-0"),
    ("0.5", ".5"),
    ("0.50", "0.5"),
    ("1234", "1,234"),
    ("1,234,567", "1234567"),
    ("12345", r"12{,}345"),
    ("12000", r"12\,000"),
    ("12000", "12 000"),
    ("1234.5", "1,234.50"),
    ("18", r"\$18"),
    ("18", "$18"),
    ("18", "$18.00"),
    ("70000", "$70,000"),
    ("7", "$7$"),
    ("7", r"\(7\)"),
    # units and words behind a number
    ("72", "72 dollars"),
    ("72", r"72\text{ cm}^2"),
    ("72", r"72\ \text{cm}"),
    ("5 cm", r"5\text{ centimeters}"),
    (r"5\text{ ft}", "5 feet"),
    ("5 hours", "5"),
    ("10 apples", "10 apples"),
    ("10", "10 apple trees"),
    ("90", r"90^\circ"),
    (r"90^{\circ}", r"90^\circ"),
    ("90", "90 degrees"),
    (r"\frac{1}{2}", r"\frac{1}{2}\text{ hour}"),
    (r"\frac{1}{2}\text{ hours}", r"0.5\text{ hr}"),
    (r"2\sqrt{3}\text{ cm}", r"\sqrt{12} \text{ centimeters}"),
    (r"2\pi", r"2\pi \text{ m}"),
    # percent
    (r"50\%", "50%"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    (r"50\%", r"\frac{1}{2}"),
    ("50", r"50\%"),
    ("0.5", "50%"),
    # fractions, roots, powers, constants
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{1}{2}", r"\frac{2}{4}"),
    ("-1/3", r"-\frac{1}{3}"),
    (r"-\frac{1}{3}", r"\frac{-1}{3}"),
    (r"\frac{1}{3}", "0.333333"),
    ("0.166667", "0.1666666667"),
    ("3.1415927", "3.141593"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"2\pi", r"\pi \cdot 2"),
    ("1000000", "10^6"),
    ("1024", "2^{10}"),
    (r"\frac{1}{\mathrm{e}}", "e^{-1}"),
    ("10", "2+8"),
    ("120", "5!"),
    (r"\sin\frac{\pi}{6}", r"\frac{1}{2}"),
    (r"\log_2 8", "3"),
    # algebra
    ("x^2+2x+1", "(x+1)^2"),
    ("x^2+2x+1", "1+2x+x^2"),
    (r"\frac{x+1}{2}", r"\frac{1}{2}x+\frac{1}{2}"),
    ("2x+3", "3+2x"),
    ("a + b + c", "c+a+b"),
    (r"\sin^2 t", r"1-\cos^2 t"),
    (r"\frac{1}{20,\!000}", "0.00005"),
    ("ab", "ba"),
    # equations
    ("5", "x=5"),
    ("5", r"n = 5"),
    ("5", "f(2)=5"),
    ("5", r"\theta = 5"),
    ("5", "2+3=5"),
    ("12", "12=3\\cdot 4"),
    ("x=5", "5"),
    ("x=5", "x = 5"),
    ("y=2x+3", "y=3+2x"),
    ("y=2x+3", "2x+3"),
    ("y=2x+3", "y-2x=3"),
    # pairs, sets, intervals, matrices
    ("(1,2)", "(1, 2)"),
    ("(1,2)", r"\left(1, 2\right)"),
    (r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)"),
    ("1,2", "2, 1"),
    (r"\{1,2\}", r"\{2, 1\}"),
    (r"\{1,2\}", "1, 2"),
    ("1,2", "1 and 2"),
    ("[1,2)", "[1, 2)"),
    (r"x \in [1,2]", "[1,2]"),
    (r"(-\infty,2]", r"x \le 2"),
    (r"(-\infty,2]", r"x \leq 2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # words and choices
    ("Evelyn", r"\text{Evelyn}"),
    (r"\text{Evelyn}", "Evelyn"),
    ("yes", r"\text{Yes}"),
    (r"\text{even}", "Even."),
    ("New York", r"\textbf{New  York}"),
    ("B", "(B)"),
    ("B", r"\textbf{(B)}"),
    ("B", r"\textbf{(B)}\ 7"),
    ("B", "B. seven"),
    ("(B)", r"\text{B}"),
    ("11:30", "11 : 30"),
    ("3:2", "3:2"),
    (r"1, 2, \ldots, n", r"1,2,\ldots,n"),
]

# (reference, answer): different, by hand
DIFFERENT = [
    ("7", "8"),
    ("7", "-7"),
    ("7", "77"),
    ("7", "7.1"),
    ("7", "70"),
    ("7", ""),
    ("7", " "),
    ("7", r"\text{}"),
    ("1000000", "1000001"),
    ("10^{20}", "10^{20}+1"),
    ("123456789012345678901234567890", "123456789012345678901234567891"),
    ("3.14", r"\pi"),
    ("3.14159", r"\pi"),
    ("0.3333", "1/3"),
    ("0.1667", "0.1666667"),
    ("0.166667", "0.1666"),
    ("999999.001", "1000000.001"),
    ("0.123456", "0.123457"),
    ("100", r"10\,0"),
    ("12", "1 2"),
    ("1", "1e1"),
    # contradictions
    ("7", "8=7"),
    ("7", "7=8"),
    ("7", "x=8=7"),
    ("5", "2+2=5"),
    ("7", "x"),
    ("7", "x=y"),
    ("x=5", "y=5"),
    # enumerations of candidates
    ("7", "6 or 7"),
    ("7", "6, 7"),
    ("7", "7, 7"),
    ("7", "7; 8"),
    ("7", r"6 \text{ or } 7"),
    ("7", r"\pm 7"),
    ("7", r"\{6, 7\}"),
    ("1", r"\{1, 1\}"),
    ("7", "7 and 8"),
    ("1,2", "1,2,3"),
    ("1,2", "1"),
    ("B", "A or B"),
    ("B", "A, B"),
    ("2", "a=1, b=2"),
    # almost
    ("4", r"4\sqrt{2}"),
    ("4", r"4\sqrt(2)"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("2^{-99}", "2^{-98}"),
    ("10^{-12}", "10^{-13}"),
    (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    (r"1,2,\ldots,n", r"1,3,5,\ldots,2n-1"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("7", "7x"),
    ("7x", "7"),
    ("7", "x_7"),
    ("5", "5!"),
    ("12", "12+x-x+1"),
    ("x+1", "x-1"),
    ("x^2", "x^3"),
    ("2x", "2y"),
    ("1/2", "1:3"),
    ("11:30", "11.30"),
    ("11:30", "11/30"),
    ("5 dozen", "5"),
    ("5", "5 dozen"),
    ("5", "5 million"),
    ("5", "5 squared"),
    (r"5\text{ cm}", r"5\text{ km}"),
    (r"5\text{ cm}", r"5\text{ cm}^2"),
    ("5 hours", "5 minutes"),
    (r"2\sqrt{3}\text{ cm}", r"\sqrt{12}\text{ m}"),
    ("6", r"6\text{ or more}"),
    (r"6\text{ or more}", "6"),
    ("2", "2 t"),
    ("5m", "5"),
    ("a+b", "a + b + c"),
    (r"50\%", "5"),
    (r"50\%", "0.05"),
    (r"50\%", "5000"),
    # brackets and order
    ("(1,2)", "(2,1)"),
    ("(1,2]", "[1,2]"),
    ("[1,2]", "(1,2)"),
    (r"(-\infty,2]", "x < 2"),
    (r"(-\infty,2)", r"x \le 2"),
    (r"x > 2", "x < 2"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    # words and letters
    ("dogs", "gods"),
    (r"\text{dog}", r"\text{god}"),
    ("Evelyn", "Evelyne"),
    ("yes", "no"),
    ("even", "odd"),
    ("7", r"\text{seven}"),
    ("7", "seven"),
    ("7", r"\text{not } 7"),
    ("B", "(C)"),
    ("B", r"\textbf{(C)}\ B"),
    ("B", "b+c"),
    ("Evelyn", "7"),
    ("7", r"\text{Evelyn}"),
    ("7", r"\infty"),
    ("7", r"\emptyset"),
    ("7", "{7"),
    ("7", r"\frac{7}{"),
    ("7", r"\undefined{7}"),
]


@pytest.mark.parametrize(("gold", "pred"), EQUAL)
def test_equal(gold, pred):
    assert is_equal(gold=gold, pred=pred)


@pytest.mark.parametrize(("gold", "pred"), DIFFERENT)
def test_different(gold, pred):
    assert not is_equal(gold=gold, pred=pred)


def test_the_table_is_large_enough():
    assert len(EQUAL) >= 80
    assert len(DIFFERENT) >= 80
    assert not set(EQUAL) & set(DIFFERENT)


# --- what is graded -------------------------------------------------------------------------------------------------

# (completion, opened by the prompt, score for the reference 7)
GRADED = [
    (r"\boxed{7}", False, 1),
    (r"<think>so</think>The answer is \boxed{7}.", False, 1),
    (r"so</think>\boxed{7}", True, 1),
    (r"so</think>\boxed{7}", False, 1),
    (r"<think>\boxed{8}</think>\boxed{7}", False, 1),
    (r"\boxed{8} no, \boxed{7}", False, 1),
    (r"\boxed{7} \boxed{8", False, 1),
    (r"\boxed {7}", False, 1),
    (r"\fbox{7}", False, 1),
    (r"\boxed{\boxed{7}}", False, 1),
    (r"\boxed{\text{7}}", False, 1),
    (r"\boxed{7} \boxed{8}", False, 0),
    (r"<think>\boxed{7}</think>", False, 0),
    (r"<think>\boxed{7}</think>The answer is 7", False, 0),
    (r"<think>\boxed{7}</think>\boxed{8}", False, 0),
    (r"<think>\boxed{7}", False, 0),
    (r"\boxed{7}", True, 0),
    (r"a</think>b<think>\boxed{7}", False, 0),
    (r"<think>a</think>\boxed{7}</think>\boxed{8}", False, 0),
    (r"<think>a</think>\boxed{7}</think>", False, 0),
    ("7", False, 0),
    ("#### 7", False, 0),
    ("", False, 0),
    ("", True, 0),
    (r"\boxed{}", False, 0),
    (r"\boxed{7", False, 0),
    (r"\boxed 7", False, 0),
    (r"\boxed{8=7}", False, 0),
    (r"\boxed{6, 7}", False, 0),
    (r"\boxed{7}}", False, 1),
    (r"so\\\boxed{7}", False, 1),
    (r"\\boxed{7}", False, 1),
]


@pytest.mark.parametrize(("completion", "opened", "score"), GRADED)
def test_only_the_last_box_after_the_thoughts_counts(completion, opened, score):
    verdict = grade(gold="7", completion=completion, opened=opened)
    assert (verdict.status, verdict.score) == (OK, float(score))
    assert verdict.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x \mid x>0\right\}} and }", r"\left\{x \mid x>0\right\}"),
        (r"\boxed{a} \boxed{{b}", "a"),
        (r"} \boxed{a}", "a"),
        (r"{ \boxed{a}", "a"),
        (r"\boxed{\boxed{a} b", "a"),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\boxed{" * 50_000, None),
        (r"\boxed{\}", None),
        ("boxed{7}", None),
        ("", None),
    ],
)
def test_last_box(text, expected):
    assert last_box(text) == expected


def test_after_thoughts():
    assert after_thoughts("a") == "a"
    assert after_thoughts("a</think>b</think>c") == "c"
    assert after_thoughts("<think>a") is None
    assert after_thoughts("a", opened=True) is None


# (reference as a dataset may hold it, answer, score)
@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        (7, "7"),
        (0.5, r"\frac{1}{2}"),
        ("Half of 14 is <<14/2=7>>7.\n#### 7", "7"),
        (r"So $x=\boxed{7}$.", "7"),
        ("$\\frac{1}{2}$", "0.5"),
        ("#### 1,234", "1234"),
    ],
)
def test_references_as_datasets_write_them(gold, pred):
    assert grade(gold=gold, completion=rf"\boxed{{{pred}}}").score == 1.0
    assert grade(gold=gold, completion=r"\boxed{99}").score == 0.0


@pytest.mark.parametrize(
    "gold", [None, "", "  ", "$", True, [7], {"a": 1}, r"\frac{1}{", "####", r"\boxed{}", "{", "+"]
)
def test_an_unreadable_reference_is_no_verdict_on_the_model(gold):
    for completion in (r"\boxed{7}", "", r"<think>", rf"\boxed{{{gold}}}"):
        verdict = grade(gold=gold, completion=completion)
        assert (verdict.status, verdict.score) == (UNPARSEABLE, 0.0)


def test_math_reward_takes_strings_and_messages_and_the_rendered_prompt():
    message = [{"role": "assistant", "content": r"so</think>\boxed{7}"}]
    verdicts = math_reward([[{"role": "user", "content": "?"}], "?"], [message, r"\boxed{8}"], ["7", "7"], level=[1, 2])
    assert [v.score for v in verdicts] == [1.0, 0.0]
    prompts, completions = ["?", "<think>\n"], [r"\boxed{7}", r"\boxed{7}"]
    assert [v.score for v in math_reward(prompts, completions, ["7", "7"])] == [1.0, 0.0]
    assert [v.score for v in math_reward(["?", "?"], completions, ["7", "7"], prompt_text=prompts)] == [1.0, 0.0]


# --- properties -----------------------------------------------------------------------------------------------------


@given(st.integers(), st.integers())
def test_integers_are_equal_exactly_when_they_are(a, b):
    assert is_equal(gold=str(a), pred=str(b)) == (a == b)
    assert is_equal(gold=str(a), pred=f"{a:,}")


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6), st.integers(0, 4)
)
def test_trailing_zeros_do_not_count(number, zeros):
    assert is_equal(gold=f"{number:f}", pred=f"{number:f}" + "0" * zeros)
    assert not is_equal(gold=f"{number:f}", pred=f"{number + 1:f}")


@given(st.text(alphabet="0123456789.,-+$% {}\\/=xe()abc", max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_an_ok_verdict_and_equals_itself_at_most(text):
    verdict = grade(gold="123457", completion=rf"\boxed{{{text}}}")
    assert verdict.status == OK
    quantity = read_quantity(text)
    if quantity is not None and quantity.number != "123457" and not quantity.percent:
        assert verdict.score == 0.0


def test_numbers_of_any_length_are_read_in_linear_time():
    long = "7" * 20_000
    assert is_equal(gold=long, pred="0" + long + ".0")
    assert not is_equal(gold=long, pred=long + "7")
    assert same_number("0." + "1" * 40, "0." + "1" * 45)
    assert not same_number("0." + "1" * 40, "0." + "1" * 39 + "2")
    assert not is_equal(gold="1" * 40 + r"\%", pred="0." + "1" * 40)
    assert same_number("0.1" + "0" * 60 + "1", "0.1") is False


# --- hostile answers ------------------------------------------------------------------------------------------------

HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"(10^{9})!",
    r"7^{10^{9}}",
    r"\frac{1}{1+" * 40 + "1" + "}" * 40,
    r"\frac{" * 40 + "1" + "}{2}" * 40,
]


def test_a_comparison_that_never_ends_inside_sympy_is_no_error():
    """sympy calls itself until Python stops it; the answer is another value all the same."""
    scaled = r"2\begin{pmatrix}1&0\\0&1\end{pmatrix}"
    for gold, pred in [("2^{1/3}", scaled), (scaled, "2^{1/3}")]:
        verdict = grade(gold=gold, completion=rf"\boxed{{{pred}}}")
        assert (verdict.status, verdict.score) == (OK, 0.0)


def test_hostile_answers_time_out_alone():
    """512 rows: the hostile ones are timeouts, every other row has its verdict, the pool is whole again."""
    completions = [rf"<think>a</think>\boxed{{{row % 10}}}" for row in range(512)]
    rows = {40 + 90 * number: answer for number, answer in enumerate(HOSTILE)}
    for row, answer in rows.items():
        completions[row] = rf"<think>a</think>\boxed{{{answer}}}"
    completions[500] = rf"<think>a</think>\boxed{{{'7' * 20_000}}}"
    with RewardPool({"math": 1.0}, num_processes=2, timeout_s=2.0) as pool:
        verdicts = pool.score(["q"] * 512, completions, {"answer": ["7"] * 512})
        assert {row for row, verdict in enumerate(verdicts) if verdict.status == TIMEOUT} == set(rows)
        expected = [float(row % 10 == 7 and row not in rows and row != 500) for row in range(512)]
        assert [verdict.score for verdict in verdicts] == expected
        assert pool.num_idle == 2


# --- real data ------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict]:
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_agreement_with_the_labels_of_sampled_math_solutions():
    """Eight sampled solutions to each of some MATH questions, with the label of another grader."""
    rows = read_jsonl(DATA / "math_cot_samples" / "math_cot_100.jsonl.gz")
    samples = [(row["gt"], text, label) for row in rows for text, label in zip(row["code"], row["score"], strict=True)]
    golds, texts, labels = zip(*samples, strict=True)
    with RewardPool({"math": 1.0}, num_processes=2, timeout_s=30.0) as pool:
        verdicts = pool.score(["q"] * len(texts), texts, {"answer": golds})
    assert {verdict.status for verdict in verdicts} == {OK}
    agree = sum((verdict.score == 1.0) == bool(label) for verdict, label in zip(verdicts, labels, strict=True))
    assert agree / len(samples) >= 0.99


def test_agreement_with_the_labels_of_gsm8k_model_solutions():
    """Model solutions to GSM8K end with `A: 42`; the label was made by comparing these strings."""
    rows = read_jsonl(DATA / "gsm8k" / "example_model_solutions.jsonl.gz")
    rows = random.Random(0).sample(rows, min(200, len(rows)))
    pairs = []
    for row in rows:
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for key in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            text = row[key]["solution"]
            boxed = re.sub(r"A: ?(.*)\s*$", lambda m: rf"\boxed{{{m[1]}}}", text)
            pairs.append((gold, boxed, row[key]["is_correct"]))
    agree = sum((grade(gold=gold, completion=text).score == 1.0) == label for gold, text, label in pairs)
    assert len(pairs) == 4 * len(rows)
    assert agree / len(pairs) >= 0.995
