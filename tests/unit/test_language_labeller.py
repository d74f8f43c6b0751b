"""The table of languages, the Declaration's articles, and the language labeller's decisions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.labellers.language import LACKED, ask_py3langid, decide, language, num_letters
from pretrain.data.languages import LANGUAGES, PY3LANGID, close_to, written_in
from pretrain.data.ngrams import Features, fit, save
from pretrain.data.scripts import pieces
from pretrain.data.udhr import NUM_ARTICLES, read_articles, rows, split_articles
from rewards.language import identifier
from rlplatform.datafiles import DataError

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
UDHR, NAMES = DATA / "udhr" / "udhr.jsonl.gz", DATA / "languages" / "qwen3_119.jsonl"

ENGLISH = "All human beings are born free and equal in dignity and rights."
GERMAN = "Alle Menschen sind frei und gleich an Würde und Rechten geboren."


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_119_languages_once_each() -> None:
    assert len(LANGUAGES) == 119
    assert len({one.code for one in LANGUAGES}) == len({one.name for one in LANGUAGES}) == 119
    assert all(len(one.iso) == 3 and one.iso.islower() for one in LANGUAGES)
    translations = [code for one in LANGUAGES for code in one.udhr]
    assert len(translations) == len(set(translations))


def test_the_names_are_the_releases() -> None:
    if not NAMES.exists():
        pytest.skip(f"{NAMES} is not here")
    assert [one.name for one in LANGUAGES] == [json.loads(line)["language"] for line in NAMES.open()]


def test_every_label_of_py3langid_has_a_code_and_no_other_has() -> None:
    assert set(identifier().labels) == {*PY3LANGID, "zxx"}
    assert len(LACKED) == 31  # 18 with a translation, 13 without
    assert sum(bool(one.udhr) for one in LANGUAGES if one.iso in LACKED) == 18


def test_groups_and_scripts() -> None:
    assert close_to("ind") == {"ind", "zsm"}
    assert close_to("eng") == {"eng"}
    assert written_in("eng") == {"Latn"}
    assert written_in("srp") == {"Latn", "Cyrl"}
    assert written_in("zho") == {"Hans", "Hant", "Hani"}


# --- articles -------------------------------------------------------------------------------------------------------


def declaration(heading: str = "Article {n}") -> str:
    body = "\n".join(f"{heading.format(n=n)}\nText number words {n * 7} and so on.\nMore of it." for n in range(1, 31))
    return f"Title\nPreamble\n1. a line that has a number, and is much too long to be a heading\n{body}"


@pytest.mark.parametrize("heading", ["Article {n}", "{n}", "{n}. grein.", "第{n}条"])
def test_articles_by_numbered_headings(heading: str) -> None:
    found = split_articles(declaration(heading))
    assert found is not None
    assert len(found) == NUM_ARTICLES
    assert found[4] == "Text number words 35 and so on.\nMore of it."


def test_articles_by_other_digits_and_by_equal_beginnings() -> None:
    devanagari = declaration().translate({ord(str(d)): chr(0x966 + d) for d in range(10)})
    assert len(split_articles(devanagari) or []) == NUM_ARTICLES
    words = [f"Kifungu cha {'abcdefghijklmnopqrstuvwxyzABCD'[n]}" for n in range(30)]
    text = "\n".join(
        f"{word}\nA text that is longer than any heading can be, number {n}." for n, word in enumerate(words)
    )
    assert len(split_articles(text) or []) == NUM_ARTICLES


def test_a_text_without_30_headings_has_no_articles() -> None:
    text = "\n".join(f"Article {n}\nA text that is longer than any heading can be, {n}." for n in range(1, 31))
    assert split_articles(text) is not None
    assert split_articles(text.replace("Article 17\n", "")) is None
    assert split_articles("") is None


def test_unusable_translations_are_listed_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    good, hole = declaration(), declaration().replace("Text number words 14 and so on.\nMore of it.", "&1")
    texts = {"eng": good, "deu_1996": good + "!", "xx1": "same", "xx2": "same", "xx3": "short", "fra": hole}
    path.write_text("\n".join(json.dumps({"code": c, "iso6393": c[:3], "text": t}) for c, t in texts.items()))
    articles, unused = read_articles(path)
    assert unused == {
        "xx1": "the same text stands under xx1, xx2",
        "xx2": "the same text stands under xx1, xx2",
        "xx3": "no 30 headings found",
    }
    assert [a.number for a in articles if a.language == "fra"] == [n for n in range(1, 31) if n != 2]
    made = list(rows(seed=0, path=str(path))["train"])
    assert {row["language"] for row in made} == {"deu", "eng", "fra"}
    assert made[2] == {"text": articles[2].text, "language": "eng", "translation": "eng", "article": "3"}
    path.write_text(json.dumps({"code": "eng", "text": 3}))
    with pytest.raises(DataError, match=r"u.jsonl:1: expected texts in code, iso6393 and text; iso6393, text is not"):
        read_articles(path)


def test_the_collections_translations_of_the_119_have_their_articles() -> None:
    if not UDHR.exists():
        pytest.skip(f"{UDHR} is not here")
    articles, unused = read_articles(UDHR)
    found = {a.translation for a in articles}
    assert {code for one in LANGUAGES for code in one.udhr} <= found
    assert unused["ckb"] == unused["kmr"] == "the same text stands under ckb, kmr"
    english = {a.number: a.text for a in articles if a.translation == "eng"}
    assert english[3] == "Everyone has the right to life, liberty and the security of person."
    assert len(english) == 30


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        ("aa bb cc dd e", 6, ["aa bb", "cc dd e"]),
        ("aa bb cc dd ee", 5, ["aa bb", "cc dd", "ee"]),
        ("我們在這裡住", 2, ["我們", "在這", "裡住"]),
        ("word", 10, ["word"]),
        ("  ", 10, []),
        ("a\nb", 1, ["a", "b"]),
    ],
)
def test_pieces(text: str, size: int, found: list[str]) -> None:
    assert pieces(text, size) == found


@settings(deadline=None)
@given(st.text(alphabet="ab \n中", max_size=60), st.integers(1, 20))
def test_pieces_lose_nothing(text: str, size: int) -> None:
    found = pieces(text, size)
    assert "".join("".join(found).split()) == "".join(text.split())


# --- decisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "own", "written", "said"),
    [
        (("deu", 0.9, 1.0), ("unknown", 0.0), "Latn", ("deu_Latn", 0.9)),
        (("deu", 0.9, 0.1), ("unknown", 0.0), "Latn", ("unknown", 0.0)),  # hesitates
        (("deu", 0.9, 0.1), ("deu", 0.3), "Latn", ("deu_Latn", 0.9)),  # hesitates, and is confirmed
        (("deu", 0.9, 0.1), ("nld", 0.9), "Latn", ("unknown", 0.0)),  # hesitates, and is contradicted
        (("deu", 0.9, 1.0), ("nld", 0.9), "Latn", ("deu_Latn", 0.9)),  # is sure of what it knows
        (("spa", 0.9, 1.0), ("ast", 0.6), "Latn", ("ast_Latn", 0.6)),  # cannot know Asturian
        (("spa", 0.9, 1.0), ("ast", 0.4), "Latn", ("spa_Latn", 0.9)),
        (("spa", 0.9, 1.0), ("ydd", 0.9), "Latn", ("spa_Latn", 0.9)),  # Yiddish is not written so
        (("cos", 0.9, 1.0), ("ast", 0.9), "Latn", ("cos_Latn", 0.9)),  # the classifier has no Corsican to compare with
        (("cos", 0.9, 0.1), ("ast", 0.9), "Latn", ("ast_Latn", 0.9)),
        (("eng", 0.9, 1.0), ("unknown", 0.0), "Tfng", ("unknown", 0.0)),  # nor English so
        (("unknown", 0.9, 1.0), ("unknown", 0.0), "Latn", ("unknown", 0.0)),  # py3langid's `zxx`
        (("srp", 0.9, 1.0), ("unknown", 0.0), "Cyrl", ("srp_Cyrl", 0.9)),
        (("zho", 0.9, 1.0), ("unknown", 0.0), "Hant", ("zho_Hant", 0.9)),
    ],
)
def test_who_decides(library: tuple, own: tuple, written: str, said: tuple) -> None:
    taught = frozenset({"deu", "nld", "spa", "ast", "ydd", "eng"})
    assert decide(library, own, taught, written, 0.2, 0.5) == said


def test_py3langids_probability_and_lead() -> None:
    ranked = {name: float(nats) for name, nats in identifier().rank(GERMAN)}
    code, probability, lead = ask_py3langid(GERMAN)
    assert code == "deu"
    assert probability == pytest.approx(1 / sum(math.exp(nats - ranked["de"]) for nats in ranked.values()))
    rival = max(nats for name, nats in ranked.items() if name != "de")
    assert lead == pytest.approx((ranked["de"] - rival) / len(GERMAN))
    _, _, of_group = ask_py3langid("Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama.")
    assert of_group > 0.2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENGLISH, "eng_Latn"),
        (GERMAN, "deu_Latn"),
        ("Все люди рождаются свободными и равными в своем достоинстве и правах.", "rus_Cyrl"),
        ("人人生而自由，在尊严和权利上一律平等。", "zho_Hans"),
        ("人人生而自由，在尊嚴和權利上一律平等。", "zho_Hant"),
        ("すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。", "jpn_Jpan"),
        ("सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।", "hin_Deva"),
        ("Hi there", "unknown"),  # too few letters
        ("https://example.com/a/very/long/address/without/any/language 123456", "unknown"),
        ("ⵉⵎⴷⴰⵏⴻⵏ ⴰⴽⴽⵏ ⵎⴰ ⵍⵍⴰⵏ ⵜⵜⵍⴰⵍⵏ ⴷ ⵉⵍⴻⵍⵍⵉⵢⵏ", "unknown"),  # Tifinagh: py3langid has no such language
        ("", "unknown"),
    ],
)
def test_languages_of_sentences(text: str, said: str) -> None:
    [answer] = language([text])
    assert answer["language"][0] == said
    assert num_letters("ab 中文 한") == 2 + 9


def test_a_classifier_adds_what_py3langid_lacks(tmp_path: Path) -> None:
    """A small model of two languages: what it does not know it cannot take from py3langid."""
    asturian = (
        "Tolos seres humanos nacen llibres y iguales en dignidá y drechos y, pola mor de la razón y la conciencia"
    )
    spanish = "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón"
    texts = [part for text in (asturian, spanish) for part in pieces(text * 3, 40)]
    gold = ["ast"] * len(pieces(asturian * 3, 40)) + ["spa"] * len(pieces(spanish * 3, 40))
    model = fit(texts, gold, label="language", features=Features(buckets=4096))
    save(model, tmp_path / "m.npz", texts)
    path = str(tmp_path / "m.npz")
    assert language([asturian], model=path)[0]["language"][0] == "ast_Latn"
    assert language([spanish, GERMAN], model=path)[1]["language"][0] == "deu_Latn"
    assert language([asturian])[0]["language"][0] in ("spa_Latn", "unknown")
