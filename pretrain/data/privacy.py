"""Personal data that rules can tell: e-mail and IP addresses, phone numbers, payment cards, bank accounts.

| kind | found by | checked by |
|---|---|---|
| ``email`` | ``name@host.tld`` | a host of two labels or more, a top level of letters |
| ``iban`` | country, two digits, groups | mod 97 and the country's own layout (python-stdnum) |
| ``card`` | 13 to 19 digits, grouped evenly or not at all | Luhn, and a brand's prefix and length |
| ``ipv4``, ``ipv6`` | four numbers; groups of hex digits | ``ipaddress``; public addresses alone |
| ``phone`` | Google's rules (phonenumbers) | valid in its region; with ``+`` anywhere, else in ``regions`` |

Names and street addresses take a model and are not found. What looks alike is left: numbers beside an operator or
after a decimal point, version and section numbers, dates, ISBNs, bare runs of digits as national phone numbers.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pretrain.data.document import Row
from pretrain.data.edits import KEEP, Answer, Decision, Edit, Edited
from rlplatform.datafiles import DataError


class Found(NamedTuple):
    """One piece of personal data in a text."""

    start: int  # characters
    end: int
    kind: str


# A letter of another script may stand right before and behind these: Chinese has no spaces.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9_@-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{1,4}){3,8}(?![A-Za-z0-9])")
_DIGITS = re.compile(r"(?<![A-Za-z\d_.,+-])\d(?:[ -]?\d){12,18}(?![A-Za-z\d_]|[.,-]\d)")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
_OPERATOR_BEFORE = re.compile(r"[=+*/×÷^<>−]\s*$|\d\s+-\s*$")
_OPERATOR_AFTER = re.compile(r"\s*(?:[=+*×÷^<>−]|/\s|-\s+\d)")
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|kernel|driver|section|sec|chapter|clause|figure|fig|table|python)|§)"
    r"\.?\s*$",
    re.I,
)
_PROGRAM = re.compile(r"[=<>~!]=\s*$|\b[A-Z][A-Za-z]*/$")  # foo==1.2.3.4, Chrome/1.2.3.4: a program's version
_PHONE_LIKE = re.compile(r"\d(?:[\s().\-–/]{0,3}\d){6}")  # spares the slow rules texts without any
_BEFORE = 16  # characters of context that are looked at
# Payment cards: prefixes as ranges of the first digits, and lengths (ISO/IEC 7812 as the brands publish it).
_BRANDS = (
    (range(4, 5), (13, 16, 19)),  # Visa
    (range(51, 56), (16,)),  # Mastercard
    (range(2221, 2721), (16,)),
    (range(34, 35), (15,)),  # American Express
    (range(37, 38), (15,)),
    (range(6011, 6012), (16, 17, 18, 19)),  # Discover
    (range(644, 660), (16, 17, 18, 19)),
    (range(3528, 3590), (16, 17, 18, 19)),  # JCB
    (range(300, 306), (14,)),  # Diners
    (range(36, 37), (14,)),
    (range(38, 40), (14,)),
    (range(62, 63), (16, 17, 18, 19)),  # UnionPay
)


def _emails(text: str, _: Sequence[str]) -> Iterator[Found]:
    if "@" in text:
        yield from (Found(match.start(), match.end(), "email") for match in _EMAIL.finditer(text))


def _ibans(text: str, _: Sequence[str]) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        for end in _ends_of_groups(match):
            if is_iban(text[match.start() : end]):
                yield Found(match.start(), end, "iban")
                break


def _ends_of_groups(match: re.Match[str]) -> list[int]:
    """Where an account may end, the longest first: words in capitals may follow it."""
    ends = {match.start() + gap.start() for gap in re.finditer(r"[ -]", match[0])}
    return sorted({*ends, match.end()}, reverse=True)


def is_iban(text: str) -> bool:
    """Check digits (ISO 13616, mod 97 = 1) and the country's layout.

    >>> is_iban("GB82 WEST 1234 5698 7654 32"), is_iban("GB83 WEST 1234 5698 7654 32")
    (True, False)
    """
    from stdnum import iban

    return bool(iban.is_valid(text))


def _cards(text: str, _: Sequence[str]) -> Iterator[Found]:
    for match in _DIGITS.finditer(text):
        if is_card(match[0]) and not _in_arithmetic(text, match.start(), match.end()):
            yield Found(match.start(), match.end(), "card")


def is_card(text: str) -> bool:
    """Luhn's check digit, a brand's prefix and length, and groups as cards have them.

    >>> is_card("4111 1111 1111 1111"), is_card("4111 1111 1111 1112"), is_card("41 11 11 11 11 11 11 11")
    (True, False, False)
    """
    from stdnum import luhn

    groups = re.split(r"[ -]", text)
    digits = "".join(groups)
    even = len(groups) == 1 or all(len(group) == 4 for group in groups[:-1]) or [len(g) for g in groups] == [4, 6, 5]
    known = any(int(digits[: len(str(r[0]))]) in r and len(digits) in lengths for r, lengths in _BRANDS)
    return even and known and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def _ipv4(text: str, _: Sequence[str]) -> Iterator[Found]:
    for match in _IPV4.finditer(text):
        before = text[max(match.start() - _BEFORE, 0) : match.start()]
        numbers = match[0].split(".")
        opens_line = not before.rpartition("\n")[2].strip() and (match.start() == 0 or "\n" in before)
        heading = opens_line and all(int(number) < 32 for number in numbers)
        version = _NUMBERED.search(before) or _PROGRAM.search(before)
        if not heading and not version and _is_public(match[0]):
            yield Found(match.start(), match.end(), "ipv4")


def _ipv6(text: str, _: Sequence[str]) -> Iterator[Found]:
    for match in _IPV6.finditer(text):
        if len([group for group in match[0].split(":") if group]) >= 3 and _is_public(match[0]):
            yield Found(match.start(), match.end(), "ipv6")


def _is_public(text: str) -> bool:
    """Private, local and documentation addresses are nobody's; of IPv6 only 2000::/3 is given to anybody."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and (address.version == 4 or int(address) >> 125 == 1)


