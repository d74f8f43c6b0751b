"""Who can tell which of the report's 119 languages: py3langid, our n-gram classifier, both; writes docs/languages.md.

    python -m benchmarks.languages --udhr ../shared/data/udhr/udhr.jsonl.gz --others ../shared/data

Gold are articles of the Universal Declaration of Human Rights. The classifier is trained on 24 of the 30 articles of
each translation and all three are scored on the other six, in pieces of 200 characters: an article is held out in all
languages. ``--others`` adds texts of another kind: XCOPA, MGSM, XQuAD, Belebele, C4.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.data.label_schema import UNKNOWN
from pretrain.data.labellers.language import LACKED, ask_model, ask_py3langid, language
from pretrain.data.languages import LANGUAGES, PY3LANGID, Language
from pretrain.data.ngrams import NgramModel, fit, load, save
from pretrain.data.scores import Scores, score
from pretrain.data.scripts import pieces, script
from pretrain.data.udhr import Article, read_articles

HELD_OUT = (5, 10, 15, 20, 25, 30)
BOUNDS_CHOSEN_ON = (3, 8, 13, 18, 23, 28)
PIECE = 200  # characters
LABELLERS = ("py3langid", "ours", "both")
# ISO 639-3 codes of languages that are part of one that py3langid knows: Quechua, Chinese, Malay, Oromo, Pashto, Fula.
MEMBERS = frozenset(
    (
        *("qud", "qug", "qul", "quy", "quz", "qva", "qvc", "qvh", "qvm", "qvn", "qwh", "qxa", "qxn", "qxu"),
        *("cjy", "gan", "hak", "hsn", "nan", "cmn", "zlm", "gax", "pbu", "fuf", "und"),
    )
)
DOC = Path(__file__).parents[1] / "docs" / "languages.md"


@dataclass(frozen=True)
class Text:
    """A text whose language is known."""

    text: str
    gold: str  # a Language's code, or an ISO 639-3 code outside the 119
    group: str


def code_of(iso: str, text: str) -> str:
    """A language as the table has it: Chinese with the script of the text."""
    return f"{iso}_{script(text)}" if iso == "zho" else iso


def table_code(label: str) -> str:
    """A label as the table has it: ``zho_Hant`` stays, ``deu_Latn`` is ``deu``."""
    return label if label.startswith("zho_") else label.partition("_")[0]


def train(articles: Sequence[Article], path: Path) -> NgramModel:
    """The classifier of the languages of the 119 that have a translation, without the held-out articles."""
    listed = {code for one in LANGUAGES for code in one.udhr}
    chosen = [one for one in articles if one.translation in listed and one.number not in HELD_OUT]
    texts = [(part, one.language) for one in chosen for part in pieces(one.text, PIECE)]
    model = fit([text for text, _ in texts], [gold for _, gold in texts], label="language")
    save(model, path, [text for text, _ in texts])
    return load(path)


def held_out(articles: Iterable[Article]) -> list[Text]:
    """Pieces of held-out articles: ``listed`` languages, and ``unseen`` ones that neither labeller knows."""
    listed = {code for one in LANGUAGES for code in one.udhr}
    isos = {one.iso for one in LANGUAGES}
    known = {*PY3LANGID.values(), *isos, *MEMBERS}
    found = []
    for one in articles:
        if one.number not in HELD_OUT or (one.translation not in listed and one.language in known):
            continue
        group = "listed" if one.translation in listed else "unseen"
        found += [Text(part, code_of(one.language, part), group) for part in pieces(one.text, PIECE)]
    return found


def answers(texts: Sequence[str], model_path: Path) -> dict[str, list[str]]:
    """What each labeller says of each text; py3langid and ours must say something, both may say `unknown`."""
    shown = [" ".join(text.split()) for text in texts]
    library = [code_of(ask_py3langid(text)[0], text) for text in shown]
    own = [code_of(said, text) for (said, _), text in zip(ask_model(load(model_path), shown), shown, strict=True)]
    labels = [answer["language"] for answer in language(texts, model=str(model_path))]
    both = [table_code(label[0]) for label in labels if isinstance(label, tuple)]
    return {"py3langid": library, "ours": own, "both": both}


def other_texts(folder: Path) -> list[Text]:
    """Texts of other kinds: from the 101st row of each language on, the first 100 having served to choose bounds."""
    isos = {**PY3LANGID, "qu": "que"}

    def rows(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def each(name: str, group: str, text_of: Callable[[dict[str, Any]], str], iso: str = "") -> list[Text]:
        by_language: dict[str, list[str]] = {}
        for row in rows(name):
            text = text_of(row)
            seen = by_language.setdefault(iso or isos[row["lang"]], [])
            if text not in seen:
                seen.append(text)
        return [
            Text(text, code_of(found, text), group)
            for found, texts in sorted(by_language.items())
            for text in texts[100:200]
        ]

    return [
        *each("xcopa/xcopa.jsonl.gz", "XCOPA", lambda r: f"{r['premise']} {r['choice1']} {r['choice2']}"),
        *each("mgsm/mgsm.jsonl.gz", "MGSM", lambda r: r["question"]),
        *each("xquad/xquad_zh.jsonl.gz", "XQuAD zh", lambda r: r["context"], "zho"),
        *each("belebele_de/deu_Latn_400.jsonl.gz", "Belebele de", lambda r: r["passage"], "deu"),
        *each("pretrain/c4_demo.jsonl.gz", "C4", lambda r: r["text"], "eng"),
    ]


# --- the page -------------------------------------------------------------------------------------------------------


def language_rows(scores: dict[str, Scores]) -> list[str]:
    """A line a language: F1 by each labeller, and what `both` leaves unknown."""
    by_class = {name: {one.name: one for one in found.classes} for name, found in scores.items()}
    lines = [
        "| language | label | told by | texts | py3langid | ours | both | unknown |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(LANGUAGES, key=lambda one: one.name):
        cells = [one.name, f"`{one.code}`", told_by(one)]
        if one.udhr:
            name = one.code
            entry = by_class["both"][name]
            unknown = scores["both"].confusion[name].get(UNKNOWN, 0) / entry.support
            f1 = [f"{by_class[labeller][name].f1:.2f}" for labeller in LABELLERS]
            if not one.py3langid:
                f1[0] = "–"
            cells += [str(entry.support), *f1, f"{unknown:.0%}"]
        else:
            cells += ["no gold", "", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def told_by(one: Language) -> str:
    if one.py3langid:
        return "py3langid" if not one.udhr else "py3langid, ours"
    return "ours" if one.udhr else "**nobody**"


def whole_rows(scores: dict[str, Scores]) -> list[str]:
    """Macro F1 and accuracy over all languages with gold, and over the two kinds of them."""
    lines = ["| languages | | py3langid | ours | both |", "|---|---|---|---|---|"]
    taught = [one for one in LANGUAGES if one.udhr]
    for what, chosen in (
        ("all with gold", taught),
        ("that py3langid knows", [one for one in taught if one.py3langid]),
        ("that py3langid lacks", [one for one in taught if one.iso in LACKED]),
    ):
        codes = {one.code for one in chosen}
        rows = {"macro F1": [], "accuracy": []}
        for found in scores.values():
            entries = [entry for entry in found.classes if entry.name in codes]
            rows["macro F1"].append(sum(entry.f1 for entry in entries) / len(entries))
            rows["accuracy"].append(sum(e.right for e in entries) / sum(e.support for e in entries))
        lines += [
            f"| {what} ({len(chosen)}) | {name} | {' | '.join(f'{value:.3f}' for value in values)} |"
            for name, values in rows.items()
        ]
    return lines


def outside_rows(texts: Sequence[Text], said: dict[str, list[str]]) -> list[str]:
    """Texts of other kinds: accuracy of each labeller, and what `both` leaves unknown."""
    lines = ["| texts | language | number | py3langid | ours | both | unknown |", "|---|---|---|---|---|---|---|"]
    for group, gold in sorted({(one.group, one.gold) for one in texts}):
        at = [k for k, one in enumerate(texts) if (one.group, one.gold) == (group, gold)]
        right = [sum(said[name][k] == gold for k in at) / len(at) for name in LABELLERS]
        unknown = sum(said["both"][k] == UNKNOWN for k in at) / len(at)
        cells = [group, gold, str(len(at)), *(f"{value:.1%}" for value in right), f"{unknown:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(listed: Sequence[Text], unseen: Sequence[Text], others: Sequence[Text], model_path: Path) -> str:
    said = answers([one.text for one in listed], model_path)
    scores = {name: score([one.gold for one in listed], said[name]) for name in LABELLERS}
    alone = [
        table_code(answer["language"][0])
        for answer in language([one.text for one in unseen])
        if isinstance(answer["language"], tuple)
    ]
    together = answers([one.text for one in unseen], model_path)["both"]
    taken = Counter(code for code in together if code != UNKNOWN).most_common(8)
    nobody = [one for one in LANGUAGES if not one.udhr and not one.py3langid]
    no_gold = [one for one in LANGUAGES if not one.udhr and one.py3langid]
    confused = Counter(
        (gold, answer)
        for gold, found in scores["both"].confusion.items()
        for answer, number in found.items()
        for _ in range(number)
        if answer not in (gold, UNKNOWN)
    )
    lines = [
        HEAD.format(
            py3langid=metadata.version("py3langid"),
            sklearn=metadata.version("scikit-learn"),
            held=", ".join(map(str, HELD_OUT)),
            chosen=", ".join(map(str, BOUNDS_CHOSEN_ON)),
        ),
        "## In short\n",
        *whole_rows(scores),
        "",
        "What `both` takes for another language most often: "
        + ", ".join(f"{gold} for {answer} ({number})" for (gold, answer), number in confused.most_common(8))
        + ".",
        "",
        f"Nobody here knows {len(nobody)} of the 119: {', '.join(f'{one.name} (`{one.code}`)' for one in nobody)}. "
        "No label says their name; a text in one of them is labelled `unknown`, or as a neighbour: the next section "
        "says how often.",
        "",
        f"py3langid knows {len(no_gold)} more for which there is no gold here, so it is believed unmeasured: "
        f"{', '.join(f'{one.name} (`{one.code}`)' for one in no_gold)}.",
        "",
        "## Languages that nobody has learned\n",
        f"{len(unseen)} pieces in {len({one.gold for one in unseen})} languages of the Declaration that are neither "
        "among the 119 nor in py3langid's model, nor a part of such a language: what should be `unknown`. py3langid by "
        "itself always answers.\n",
        "| labeller | `unknown` | labelled as another language |",
        "|---|---|---|",
        *(
            f"| {name} | {share:.1%} | {1 - share:.1%} |"
            for name, found in (("`language` without a model", alone), ("`language` with ours", together))
            for share in [sum(code == UNKNOWN for code in found) / len(found)]
        ),
        "",
        "Most often they are taken for " + ", ".join(f"{code} ({number})" for code, number in taken) + ".",
        "",
    ]
    if others:
        lines += [
            "## Texts of another kind\n",
            "The Declaration is one text of one kind. On other texts our classifier alone is weaker than py3langid, "
            "which is why it decides only about languages that py3langid lacks.\n",
            *outside_rows(others, answers([one.text for one in others], model_path)),
            "",
        ]
    return "\n".join([*lines, "## Every language: F1\n", *language_rows(scores), ""])


HEAD = """# Languages

