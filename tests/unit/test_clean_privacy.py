"""Personal data: found with its check digits, left where something only looks like it."""

from __future__ import annotations

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import SUPPORTED_REGIONS

from pretrain.data.document import document
from pretrain.data.edits import KEEP, Decision, Edited, edit_text
from pretrain.data.privacy import KINDS, find, is_card, is_iban, privacy
from rlplatform.datafiles import DataError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def found(text: str, regions: tuple[str, ...] = ("US", "GB", "DE")) -> list[tuple[str, str]]:
    return [(kind, text[a:b]) for a, b, kind in find(text, regions=regions)]


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", "email", "jane.doe+news@mail.example.co.uk"),
        ("<a href='mailto:x_1@a-b.org'>", "email", "x_1@a-b.org"),
        ("请联系abc@example.com或打电话", "email", "abc@example.com"),  # no spaces around it
        ("Пишитеivan@example.ruсегодня", "email", "ivan@example.ru"),
        ("卡号4111111111111111。", "card", "4111111111111111"),
        ("IBAN: GB82 WEST 1234 5698 7654 32 THANKS", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("DE89370400440532013000,", "iban", "DE89370400440532013000"),
        ("pay BE71 0961 2345 6769 now", "iban", "BE71 0961 2345 6769"),
        ("card 4111 1111 1111 1111 exp", "card", "4111 1111 1111 1111"),
        ("card 5500-0000-0000-0004.", "card", "5500-0000-0000-0004"),
        ("3782 822463 10005", "card", "3782 822463 10005"),
        ("no. 6011000990139424", "card", "6011000990139424"),
        ("from 8.8.8.8 at noon", "ipv4", "8.8.8.8"),
        ("http://93.184.215.14:8080/x", "ipv4", "93.184.215.14"),
        ("see https://whois.example/93.184.215.14", "ipv4", "93.184.215.14"),
        ("ip=93.184.215.14", "ipv4", "93.184.215.14"),
        ("93.184.215.14 - - [10/Oct/2000]", "ipv4", "93.184.215.14"),
        ("addr 2606:2800:21f:cb07:6820:80da:af6b:8b2c", "ipv6", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"),
        ("ping 2a00:1450:4001::200e ok", "ipv6", "2a00:1450:4001::200e"),
        ("call +49 30 901820 please", "phone", "+49 30 901820"),
        ("call +1 (212) 736-5000!", "phone", "+1 (212) 736-5000"),
        ("<b>Tel.+49 30 901820</b>", "phone", "+49 30 901820"),
        ("room 5 +1 212 736 5000", "phone", "+1 212 736 5000"),
        ("call (212) 736-5000 or write", "phone", "(212) 736-5000"),
        ("London 020 7946 0958", "phone", "020 7946 0958"),
        ("Berlin: 030 901820", "phone", "030 901820"),
    ],
)
def test_personal_data_is_found(text: str, kind: str, what: str) -> None:
    assert found(text) == [(kind, what)]


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4 and v10.20.30.40, Python 3.11.4.1",
        "pip install foo==1.2.3.4 'bar >= 1.2.3.4' baz~=1.2.3.4 qux!=1.2.3.4",
        "Mozilla/5.0.1.2 (Windows) Chrome/99.0.48.44 Safari/15.6.1.1",
        "1.2.3.4 Scope of the standard",  # a section's number
        "see section 10.4.2.1 and § 3.1.4.1",
        "192.168.0.1, 10.0.0.7, 127.0.0.1, 0.0.0.0, 224.0.0.1, 203.0.113.9",  # nobody's
        "300.1.2.3 and 1.2.3 and 1.2.3.4.5",
        "at 10:20:30, from 10:20:30:40, std::vector, a::b, dead:beef",
        "::1, fe80::1:2:3, 2001:db8:1:2::3",
        "on 2026-11-29T04:50:29, 29/11/2026, 11.29.2026, 2024-01-02 10:20",
        "1990-2000, 1914-1918 and 1998 2004 2005",
        "347 + 285 = 632, 123 456 789 * 2 = 246913578, 7 - 3 = 4",
        "4111111111111111 + 1 = 4111111111111112",  # a sum
        "347+12127365000 and 12 +12127365000 = 12127365012",
        "212-736-5000 = -5524",
        "x = 4111111111111111",
        "3.141592653589793238462643",
        "0.4111111111111111",
        "4111 1111 1111 1112 has a wrong check digit",
        "1234567812345670 passes Luhn, and no brand begins with 1",
        "0000 0000 0000 0000",
        "ISBN 978-3-16-148410-0 and 9783161484100",
        "GB83 WEST 1234 5698 7654 32 has wrong check digits",
        "XX82 WEST 1234 5698 7654 32 is of no country",
        "AB12 CDEF 1234 5678 9012 is a serial number",
        "order 2127365000, id 12345678901, 1,234,567,890 people",
        "in the year (1644) and page (110)",
        "@app.route, user@localhost, a@b, foo @ bar.com, C@@x.org",
        "the DOI 10.1000/182, the ZIP codes 10001-1234 and 90210",
    ],
)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert found(text) == []


