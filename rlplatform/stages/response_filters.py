r"""Cold-start responses: the six reasons to drop a teacher's answer (arXiv 2505.09388, section 4.1), one function each.

    wrong_answer -> repetition -> guessing -> disagreement -> mixed_languages -> similar_to_validation

The report names the six and no rule or bound; all that follows is this project's own. A response row has ``id`` (its
query), ``sample``, ``prompt``, ``response`` (as sampled, thought included), ``status`` and ``score`` (its verdict), and
where the prompt opened the think block ``opened: true``. Where a filter cannot tell, it keeps the row and says so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

from rewards.answer import last_box, tidy, unwrap_text
from rewards.base import OK
from rewards.language import canonical_code, identifier, measure
from rewards.response import Response, parse
from rlplatform.stages.loops import longest_loop, repeated_share
from rlplatform.stages.pass_rates import is_correct, status_of
from rlplatform.stages.records import KEEP, Decision, Row, by_query, row_key, text_column
from rlplatform.stages.texts import Gram, grams, jaccard, pieces, prompt_text

Same = Callable[[str, str], bool | None]


def response_of(row: Row) -> Response:
    """Thought and answer of a row."""
    return parse(text_column(row, "response"), opened=row.get("opened") is True)


# --- 1: wrong final answer ------------------------------------------------------------------------------------------


def wrong_answer(rows: Sequence[Row]) -> list[Decision]:
    """``wrong_answer`` where the verdict is ok and not 1; ``grader_timeout``, ``grader_error``, ``grader_unparseable``,
    ``grader_not_applicable`` where there is none: that says nothing about the response, and nothing for it."""
    decisions = []
    for row in rows:
        status = status_of(row)
        if status != OK:
            decisions.append(Decision(f"grader_{status}", str(row.get("detail") or "")))
        elif not is_correct(row):
            decisions.append(Decision("wrong_answer", f"score {row['score']:g}"))
        else:
            decisions.append(KEEP)
    return decisions


# --- 2: substantial repetition --------------------------------------------------------------------------------------


def repetition(
    rows: Sequence[Row], *, n: int = 8, max_repeated: float = 0.3, min_cycles: int = 4, min_loop_tokens: int = 40
) -> list[Decision]:
    """``repeated_ngrams``: more than ``max_repeated`` of the n-grams stood before (``loops.repeated_share``). ``loop``:
    the same words, or the same lines, over and over without a break: at least ``min_cycles`` times and
    ``min_loop_tokens`` words and signs in all, wherever that is and whatever stands around it."""
    decisions = []
    for row in rows:
        text = text_column(row, "response")
        repeated = repeated_share(text, n)
        loop = longest_loop(text, min_cycles=min_cycles, min_tokens=min_loop_tokens)
        if repeated > max_repeated:
            decisions.append(Decision("repeated_ngrams", f"{repeated:.0%} of {n}-grams, bound {max_repeated:.0%}"))
        elif loop:
            decisions.append(Decision("loop", loop))
        else:
            decisions.append(KEEP)
    return decisions


# --- 3: guessing without adequate reasoning -------------------------------------------------------------------------

_GUESS = re.compile(
    r"\b(?:(?:i(?:'ll| will| can| could)?|let me|let's|we(?:'ll| will| can)?) (?:just |simply |have to |only )*guess|"
    r"(?:i(?:'ll| will)|let me|let's|we(?:'ll| will)) (?:just |randomly |simply )+(?:pick|choose|go with)|"
    r"(?:wild|random|lucky|best|educated) guess|guess(?:ing)? (?:at )?random(?:ly)?|"
    r"no idea|can(?:no|')t (?:figure|work) (?:it|this) out|(?:don't|do not) know how to (?:solve|do)|not sure,? but)\b|"
    r"我猜|猜一个|瞎猜|随便选|蒙一个",
    re.IGNORECASE,
)
_CHECKED = re.compile(
    r"\b(?:check(?:s|ed|ing)?|verif(?:y|ies|ied|ying)|works|confirm(?:s|ed)?|substitut\w+|plug(?:s|ging)? in|proves?|"
    r"indeed|holds|satisf\w+)\b|验证|检验|代入|成立",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"(?:\b(?:without|not|cannot|no|never|hope\w*|whether|unable|skip\w*)\b|n't|没有?)[^.!?。]{0,20}$", re.IGNORECASE
)


def guessing(
    rows: Sequence[Row],
    *,
    min_thought_tokens: int = 20,
    min_share: float = 0.1,
    min_peers: int = 3,
    last_tokens: int = 60,
) -> list[Decision]:
    """``no_reasoning``: the thought has fewer than ``min_thought_tokens`` words and signs. ``short_reasoning``: it is
    shorter than ``min_share`` of the median thought of the query's correct responses, where there are ``min_peers``.
    ``guess``: among the last ``last_tokens`` words of the thought, or in the answer, it says that it guesses (``let me
    guess``, ``not sure, but``) and nothing behind that says that the guess was checked.

    Set ``min_thought_tokens`` to what the task needs: a sum of two digits is reasoned in five."""
    lengths: dict[str, list[int]] = defaultdict(list)
    thoughts = [pieces(response_of(row).thinking) for row in rows]
    for row, thought in zip(rows, thoughts, strict=True):
        if is_correct(row):
            lengths[text_column(row, "id")].append(len(thought))
    decisions = []
    for row, thought in zip(rows, thoughts, strict=True):
        peers, response = lengths[text_column(row, "id")], response_of(row)
        typical = median(peers) if len(peers) >= min_peers else 0.0
        said = _guess_in(response.thinking, last_tokens) or _guess_in(response.answer, last_tokens)
        if len(thought) < min_thought_tokens:
            decisions.append(
                Decision("no_reasoning", f"{len(thought)} tokens of thought, at least {min_thought_tokens}")
            )
        elif len(thought) < min_share * typical:
            decisions.append(
                Decision("short_reasoning", f"{len(thought)} tokens, the median of {len(peers)} is {typical:g}")
            )
        elif said:
            decisions.append(Decision("guess", said))
        else:
            decisions.append(KEEP)
    return decisions


def _guess_in(text: str, last_tokens: int) -> str:
    guesses = list(_GUESS.finditer(text))
    if not guesses or len(pieces(text[guesses[-1].end() :])) > last_tokens:
        return ""
    end = guesses[-1].end()
    checked = any(not _NOT.search(text, end, match.start()) for match in _CHECKED.finditer(text, end))
    return "" if checked else f"{guesses[-1][0]!r}, unchecked"


# --- 4: thought and summary disagree --------------------------------------------------------------------------------

_SAID = re.compile(
    r"\b(?:final |correct )?answer(?:\s+(?:is|must be|should be)|\s*[=:])\s*"
    r"(?:therefore |thus |just |simply |exactly )?(?P<en>[^\n]{1,80}?)"
    r"(?=[.!?]?\s*(?:\n|$)|[.;!?](?:\s|$)|,?\s+(?:so|because|since|which|as|and|but)\b)|"
    r"答案(?:是|为|：|:)\s*(?P<zh>[^\n。；，]{1,40})",
    re.IGNORECASE,
)
_CONDITIONAL = re.compile(r"\b(?:if|whether|unless|suppose|assum\w+|say)\s+(?:that\s+)?(?:(?:the|my|our)\s+)?$", re.I)
# Only what is surely an answer: "the answer is obvious" states none.
_ANSWER = re.compile(
    r"^(?!not\b|an?\b|between\b)(?:.*[\d\\$].*|\(?[A-J]\)?|yes|no|true|false|\*\*.+\*\*)$", re.I | re.S
)


def last_stated_answer(text: str) -> str | None:
    r"""The last answer a text commits itself to: what stands last of ``\boxed{...}`` and ``the answer is ...`` with a
    number, a formula, a choice letter, yes, no, or bold text; None where there is neither."""
    box = last_box(text)
    stated = [(match.start(), (match["en"] or match["zh"]).strip()) for match in _SAID.finditer(text)]
    stated = [(at, said) for at, said in stated if _ANSWER.match(said) and not _CONDITIONAL.search(text[:at])]
    if stated and (box is None or stated[-1][0] > text.rfind("boxed")):
        return stated[-1][1].strip(" *`\"'“”")
    return box


# Forms that a computer algebra system computes for hours; such answers are compared as written.
_HEAVY = re.compile(r"!|\^\s*\{?[^{}^]{0,20}\^|\^\s*\{?\s*\d{4,}|\d{40,}")
_MAX_COMPARED = 200  # characters


def same_answer(a: str, b: str) -> bool | None:
    """``rewards.math.is_equal`` either way round; None where it cannot be told. For answers by rows of one trusted
    teacher; where anybody may have written them, pass a comparison that runs in the reward service's killable pool."""
    from rewards.math import is_equal

    texts = [tidy(" ".join(unwrap_text(text).split())) for text in (a, b)]
    if texts[0].casefold() == texts[1].casefold():
        return True
    if max(map(len, texts)) > _MAX_COMPARED or any(_HEAVY.search(text) for text in texts):
        return None
    try:
        return is_equal(gold=texts[0], pred=texts[1]) or is_equal(gold=texts[1], pred=texts[0])
    except Exception:  # a parser that gives up has compared nothing
        return None