def _phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    if not _PHONE_LIKE.search(text):
        return
    import phonenumbers

    for region in (None, *regions):
        if region is None and "+" not in text and "＋" not in text:
            continue
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING):
            international = match.raw_string.lstrip("( ")[:1] in ("+", "＋")
            check = _is_international if international else _is_national
            if check(text, match.start, match.end, match.raw_string):
                yield Found(match.start, match.end, "phone")


def _is_international(text: str, start: int, end: int, _: str) -> bool:
    """Not a summand: right behind a digit, or before an equals sign."""
    return not (text[max(start - 1, 0) : start].isdigit() or text[end : end + _BEFORE].lstrip().startswith("="))


def _is_national(text: str, start: int, end: int, number: str) -> bool:
    """Not what may be any number: bare digits, a version, a part of a sum or of a longer number."""
    before = text[max(start - _BEFORE, 0) : start]
    digits = sum(character.isdigit() for character in number)
    bare = digits == len(number) or digits < 7 or re.search(r"[.,]\s", number)  # two numbers of a list
    longer = bool(re.search(r"[\w.,]$", before)) or bool(re.match(r"\w|[.,-]\d", text[end : end + 2]))
    return not (bare or longer or _NUMBERED.search(before) or _in_arithmetic(text, start, end))


def _in_arithmetic(text: str, start: int, end: int) -> bool:
    before, after = text[max(start - _BEFORE, 0) : start], text[end : end + _BEFORE]
    return bool(_OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(after))


KINDS: Mapping[str, Callable[[str, Sequence[str]], Iterator[Found]]] = {  # where two overlap the earlier kind counts
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ipv6": _ipv6,
    "ipv4": _ipv4,
    "phone": _phones,
}


def find(text: str, kinds: Sequence[str] = tuple(KINDS), regions: Sequence[str] = ()) -> list[Found]:
    """Personal data of these kinds, by place; no two share a character.

    Args:
        regions: ISO codes of countries whose phone numbers are found in their national form too, e.g. US, GB, DE.
    """
    taken: list[Found] = []  # by place
    for kind, finder in KINDS.items():
        if kind in kinds:
            for found in finder(text, regions):
                at = bisect.bisect(taken, found)
                if all(
                    found.end <= other.start or other.end <= found.start for other in taken[max(at - 1, 0) : at + 1]
                ):
                    taken.insert(at, found)
    return taken


def privacy(
    rows: Sequence[Row],
    *,
    replace: Sequence[str] = tuple(KINDS),
    drop: Sequence[str] = (),
    regions: Sequence[str] = (),
    placeholders: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Put placeholders such as ``[EMAIL]`` where kinds of ``replace`` stand; drop documents that hold one of ``drop``.

    Reasons: the kind. Records say where it stood and how long it was, never what it was; a dropped document is recorded
    whole, as every other.

    Args:
        placeholders: kind -> what stands there instead; the default is the kind in brackets.

    Raises:
        DataError: an unknown kind or region.
    """
    named = {kind: f"[{kind.upper()}]" for kind in KINDS} | dict(placeholders or {})
    _check(replace, drop, regions, named)
    answers: list[Answer] = []
    for row in rows:
        found = find(row["text"], (*replace, *drop), regions)
        refused = Counter(one.kind for one in found if one.kind in drop)
        if refused:
            kind = next(one.kind for one in found if one.kind in drop)
            answers.append(Decision(kind, ", ".join(f"{number} {kind}" for kind, number in sorted(refused.items()))))
        elif found:
            edits = (Edit(a, b, named[kind], kind, f"{b - a} characters", secret=True) for a, b, kind in found)
            answers.append(Edited(tuple(edits)))
        else:
            answers.append(KEEP)
    return answers


def _check(replace: Sequence[str], drop: Sequence[str], regions: Sequence[str], named: Mapping[str, str]) -> None:
    from phonenumbers import SUPPORTED_REGIONS

    for setting, kinds in (("replace", replace), ("drop", drop), ("placeholders", list(named))):
        unknown = [kinds] if isinstance(kinds, str) else sorted(set(kinds) - set(KINDS))
        if unknown:
            raise DataError(f"privacy: expected {setting} to name some of {', '.join(KINDS)}, got {unknown}")
    unknown = [regions] if isinstance(regions, str) else sorted(set(regions) - set(SUPPORTED_REGIONS))
    if unknown:
        raise DataError(f"privacy: expected regions as two-letter codes such as US or DE, got {unknown}")
