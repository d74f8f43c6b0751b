"""`language`: thoughts and answers in one language, or in two."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rewards.base import OK, UNPARSEABLE
from rewards.language import canonical_code, language_reward, measure

DATA = Path(__file__).parents[2].parent / "shared" / "data"
EN = "The train leaves the station at noon and arrives in the evening."
EN2 = "We add both distances and divide the sum by the speed of the train."
DE = "Der Zug verlässt den Bahnhof am Mittag und kommt am Abend an."
DE2 = "Wir addieren beide Strecken und teilen die Summe durch die Geschwindigkeit."
FR = "Le train quitte la gare à midi et arrive le soir même à destination."
ES = "El tren sale de la estación al mediodía y llega por la noche."
RU = "Поезд отправляется со станции в полдень и прибывает вечером."
UK = "Потяг вирушає зі станції опівдні та прибуває ввечері до міста."
ZH = "火车中午离开车站，晚上到达。"
ZH2 = "我们把两段距离相加，再除以速度。"
JA = "電車は正午に駅を出て、夜に到着します。"
KO = "기차는 정오에 역을 떠나 저녁에 도착합니다."
AR = "يغادر القطار المحطة عند الظهر ويصل في المساء."
HI = "ट्रेन दोपहर में स्टेशन से निकलती है और शाम को पहुँचती है।"

# (language, completion, lowest and highest score)
TABLE = [
    ("en", EN, 1, 1),
    ("de", DE, 1, 1),
    ("fr", FR, 1, 1),
    ("es", ES, 1, 1),
    ("ru", RU, 1, 1),
    ("uk", UK, 1, 1),
    ("zh", ZH, 1, 1),
    ("ja", JA, 1, 1),
    ("ko", KO, 1, 1),
    ("ar", AR, 1, 1),
    ("hi", HI, 1, 1),
    ("en", DE, 0, 0),
    ("de", EN, 0, 0),
    ("fr", ES, 0, 0),
    ("es", FR, 0, 0),
    ("uk", RU, 0, 0),
    ("ru", UK, 0, 0),
    ("en", ZH, 0, 0),
    ("zh", EN, 0, 0),
    ("zh", JA, 0, 0.6),
    ("ko", ZH, 0, 0.0),
    ("ja", KO, 0, 0),
    ("hi", AR, 0, 0),
    # thoughts in one language, the answer in another
    ("de", f"<think>{EN} {EN2}</think>{DE}", 0.25, 0.45),
    ("de", f"<think>{DE} {DE2}</think>{DE}", 1, 1),
    ("zh", f"<think>{EN}</think>{ZH}", 0.05, 0.3),
    ("zh", f"<think>{ZH}{ZH2}</think>{ZH}", 1, 1),
    ("en", f"<think>{ZH}{ZH2}</think>{EN}", 0.6, 0.75),
    ("en", f"<think>{DE} {EN} {DE2} {EN2}</think>{EN}", 0.45, 0.75),
    # within one text
    ("en", f"{EN} {DE2} {EN2}", 0.5, 0.75),
    ("zh", f"{ZH}{EN}{ZH2}", 0.2, 0.5),
    ("en", f"{EN} The word 火车 means train in Chinese.", 0.95, 0.99),
    ("zh", "我们用 Python 写一个程序，计算火车的平均速度和到达时间。", 0.7, 0.85),
    # what belongs to no language
    ("de", f"{DE} ```python\nfor train in station: print('the evening train leaves')\n``` {DE2}", 1, 1),
    ("zh", f"{ZH} $x = \\frac{{distance}}{{speed}}$ {ZH2} \\boxed{{42}}", 1, 1),
    ("zh", f"{ZH} https://example.org/the/evening/train <|im_end|>", 1, 1),
    ("de", "42", 1, 1),
    ("zh", r"\boxed{42}", 1, 1),
    ("zh", "x = y", 1, 1),
    ("de", "Ja.", 1, 1),
    ("en", "Yes", 1, 1),
    ("en", "", 0, 0),
    ("en", "  \n", 0, 0),
    # other alphabets behind familiar letters
    ("en", "Тhе trаin lеаvеs thе stаtiоn аt nооn аnd аrrivеs in thе еvеning.", 0, 0.75),
    ("EN", EN, 1, 1),
    ("zh-CN", ZH, 1, 1),
    ("en_US", EN, 1, 1),
]


@pytest.mark.parametrize(("language", "completion", "low", "high"), TABLE)
def test_table(language, completion, low, high):
    [verdict] = language_reward(["x"], [completion], [language])
    assert verdict.status == OK
    assert low <= verdict.score <= high


@pytest.mark.parametrize("language", [None, "", "english please", "xx", 7, ["en"], "zxx"])
def test_languages_that_cannot_be_read(language):
    [verdict] = language_reward(["x"], [EN], [language])
    assert verdict.status == UNPARSEABLE


def test_parts_and_switches():
    [verdict] = language_reward(["x"], [f"<think>{EN} {DE2} {EN2}</think>{DE}"], ["en"])
    assert verdict.parts["answer"] == 0.0
    assert 0.5 < verdict.parts["thought"] < 0.75
    assert verdict.parts["switches"] == 2
    assert "addieren" in verdict.detail


def test_a_block_that_the_prompt_opened():
    [verdict] = language_reward(["<think>"], [f"{EN}</think>{DE}"], ["de"])
    assert verdict.parts == {"answer": 1.0, "thought": 0.0, "switches": 0.0}
    [verdict] = language_reward(["<think>"], [EN], ["de"])
    assert verdict.score == 0.0


def test_codes():
    assert [canonical_code(code) for code in ("de", "pt-BR", "nb", "fil", "zh_TW")] == ["de", "pt", "no", "tl", "zh"]


def test_grade_school_questions_in_eleven_languages():
    """Each question is in its own language, and in none of the others."""
    path = DATA / "mgsm" / "mgsm.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::10]
    languages = sorted({row["lang"] for row in rows})
    for row in rows:
        other = languages[(languages.index(row["lang"]) + 3) % len(languages)]
        assert measure(row["question"], row["lang"]).share > 0.5
        assert measure(row["question"], other).share < 0.2
    own = [measure(row["question"], row["lang"]).share for row in rows]
    assert sum(own) / len(own) > 0.97