def disagreement(rows: Sequence[Row], *, same: Same = same_answer) -> list[Decision]:
    """``thought_disagrees``: the last answer that the thought states is not the final answer. ``unfinished``: the think
    block is not closed. Kept with a note where either states none or the two cannot be compared."""
    decisions = []
    for row in rows:
        response = response_of(row)
        if not response.finished:
            decisions.append(Decision("unfinished", "the think block is not closed"))
            continue
        thought, final = last_stated_answer(response.thinking), last_stated_answer(response.answer)
        if final is None and 0 < len(response.answer.strip()) <= _MAX_COMPARED // 5:
            final = response.answer.strip()
        if thought is None or final is None:
            where = "thought" if thought is None else "answer"
            decisions.append(Decision(detail=f"unknown: the {where} states no final answer"))
            continue
        equal = same(thought, final)
        if equal is None:
            decisions.append(Decision(detail=f"unknown: {thought[:60]!r} and {final[:60]!r} cannot be compared"))
        elif equal:
            decisions.append(KEEP)
        else:
            decisions.append(Decision("thought_disagrees", f"thought {thought[:80]!r}, answer {final[:80]!r}"))
    return decisions


# --- 5: mixed languages, shifts of style ----------------------------------------------------------------------------

_MARKUP = re.compile(
    r"<\|[^<>|\s]+\|>|^(?:user|assistant|human|system|用户|助手)\s*[:：]", re.IGNORECASE | re.MULTILINE
)
_MIN_LETTERS = 40


