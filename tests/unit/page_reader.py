"""A server that speaks the chat completions protocol and reads page images: by their grey, which tests choose.

A page whose mean grey is ``g`` says ``page of grey g``; the model that refines answers in capitals.
"""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from PIL import Image, ImageStat

_TRANSCRIPTION = re.compile(r"<transcription>\n(.*)\n</transcription>", re.DOTALL)


def grey_page(level: int, size: tuple[int, int] = (60, 80)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def scanned_pdf(levels: Sequence[int]) -> bytes:
    """A PDF of page images without a text layer."""
    first, *others = (grey_page(level) for level in levels)
    buffer = io.BytesIO()
    first.save(buffer, format="PDF", save_all=True, append_images=others)
    return buffer.getvalue()


class PageReader:
    """What the server was asked, and the faults that it still has to make, by model."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.faults: dict[str, deque[str]] = {"vision": deque(), "refine": deque()}
        self.replies: dict[str, str] = {}  # what a model says in place of what it reads
        self.delay_s = 0.0
        self.running = self.most_running = 0

    def read(self, body: dict[str, Any]) -> str:
        content = body["messages"][0]["content"]
        if isinstance(content, str):
            found = _TRANSCRIPTION.search(content)
            return (found[1] if found else content).upper()
        assert [part["type"] for part in content] == ["text", "image_url"]
        header, _, data = content[1]["image_url"]["url"].partition(",")
        assert header == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("L")
        return "[blank]" if image.getextrema() == (255, 255) else f"page of grey {round(ImageStat.Stat(image).mean[0])}"

    def answer(self, body: dict[str, Any]) -> Response:
        model = body["model"]
        fault = self.faults[model].popleft() if self.faults[model] else ""
        if fault.isdigit():
            return JSONResponse({"error": {"message": "a fault"}}, status_code=int(fault))
        if fault == "html":
            return PlainTextResponse("<html>Bad gateway</html>", media_type="text/html")
        text = "" if fault == "empty" else self.replies.get(model) or self.read(body)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if fault == "cut" else "stop",
        }
        return JSONResponse(
            {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": None}
        )


class Served:
    """``with Served(PageReader()) as base_url: ...``, on a free port of this machine."""

    def __init__(self, reader: PageReader) -> None:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        def complete(body: dict[str, Any], request: Request) -> Response:
            reader.requests.append(body)
            reader.keys.append(request.headers.get("authorization", ""))
            reader.running += 1
            reader.most_running = max(reader.most_running, reader.running)
            try:
                fault = reader.faults[body["model"]]
                time.sleep(2.0 if fault and fault[0] == "slow" else reader.delay_s)
                return reader.answer(body)
            finally:
                reader.running -= 1

        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the page reader did not start")
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
