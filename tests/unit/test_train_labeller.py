"""The n-gram classifier, its file, its scores, and what is held out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.document import document, label, write_shards
from pretrain.data.labellers.classifier import classifier
from pretrain.data.ngrams import Features, NgramModel, fit, load, normalised, save
from pretrain.data.scores import score
from pretrain.data.train_labeller import (
    Example,
    choose,
    cut,
    error_of,
    gold_of,
    group_of,
    read_examples,
    split,
    table,
    train_labeller,
    without_overlap,
)
from rlplatform.config import ConfigError, FeaturesConfig, GoldConfig, TrainLabellerConfig
from rlplatform.datafiles import DataError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
FRUITS, TOOLS = ("apple", "pear", "plum", "cherry"), ("hammer", "saw", "drill", "chisel")


def sentence(names: tuple[str, ...], n: int) -> str:
    return " ".join(names[(n * 7 + k * (n % 3 + 1)) % 4] + str(n * k) for k in range(6))


def texts_of(num: int) -> tuple[list[str], list[str]]:
    texts = [sentence(names, n) for names in (FRUITS, TOOLS) for n in range(num)]
    return texts, ["fruit"] * num + ["tool"] * num


# --- features and model ---------------------------------------------------------------------------------------------


def test_what_n_grams_are_taken_of() -> None:
    assert normalised("Caf\u0065\u0301  ÄRGER\n1984 ٣") == "caf\u00e9 ärger 0000 0"


def test_features_are_unit_vectors_of_log_counts() -> None:
    one = Features(characters=(0, 0), words=(1, 1), buckets=2**16)
    matrix = one.matrix(["a a a b", "", "b"]).toarray()
    assert np.linalg.norm(matrix, axis=1) == pytest.approx([1, 0, 1])
    a, b = np.log1p(3), np.log1p(1)
    assert sorted(matrix[0][matrix[0] > 0]) == pytest.approx(sorted([a / np.hypot(a, b), b / np.hypot(a, b)]))
    cut_off = Features(characters=(0, 0), words=(1, 1), max_characters=1)
    assert (cut_off.matrix(["a b"]) != cut_off.matrix(["a c"])).nnz == 0


@pytest.mark.parametrize(
    "bad",
    [{"characters": (2, 1)}, {"characters": (0, 3)}, {"characters": (0, 0)}, {"buckets": 1}, {"max_characters": 0}],
)
def test_features_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Features(**bad)
    with pytest.raises(ConfigError, match="expected"):
        FeaturesConfig(**bad)


def test_probabilities_are_a_softmax_of_the_products() -> None:
    features = Features(characters=(0, 0), words=(1, 1), buckets=64)
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(3, 64)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    model = NgramModel("x", ("a", "b", "c"), features, weights, bias)
    texts = ["one two", "", "three"]
    logits = features.matrix(texts).toarray().astype(np.float64) @ weights.T + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(texts), expected, rtol=1e-6)


def test_the_same_texts_give_the_same_model_and_other_processes_read_it(tmp_path: Path) -> None:
    texts, gold = texts_of(20)
    first, second = (fit(texts, gold, label="kind", features=Features(buckets=512)) for _ in range(2))
    assert first.digest == second.digest
    save(first, tmp_path / "m.npz", texts)
    code = (
        "import sys; from pretrain.data.ngrams import load; m = load(sys.argv[1]);"
        "print(m.digest, m.probabilities([sys.argv[2]]).tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.npz"), texts[0]], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split(maxsplit=1)[0] == first.digest
    np.testing.assert_allclose(json.loads(ran.stdout.split(maxsplit=1)[1]), first.probabilities(texts[:1]), rtol=1e-6)


def test_the_solution_is_scikit_learns_and_two_classes_are_two_rows() -> None:
    from sklearn.linear_model import LogisticRegression

    texts, gold = texts_of(20)
    features = Features(buckets=512)
    for classes in (gold, [name + str(n % 2) for n, name in enumerate(gold)]):
        model = fit(texts, classes, label="kind", features=features)
        theirs = LogisticRegression(C=10.0, max_iter=200, tol=1e-3).fit(features.matrix(texts), classes)
        assert model.classes == tuple(theirs.classes_)
        np.testing.assert_allclose(model.probabilities(texts), theirs.predict_proba(features.matrix(texts)), atol=1e-5)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        fit(["a", "b"], ["x", "x"], label="kind")
    texts, gold = texts_of(20)
    with pytest.raises(DataError, match="did not converge in 1 iterations"):
        fit(texts, gold, label="kind", features=Features(buckets=512), max_iterations=1)


def test_files_that_are_no_classifier_or_of_another_world(tmp_path: Path) -> None:
    texts, gold = texts_of(20)
    model = fit(texts, gold, label="kind", features=Features(buckets=512))
    path = tmp_path / "m.npz"
    save(model, path, texts)
    with np.load(path, allow_pickle=False) as file:
        kept = dict(file)
    np.savez(path, **{**kept, "logits": kept["logits"] + 1})
    with pytest.raises(DataError, match="its probes get other logits here"):
        load(path)
    np.savez(path, **{**kept, "about": np.array(json.dumps({**json.loads(str(kept["about"])), "format": 99}))})
    with pytest.raises(DataError, match="expected a classifier of format 1, got 99"):
        load(path)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="expected a classifier of format 1"):
        load(path)
    np.savez(path, about=np.array([object()], dtype=object))  # a pickle is never read
    with pytest.raises(DataError, match="expected a classifier"):
        load(path)
    with pytest.raises(DataError, match="no such file; a train_labeller stage leaves one"):
        load(tmp_path / "absent.npz")


def test_the_labeller_says_the_class_its_probability_and_unknown(tmp_path: Path) -> None:
    texts, gold = texts_of(20)
    model = fit(texts, gold, label="kind", features=Features(buckets=512))
    save(model, tmp_path / "m.npz", texts)
    probability = model.probabilities(["apple pear"]).max()
    assert classifier(["apple pear"], model=str(tmp_path / "m.npz")) == [{"kind": ("fruit", probability)}]
    [answer] = classifier(["apple pear"], model=str(tmp_path / "m.npz"), min_probability=1.0)
    assert answer["kind"][0] == "unknown"


def test_a_number_is_the_mean_of_its_levels(tmp_path: Path) -> None:
    texts, gold = texts_of(20)
    levels = ["0" if kind == "fruit" else "4" for kind in gold]
    model = fit(texts, levels, label="educational_value", features=Features(buckets=512))
    save(model, tmp_path / "m.npz", texts)
    [answer] = classifier(["apple hammer"], model=str(tmp_path / "m.npz"))
    assert answer == {"educational_value": pytest.approx(4 * model.probabilities(["apple hammer"])[0, 1])}
    examples_ = [Example("apple hammer", "1", "g")]
    assert error_of(model, examples_) == {"mean_absolute_error": pytest.approx(abs(answer["educational_value"] - 1))}
    named = fit(texts, gold, label="educational_value", features=Features(buckets=512))
    assert error_of(named, examples_) == {}
    save(named, tmp_path / "named.npz", texts)
    with pytest.raises(DataError, match="educational_value is a number, its classes are fruit, tool"):
        classifier(["x"], model=str(tmp_path / "named.npz"))


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    found = score(["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "x", "a"])
    assert found.accuracy == 3 / 6
    a, b, c = found.classes
    assert (a.precision, a.recall, a.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert (b.precision, b.recall, b.f1) == (1 / 2, 1 / 2, 1 / 2)
    assert (c.precision, c.recall, c.f1) == (0.0, 0.0, 0.0)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert found.majority == 3 / 6
    assert found.confusion == {"a": {"a": 2, "b": 1}, "b": {"b": 1, "x": 1}, "c": {"a": 1}}
    with pytest.raises(ValueError, match="one answer a text"):
        score(["a"], [])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_scores_equal_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    gold, said = [list(part) for part in zip(*pairs, strict=True)]
    found = score(gold, said)
    names = [one.name for one in found.classes]
    precision, recall, f1, support = precision_recall_fscore_support(gold, said, labels=names, zero_division=0)
    assert [one.precision for one in found.classes] == pytest.approx(list(precision))
    assert [one.recall for one in found.classes] == pytest.approx(list(recall))
    assert [one.f1 for one in found.classes] == pytest.approx(list(f1))
    assert [one.support for one in found.classes] == list(support)
    assert found.accuracy == pytest.approx(accuracy_score(gold, said))


# --- examples and splits --------------------------------------------------------------------------------------------


def row(text: str, n: int = 0, **meta: Any) -> dict[str, Any]:
    return document("web", str(n), f"w:{n}", text, meta)


def test_gold_by_source_by_column_and_by_label() -> None:
    one = row("t", kind="news")
    assert gold_of(one, GoldConfig(source={"web": "page"})) == ("page", "")
    assert gold_of(one, GoldConfig(source={"books": "book"})) == (None, "source web is not in gold.source")
    assert gold_of(one, GoldConfig(meta="kind")) == ("news", "")
    assert gold_of(one, GoldConfig(meta="topic")) == (None, "no column topic")
    by_model = GoldConfig(label="field")
    assert gold_of(one, by_model) == (None, "no label field")
    for value, found in (
        ("physics", ("physics", "")),
        ("unknown", (None, "label field is unknown")),
        ("!timeout: late", (None, "label field is timeout")),
    ):
        assert gold_of({**one, "labels": [label("field", value, "llm@1+a")]}, by_model) == found
    other = GoldConfig(label="field", labeller="llm@1+b")
    assert gold_of({**one, "labels": [label("field", "physics", "llm@1+a")]}, other) == (None, "no label field")
    for bad in ({}, {"meta": "a", "label": "b"}, {"meta": "a", "labeller": "b"}):
        with pytest.raises(ConfigError, match=r"gold"):
            GoldConfig(**bad).check()


def test_groups() -> None:
    assert group_of(row("A  b1"), "text") == group_of(row("a B2"), "text")  # the same words, other digits
    assert group_of(row("x", article="7"), "meta:article") == "7"
    with pytest.raises(DataError, match="expected a column article"):
        group_of(row("x"), "meta:article")
    with pytest.raises(DataError, match=r"found none: \{'no column kind': 1\}"):
        list(read_examples([row("x")], GoldConfig(meta="kind"), "text", Counter()))


def examples(num: int, classes: str = "ab") -> list[Example]:
    return [Example(f"text {c} {chr(97 + n)}", c, f"{c}{n}") for c in classes for n in range(num)]


def test_contradictions_rare_labels_and_surplus_are_left_out_and_counted() -> None:
    left_out: Counter[str] = Counter()
    given_ = [
        *examples(6),
        Example("Same words", "a", "g"),
        Example("same  WORDS", "b", "g"),
        Example("r", "rare", "r"),
    ]
    chosen, rare = choose(given_, 2, 5, 0, left_out)
    assert rare == {"rare": 1}
    assert Counter(one.gold for one in chosen) == {"a": 5, "b": 5}
    assert left_out == {
        "the same text has several labels": 2,
        "its label has too few documents": 1,
        "more than max_documents of its label": 2,
    }
    again, _ = choose(list(reversed(given_)), 2, 5, 0, Counter())
    assert {one.text for one in again} == {one.text for one in chosen}  # the order of the input does not matter


def test_groups_are_held_out_whole_and_the_same_whatever_the_order() -> None:
    given_ = examples(20)
    train, test = split(given_, 0.2, seed=1)
    assert Counter(one.gold for one in test) == {"a": 4, "b": 4}
    assert not {one.group for one in train} & {one.group for one in test}
    _, reversed_test = split(list(reversed(given_)), 0.2, seed=1)
    assert set(reversed_test) == set(test)
    assert set(split(given_, 0.2, seed=2)[1]) != set(test)
    parallel = [Example(f"{c}{n}", c, str(n)) for c in "abc" for n in range(10)]  # article n in three languages
    train, test = split(parallel, 0.2, seed=0)
    assert len({one.group for one in test}) == 2
    assert Counter(one.gold for one in test) == {"a": 2, "b": 2, "c": 2}
    assert cut([Example("aa bb cc dd", "a", "g")], 5) == [Example("aa bb", "a", "g"), Example("cc dd", "a", "g")]


def test_near_duplicates_of_the_training_are_not_scored() -> None:
    base = "one two three four five six seven eight nine ten eleven twelve"
    train = [Example(base, "a", "1"), Example("short text", "a", "2")]
    near = Example(base + " thirteen fourteen", "a", "3")  # 5 of 7 8-grams are known
    half = Example("x y z " + base, "a", "4")  # 5 of 8
    far = Example("x y z " + " ".join(base.split()[:9]) + " u v", "a", "5")  # 2 of 7
    left_out: Counter[str] = Counter()
    kept = without_overlap([near, half, far, Example("Short TEXT", "a", "6")], train, 0.5, left_out)
    assert kept == [far]
    assert left_out == {"a held-out text overlaps with the training": 3}
    assert without_overlap([near], train, 5 / 7, Counter()) == [near]


# --- the stage ------------------------------------------------------------------------------------------------------


def config(tmp_path: Path, **changes: Any) -> TrainLabellerConfig:
    values: dict[str, Any] = {
        "documents": (str(tmp_path / "documents"),),
        "run_dir": str(tmp_path / "run"),
        "label": "kind",
        "gold": GoldConfig(meta="kind"),
        "features": FeaturesConfig(buckets=2048),
    }
    return TrainLabellerConfig(**{**values, **changes})


def test_from_documents_to_a_model_and_its_scores(tmp_path: Path) -> None:
    texts, gold = texts_of(40)
    rows = [row(text, n, kind=kind) for n, (text, kind) in enumerate(zip(texts, gold, strict=True))]
    rows += [row("nothing known", 1000), row("one of a kind", 1001, kind="rare")]
    write_shards(rows, tmp_path / "documents", 13)
    summary = train_labeller(config(tmp_path))
    held = summary["held_out"]
    assert held["macro_f1"] == held["accuracy"] == 1.0
    assert held["majority_accuracy"] == 0.5
    assert set(held["labels"]) == {"fruit", "tool"}
    assert held["confusion"]["fruit"] == {"fruit": held["labels"]["fruit"]["texts"]}
    assert summary["left_out"]["no column kind"] == 1
    assert summary["rare_labels"] == {"rare": 1}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    model = load(tmp_path / "run" / "labeller.npz")
    assert model.digest == summary["model"]
    assert model.label == "kind"
    assert any("macro F1 1.000" in line for line in table(summary))
    assert train_labeller(config(tmp_path, run_dir=str(tmp_path / "again")))["model"] == summary["model"]


def test_gold_that_is_no_number_is_refused_for_a_number(tmp_path: Path) -> None:
    texts, gold = texts_of(20)
    write_shards(
        [row(t, n, kind=k) for n, (t, k) in enumerate(zip(texts, gold, strict=True))], tmp_path / "documents", 99
    )
    with pytest.raises(DataError, match="educational_value is a number of the schema, its gold has 'fruit'"):
        train_labeller(config(tmp_path, label="educational_value"))


def test_scores_are_low_where_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """Labels at random: a leak between the parts would show as a high score."""
    rng = np.random.default_rng(0)
    rows = [
        row(" ".join(rng.choice(["red", "green", "blue", "black", "white"], 12)), n, kind=str(rng.integers(2)))
        for n in range(300)
    ]
    write_shards(rows, tmp_path / "documents", 100)
    held = train_labeller(config(tmp_path))["held_out"]
    assert 0.25 < held["accuracy"] < 0.75


def test_a_label_that_is_all_in_one_part_is_an_error(tmp_path: Path) -> None:
    rows = [row(f"apple {chr(97 + n)}", n, kind="fruit", article="1") for n in range(20)]
    rows += [row(f"saw {chr(97 + n)}", n + 50, kind="tool", article="2") for n in range(20)]
    write_shards(rows, tmp_path / "documents", 100)
    with pytest.raises(DataError, match=r"labels fruit, tool: none of their texts is trained on"):
        train_labeller(config(tmp_path, split_by="meta:article", test_share=0.5))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"documents": ()}, "documents: expected"),
        ({"label": ""}, "label: expected"),
        ({"split_by": "meta:"}, "split_by: expected"),
        ({"split_by": "source"}, "split_by: expected"),
        ({"test_share": 1.0}, "test_share"),
        ({"max_overlap": 0.0}, "max_overlap"),
        ({"min_documents": 1}, "min_documents"),
        ({"max_documents": 5}, "min_documents <= max_documents"),
        ({"strength": 0.0}, "strength"),
    ],
)
def test_the_config_says_what_was_expected(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **changes)


def test_real_text_by_its_source(tmp_path: Path) -> None:
    """Web pages against encyclopedia articles: the source is the gold."""
    import gzip

    web, wiki = DATA / "pretrain" / "c4_demo.jsonl.gz", DATA / "pretrain" / "wiki_demo.txt.gz"
    if not web.exists():
        pytest.skip(f"{web} is not here")
    with gzip.open(web, "rt", encoding="utf-8") as file:
        pages = [json.loads(line)["text"][:2000] for line in file][:60]
    with gzip.open(wiki, "rt", encoding="utf-8") as file:
        articles = [line[:4000] for line in file if line.strip()]
    rows = [document("c4", str(n), f"c4:{n}", text) for n, text in enumerate(pages)]
    rows += [document("wiki", str(n), f"wiki:{n}", text) for n, text in enumerate(articles)]
    write_shards(rows, tmp_path / "documents", 100)
    summary = train_labeller(
        config(
            tmp_path,
            gold=GoldConfig(source={"c4": "web", "wiki": "encyclopedia"}),
            features=FeaturesConfig(characters=(0, 0), words=(1, 1), buckets=2**12),
            piece_characters=600,
        )
    )
    assert summary["held_out"]["macro_f1"] > 0.75
    assert summary["held_out"]["accuracy"] > summary["held_out"]["majority_accuracy"]
