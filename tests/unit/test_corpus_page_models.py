"""Two models read page images, behind a real server."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.page_models import Reading, read_images, unfenced
from rewards.judge_prompts import JudgeSettingsError
from rlplatform.config import ConfigError, EndpointConfig, PdfConfig
from tests.unit.page_reader import PageReader, Served, grey_page


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[PageReader, str]]:
    reader = PageReader()
    with Served(reader) as url:
        yield reader, url


@pytest.fixture
def reader(served: tuple[PageReader, str]) -> PageReader:
    end = time.monotonic() + 30
    while served[0].running and time.monotonic() < end:  # a late answer would take this test's fault
        time.sleep(0.01)
    served[0].__init__()  # type: ignore[misc]
    return served[0]


@pytest.fixture
def url(served: tuple[PageReader, str]) -> str:
    return served[1]


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    grey_page(level).save(buffer, format="PNG")
    return buffer.getvalue()


def config(url: str, *, refined: bool = True, **settings: Any) -> PdfConfig:
    shared = {"base_url": url, "timeout_s": 20.0, "max_retries": 0, **settings}
    refine = EndpointConfig(model="refine", **shared) if refined else EndpointConfig()
    return PdfConfig(vision=EndpointConfig(model="vision", **shared), refine=refine)


def readings(levels: list[int], settings: PdfConfig) -> list[Reading]:
    return asyncio.run(read_images([png(level) for level in levels], settings))


def test_every_page_has_its_own_reading_in_order_and_is_then_refined(reader: PageReader, url: str) -> None:
    reader.delay_s = 0.05
    levels = [10 * k for k in range(12)]
    assert readings(levels, config(url, concurrency=3)) == [
        Reading(f"PAGE OF GREY {level}", "vision, refine") for level in levels
    ]
    assert reader.most_running <= 6  # three of each model
    assert len(reader.requests) == 24
    asked = next(body for body in reader.requests if body["model"] == "vision")
    assert (asked["temperature"], asked["max_tokens"]) == (0.0, 4096)


def test_one_step_where_no_text_model_is_configured(reader: PageReader, url: str) -> None:
    assert readings([40], config(url, refined=False)) == [Reading("page of grey 40", "vision")]
    assert [body["model"] for body in reader.requests] == ["vision"]


def test_a_blank_page_is_read_and_not_refined(reader: PageReader, url: str) -> None:
    assert readings([255], config(url)) == [Reading("", "vision")]
    assert len(reader.requests) == 1


@pytest.mark.parametrize(
    ("model", "fault", "failure", "detail"),
    [
        ("vision", "500", "vision error", "answered HTTP 500: a fault"),
        ("vision", "401", "vision error", "does the variable named by api_key_env hold the right key?"),
        ("vision", "html", "vision error", "did not answer with a chat completion"),
        ("vision", "cut", "vision cut", "no end within 4096 tokens"),
        ("vision", "empty", "vision empty", "holds no text"),
        ("refine", "503", "refine error", "answered HTTP 503"),
        ("refine", "cut", "refine cut", "no end within"),
        ("refine", "empty", "refine empty", "holds no text"),
    ],
)
def test_a_failure_is_named_and_gives_no_text(
    reader: PageReader, url: str, model: str, fault: str, failure: str, detail: str
) -> None:
    reader.faults[model].append(fault)
    [bad] = readings([50], config(url))
    assert (bad.text, bad.failure) == ("", failure)
    assert detail in bad.detail
    [good] = readings([50], config(url))
    assert (good.text, good.failure) == ("PAGE OF GREY 50", "")


def test_a_slow_endpoint_is_a_timeout(reader: PageReader, url: str) -> None:
    reader.faults["vision"].append("slow")
    [bad] = readings([50], config(url, timeout_s=0.5))
    assert (bad.text, bad.failure) == ("", "vision timeout")
    assert "no reply within 0.5 s" in bad.detail


def test_an_endpoint_that_is_not_there(reader: PageReader) -> None:
    [bad] = readings([50], config("http://127.0.0.1:9/v1"))
    assert (bad.text, bad.failure) == ("", "vision error")
    assert "is the model served there" in bad.detail


def test_busy_answers_are_asked_again(reader: PageReader, url: str) -> None:
    reader.faults["vision"].extend(["429", "500"])
    assert readings([50], config(url, max_retries=2))[0] == Reading("PAGE OF GREY 50", "vision, refine")
    assert len(reader.requests) == 4


def test_a_refinement_of_another_length_is_a_failure(reader: PageReader, url: str) -> None:
    for reply in ("PAGE", "PAGE OF GREY 50, and much more that nobody has written on that page"):
        reader.replies["refine"] = reply
        [bad] = readings([50], config(url))
        assert (bad.text, bad.failure) == ("", "refine length")
        assert bad.detail == f"15 characters became {len(reply)}; expected 0.5 to 2 times as many"


def test_what_was_read_is_kept_and_failures_are_not(reader: PageReader, url: str, tmp_path: Path) -> None:
    settings = config(url, cache=str(tmp_path / "replies.sqlite"))
    reader.faults["vision"].append("cut")
    assert readings([30], settings)[0].failure == "vision cut"
    for _ in range(2):
        assert readings([30], settings) == [Reading("PAGE OF GREY 30", "vision, refine")]
    assert [body["model"] for body in reader.requests] == ["vision", "vision", "refine"]
    assert readings([40], settings)[0].text == "PAGE OF GREY 40"  # another image is another question


def test_prompts_are_settings(reader: PageReader, url: str) -> None:
    shared = {"base_url": url, "max_retries": 0}
    settings = PdfConfig(
        vision=EndpointConfig(model="vision", prompt="Read this.", **shared),
        refine=EndpointConfig(
            model="refine",
            prompt="Clean: {text} {not a field}",
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
            **shared,
        ),
        refine_length=(0.1, 9.0),
    )
    readings([60], settings)
    asked = {body["model"]: body["messages"][0]["content"] for body in reader.requests}
    assert asked["vision"][0] == {"type": "text", "text": "Read this."}
    assert asked["refine"] == "Clean: page of grey 60 {not a field}"
    assert reader.requests[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in reader.requests[0]


def test_the_key_comes_from_the_environment_and_is_not_shown(
    reader: PageReader, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGES_KEY", raising=False)
    settings = config(url, api_key_env="PAGES_KEY")
    with pytest.raises(JudgeSettingsError, match="PAGES_KEY is not set"):
        readings([50], settings)
    monkeypatch.setenv("PAGES_KEY", "s3cret-key")
    reader.faults["vision"].append("401")
    [bad] = readings([50], settings)
    assert reader.keys == ["Bearer s3cret-key"]
    assert "s3cret" not in json.dumps([bad.detail, repr(settings)])


@pytest.mark.parametrize(
    ("reply", "text", "failure"),
    [
        ("<think>\nA page.\n</think>\n\nIts text.", "Its text.", ""),
        ("The tag <think> opens and </think> closes.", "The tag <think> opens and </think> closes.", ""),
        ("<think>\nA page that never", "", "vision empty"),
    ],
)
def test_thoughts_are_no_part_of_a_page(reader: PageReader, url: str, reply: str, text: str, failure: str) -> None:
    reader.replies["vision"] = reply
    [reading] = readings([50], config(url, refined=False))
    assert (reading.text, reading.failure) == (text, failure)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("```markdown\n# A\n\ntext\n```", "# A\n\ntext"),
        ("````\n```python\nx\n```\n````", "```python\nx\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("text ```x```", "text ```x```"),
        ("  text \n", "text"),
    ],
)
def test_a_fence_around_everything_is_no_text(reply: str, text: str) -> None:
    assert unfenced(reply) == text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": EndpointConfig(base_url="localhost:80", model="m")}, "pdf.vision: base_url: expected the address"),
        ({"vision": EndpointConfig(base_url="http://x/v1")}, "pdf.vision: model: expected the name"),
        ({"vision": EndpointConfig(model="m")}, "pdf.vision.base_url: expected the address of the endpoint"),
        ({"refine": EndpointConfig(base_url="http://x/v1", model="m")}, "pdf.refine: expected pdf.vision too"),
        ({"refine_length": (2.0, 0.5)}, "pdf.refine_length"),
        ({"max_image_share": 0.0}, "pdf.max_image_share"),
        ({"dpi": 1}, "pdf.dpi"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PdfConfig(**settings)