def test_national_numbers_are_found_in_the_regions_of_the_config_alone() -> None:
    assert found("call (212) 736-5000", regions=()) == []
    assert found("call (212) 736-5000", regions=("GB",)) == []
    assert found("City Press, 2018, p. 721–742. 2018.", regions=tuple(SUPPORTED_REGIONS)) == []
    assert found("call +1 212 736 5000", regions=()) == [("phone", "+1 212 736 5000")]


def test_a_log_of_many_addresses_takes_time_in_proportion() -> None:
    seconds = []
    for num in (2_000, 20_000):
        text = "".join(f"93.184.215.{k % 256} mail{k}@example.org\n" for k in range(num))
        began = time.process_time()
        assert len(find(text)) == 2 * num
        seconds.append(time.process_time() - began)
    assert seconds[1] < 40 * seconds[0]  # 10 in proportion, 100 if each is compared with all


def luhn_valid(digits: str) -> bool:
    """By hand: every second digit from the right doubled, its digits added."""
    doubled = [int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(4 * 10**15, 5 * 10**15 - 1).map(str))
def test_cards_pass_luhn_and_exactly_one_check_digit_does(digits: str) -> None:
    valid = [d for d in "0123456789" if is_card(digits[:-1] + d)]
    expected = [d for d in "0123456789" if luhn_valid(digits[:-1] + d)]
    assert valid == expected
    assert len(valid) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**18 - 1))
def test_ibans_pass_mod_97(account: int) -> None:
    """ISO 13616 by hand: the country and 00 behind the account as digits (D is 13, E 14); 98 minus the rest."""
    body = f"{account:018d}"
    check = 98 - int(f"{body}131400") % 97
    assert is_iban(f"DE{check:02d}{body}")
    assert not is_iban(f"DE{(check + 1) % 100:02d}{body}")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab@.:+-() 0123456789DE", max_size=60))
def test_what_is_found_is_in_order_and_shares_no_character(text: str) -> None:
    places = find(text, regions=("US",))
    assert all(0 <= one.start < one.end <= len(text) for one in places)
    assert all(a.end <= b.start for a, b in pairwise(places))


def row(text: str) -> dict[str, Any]:
    return document("s", text, "s:1", text)


TEXT = "Mail a@b.org or b@c.org, call +49 30 901820, pay 4111 1111 1111 1111."


def test_placeholders_say_the_kind_and_records_do_not_say_what_it_was() -> None:
    (answer, kept) = privacy([row(TEXT), row("nothing here")])
    assert kept is KEEP
    assert isinstance(answer, Edited)
    assert edit_text(TEXT, answer.edits) == "Mail [EMAIL] or [EMAIL], call [PHONE], pay [CARD]."
    assert all(edit.secret for edit in answer.edits)
    assert [(edit.reason, edit.detail) for edit in answer.edits] == [
        ("email", "7 characters"),
        ("email", "7 characters"),
        ("phone", "13 characters"),
        ("card", "19 characters"),
    ]


def test_kinds_are_replaced_dropped_or_left_by_config() -> None:
    (answer,) = privacy([row(TEXT)], replace=["email"], placeholders={"email": "<mail>"})
    assert isinstance(answer, Edited)
    assert edit_text(TEXT, answer.edits) == "Mail <mail> or <mail>, call +49 30 901820, pay 4111 1111 1111 1111."
    (dropped,) = privacy([row(TEXT)], replace=["email"], drop=["phone", "card"])
    assert dropped == Decision("phone", "1 card, 1 phone")
    (alone,) = privacy([row("pay 4111 1111 1111 1111")], replace=["email"], drop=["phone"])
    assert alone is KEEP


def test_a_text_with_placeholders_has_no_personal_data() -> None:
    (answer,) = privacy([row(TEXT)])
    assert isinstance(answer, Edited)
    assert privacy([row(edit_text(TEXT, answer.edits))]) == [KEEP]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"replace": ["mail"]}, "expected replace to name some of email, iban, card, ipv6, ipv4, phone, got"),
        ({"drop": "email"}, "expected drop to name some of"),
        ({"placeholders": {"name": "[NAME]"}}, "expected placeholders to name some of"),
        ({"regions": ["USA"]}, "expected regions as two-letter codes such as US or DE, got"),
    ],
)
def test_settings_that_make_no_sense(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        privacy([], **kwargs)


# --- real texts -----------------------------------------------------------------------------------------------------


def texts(name: str, column: str) -> list[str]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ../shared/data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)[column] for line in file] if column else file.read().split("\n")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("gsm8k/test.jsonl.gz", "answer"),
        ("math_train/train.jsonl.gz", "problem"),
        ("pretrain/wikitext2_valid.txt.gz", ""),
        ("pretrain/wiki_demo.txt.gz", ""),
    ],
)
def test_arithmetic_and_encyclopaedias_hold_none(name: str, column: str) -> None:
    assert [found(text) for text in texts(name, column) if found(text)] == []


def test_web_pages_hold_what_a_reader_finds_there() -> None:
    """Read by eye: the 30 places in 300 documents of C4, all of them e-mail addresses and phone numbers."""
    kinds = [kind for text in texts("pretrain/c4_demo.jsonl.gz", "text") for kind, _ in found(text, regions=("US",))]
    assert {kind: kinds.count(kind) for kind in KINDS if kind in kinds} == {"email": 7, "phone": 23}
