"""What runs inside the served endpoint's HTTP process, before vLLM sees a request.

A key that the endpoint does not know is refused. vLLM ignores such keys, so a misspelt ``thinking_token_budget`` or
``temperature`` would be answered with neither. And a request gets all ids that end a turn as ``stop_token_ids``: vLLM
knows the tokenizer's and generation_config's, not ``<|im_end|>`` where only the template ends a turn with it.
"""

from __future__ import annotations

import difflib
import json
import os
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from rlplatform.endpoint import STOP_IDS

REQUESTS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
}
# Of OpenAI's protocol; no answer depends on them.
BOOKKEEPING = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})


class Requests:
    """Named by ``--middleware``; reads the body, answers 400, or hands the body on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._stop_ids = [int(token) for token in os.environ.get(STOP_IDS, "").split(",") if token]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = REQUESTS.get(scope.get("path", "")) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        body, message = b"", await receive()
        while message["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
            message = await receive()
        if message["type"] != "http.request":
            return  # the client is gone
        if said := complaint(asked, body):
            error = {"message": said, "type": "BadRequestError", "param": None, "code": 400}
            await JSONResponse({"error": error}, 400)(scope, receive, send)
            return
        body = self._with_stops(asked, body)
        held: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return held.pop() if held else await receive()

        scope["headers"] = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        scope["headers"].append((b"content-length", str(len(body)).encode()))
        await self._app(scope, again, send)

    def _with_stops(self, asked: type[BaseModel], body: bytes) -> bytes:
        try:
            given: Any = json.loads(body)
        except ValueError:
            return body
        if not isinstance(given, dict) or given.get("ignore_eos") or "stop_token_ids" not in asked.model_fields:
            return body
        own = given.get("stop_token_ids") or []
        if not isinstance(own, list):
            return body  # the endpoint says so itself
        return json.dumps({**given, "stop_token_ids": [*own, *self._stop_ids]}).encode()


def complaint(asked: type[BaseModel], body: bytes) -> str:
    """What is wrong with the keys of a JSON body; "" where nothing is, or where the endpoint will say so itself."""
    try:
        given: Any = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(given, dict):
        return ""
    known = {name for key, field in asked.model_fields.items() for name in (key, field.alias or key)} | BOOKKEEPING
    unknown = [key for key, value in given.items() if key not in known and value is not None]
    hints = []
    for key in unknown:
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hints.append(f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"unknown key in the request: {', '.join(hints)}; nothing would be done with it" if unknown else ""