Made by `python -m benchmarks.languages` with py3langid {py3langid} and scikit-learn {sklearn}.

The labeller `language` (docs/annotation.md) asks py3langid, whose model comes in its wheel, and an n-gram classifier
trained on the Universal Declaration of Human Rights for what py3langid lacks. This page says who can tell which of the
report's 119 languages and dialects, and how well.

- Gold: translations of the Declaration, pieces of 200 characters of articles {held}. The classifier has
  seen the other 24 articles of each. An article is held out in all languages, so no parallel sentence leaks from one to
  another.
- It is one text in a lawyer's language: expect less elsewhere, most of all from our classifier.
- Bounds (`min_margin`, `min_probability`) were chosen on articles {chosen} with a classifier that
  had not seen them, and on the first 100 rows of the sets of another kind; the rows below are others. The groups of
  close languages (`pretrain/data/languages.py`) were named after a look at the rows below.
- `py3langid` and `ours` must always answer; `both` is the labeller as it is, which may say `unknown`.
- Bosnian, Croatian and Serbian are near one another, Dari and Persian, Malay and Indonesian, Norwegian and Danish:
  believe those labels as a group more than one by one.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--udhr", type=Path, required=True, help="udhr.jsonl.gz")
    parser.add_argument("--others", type=Path, help="the folder with xcopa, mgsm, xquad, belebele_de, pretrain")
    parser.add_argument("--model", type=Path, default=Path("runs/languages/labeller.npz"), help="trained if absent")
    parser.add_argument("--out", type=Path, default=DOC)
    args = parser.parse_args(arguments)
    articles, unused = read_articles(args.udhr)
    print(f"{len(articles)} articles; not used: {len(unused)} translations")
    if not args.model.exists():
        train(articles, args.model)
    texts = held_out(articles)
    listed = [one for one in texts if one.group == "listed"]
    unseen = [one for one in texts if one.group == "unseen"]
    others = other_texts(args.others) if args.others else []
    args.out.write_text(page(listed, unseen, others, args.model), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