def mixed_languages(
    rows: Sequence[Row], *, min_share: float = 0.9, language_column: str = "language"
) -> list[Decision]:
    """``mixed_languages``: less than ``min_share`` of the letters of thought or answer are in the row's language.
    ``style_shift``: chat markup or an invented turn (``User:``) in the text, or a paragraph in capitals in an otherwise
    ordinary text. ``malformed``: think tags out of place, or no answer.

    The language is column ``language``, else what ``rewards.language`` finds in the prompt, else in the response; with
    fewer than 40 letters in all of these it is unknown, and the row is kept with a note.

    Raises:
        ValueError: a language column that names no known language.
    """
    return [_language_decision(row, min_share, language_column) for row in rows]


def _language_decision(row: Row, min_share: float, column: str) -> Decision:
    text, response = text_column(row, "response"), response_of(row)
    markup = _MARKUP.search(text.removesuffix("<|im_end|>"))
    if markup:
        return Decision("style_shift", f"{markup[0]!r} in the text")
    if not response.well_formed:
        return Decision("malformed", "think tags out of place, or nothing behind the thought")
    shouted = _shouting(text)
    if shouted:
        return Decision("style_shift", f"in capitals: {shouted[:60]!r}")
    code = _language_of(row, column, prompt_text(row), text)
    if code is None:
        return Decision(detail=f"unknown: fewer than {_MIN_LETTERS} letters to tell the language by")
    for name, part in (("thought", response.thinking), ("answer", response.answer)):
        found = measure(part, code)
        if found.num_letters >= _MIN_LETTERS // 2 and found.share < min_share:
            return Decision(
                "mixed_languages", f"{found.share:.0%} of the {name} is {code}; foreign: {found.foreign[:60]!r}"
            )
    return KEEP


def _language_of(row: Row, column: str, *texts: str) -> str | None:
    if row.get(column) is not None:
        code = canonical_code(row[column])
        if code is None:
            raise ValueError(f"row {row_key(row)!r}: column {column}: expected a language code, got {row[column]!r}")
        return code
    for text in texts:
        if sum(map(str.isalpha, text)) >= _MIN_LETTERS:
            return str(identifier().classify(text)[0])
    return None


def _shouting(text: str) -> str:
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if sum(map(str.isalpha, part)) >= _MIN_LETTERS]
    shares = [sum(map(str.isupper, part)) / sum(map(str.isalpha, part)) for part in paragraphs]
    loud = [part for part, share in zip(paragraphs, shares, strict=True) if share > 0.7]
    return loud[0] if 0 < len(loud) < len(paragraphs) else ""


# --- 6: too similar to validation items -----------------------------------------------------------------------------


def similar_to_validation(
    rows: Sequence[Row], *, validation: Sequence[Row], n: int = 5, max_similarity: float = 0.5
) -> list[Decision]:
    """``similar_query``: the Jaccard index of the word n-grams of query and validation query is above the bound.
    ``validation_query_inside``: more than that share of a validation query's n-grams stands in the response, which may
    be far longer than it. Exact, through an index of the validation n-grams; a text shorter than n words is one gram.

    Raises:
        ValueError: no validation item, or a bound outside [0, 1).
    """
    if not validation:
        raise ValueError("similar_to_validation: expected at least one validation item; leave the filter out instead")
    if not 0 <= max_similarity < 1 or n < 1:
        raise ValueError(f"similar_to_validation: expected 0 <= bound < 1 and n >= 1, got {max_similarity} and {n}")
    items = [(str(item.get("id")), grams(prompt_text(item), n)) for item in validation]
    index: dict[Gram, list[int]] = defaultdict(list)
    for place, (_, found) in enumerate(items):
        for gram in found:
            index[gram].append(place)
    queries = {name: grams(prompt_text(group[0]), n) for name, group in by_query(rows).items()}
    decisions = []
    for row in rows:
        query, response = queries[row["id"]], grams(text_column(row, "response"), n)
        decision = KEEP
        for place in sorted({place for gram in query | response for place in index.get(gram, ())}):
            name, item = items[place]
            similarity, inside = jaccard(query, item), len(item & response) / len(item)
            if similarity > max_similarity:
                decision = Decision("similar_query", f"{similarity:.2f} to {name}, bound {max_similarity:g}")
            elif inside > max_similarity:
                decision = Decision("validation_query_inside", f"{inside:.0%} of {name}, bound {max_similarity:.0%}")
            if not decision.kept:
                break
        decisions.append(decision)
    return decisions
