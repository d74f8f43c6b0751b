"""A rule-based stand-in for a judge model behind the real protocol: ``/v1/chat/completions`` and ``/v1/models``.

    python examples/stand_in_judge.py --port 8001 --rule math

For trying a `judge` reward without a model, and for its tests. It reads reference and answer out of the judge's prompt
(the prompts of ``rewards/judge_prompts.py``, or any with those variables) and writes what a judge would write: a
sentence and the line with the score. Faults can be injected: ``--fault NAME``, or while it runs, a list that the next
requests consume, one each: ``POST /faults {"faults": ["429", "garbage", ""]}``. It listens on this machine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from rewards.runner import RewardPool

MODEL = "stand-in"
FAULTS = ("429", "500", "400", "401", "slow", "garbage", "two_scores", "scale", "empty", "cut", "html", "no_choices")
SLOW_S = 2.0  # what the fault `slow` waits
GRADE_S = 2.0  # what a comparison may take
_SECTION = re.compile(r"<(question|reference|answer A|answer B|answer) ([0-9a-f]{16})>\n(.*?)\n</\1 \2>", re.DOTALL)
_SCALE = re.compile(r"a number from (-?[\d.]+) to (-?[\d.]+)")


@dataclass
class StandIn:
    """What the server says, and what it has seen.

    Args:
        rule: the reward that compares answer and reference: ``math``, ``exact``, ``f1``, ...
        always: pairwise, a letter that it names whatever the answers are: a judge with a bias of position.
        delay_s: before each reply.
        retry_after_s: the pause that HTTP 429 asks for.
        noise: of so many replies in a row, the last one is the contrary of what it should be; 0 = none.
    """

    rule: str = "exact"
    always: str = ""
    delay_s: float = 0.0
    noise: int = 0
    retry_after_s: float = 0.2
    faults: deque[str] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    def __post_init__(self) -> None:
        self._pool = RewardPool({self.rule: 1.0}, timeout_s=GRADE_S)
        self._counter = itertools.count(1)

    def reply(self, prompt: str) -> str:
        """What a judge would write."""
        texts = {label: text for label, _, text in _SECTION.findall(prompt)}
        contrary = bool(self.noise) and next(self._counter) % self.noise == 0
        if "answer A" in texts:
            scores = [self.score(texts[name], texts.get("reference", "")) for name in ("answer A", "answer B")]
            if "reference" not in texts:  # the better answer is the shorter one
                scores = [-float(len(texts[name])) for name in ("answer A", "answer B")]
            choice = "tie" if scores[0] == scores[1] else "A" if (scores[0] > scores[1]) != contrary else "B"
            return f"I compared both.\nVerdict: {self.always or choice}"
        found = _SCALE.search(prompt)
        low, high = (float(found[1]), float(found[2])) if found else (0.0, 1.0)
        share = self.score(texts.get("answer", ""), texts.get("reference", ""))
        value = low + (1 - share if contrary else share) * (high - low)
        return f"I compared the answer with the reference.\nScore: {value:g}"

    def failure(self, status: int, authorization: str) -> JSONResponse:
        """An error as the protocol has it; some endpoints do show the key that they refuse."""
        said = f"Incorrect API key provided: {authorization}" if status == 401 else f"a fault of kind {status}"
        headers = {"Retry-After": f"{self.retry_after_s:g}"} if status == 429 else {}
        error = {"message": f"{said}\nsecond line", "type": "fault", "code": status}
        return JSONResponse({"error": error}, status_code=status, headers=headers)

    def score(self, answer: str, reference: str) -> float:
        """0 to 1; what the rule cannot read or compare in ``GRADE_S`` counts 0."""
        [verdict] = self._pool.score([""], [answer], {"answer": [reference]})
        return verdict.score

    def close(self) -> None:
        self._pool.close()

    async def answer(self, body: dict[str, Any], authorization: str) -> Response:
        fault = self.faults.popleft() if self.faults else ""
        if fault in ("429", "500", "400", "401"):
            return self.failure(int(fault), authorization)
        await asyncio.sleep(SLOW_S if fault == "slow" else self.delay_s)
        if fault == "html":
            return PlainTextResponse("<html>\nBad gateway\n</html>", media_type="text/html")
        prompt = "\n".join(str(message["content"]) for message in body["messages"])
        text = SAID[fault] if fault in SAID else await asyncio.to_thread(self.reply, prompt)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if fault == "cut" else "stop",
        }
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        return JSONResponse(
            {
                "id": f"judge-{len(self.requests)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model", MODEL),
                "choices": [] if fault == "no_choices" else [choice],
                "usage": usage | {"total_tokens": sum(usage.values())},
            }
        )


SAID = {
    "garbage": "I would rather not say.",
    "two_scores": "Score: 1\nor rather\nScore: 0",
    "scale": "Score: 1000",
    "empty": "",
    "cut": "Score: 1",
}


def application(judge: StandIn) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        judge.requests.append(body)
        judge.headers.append(dict(request.headers))
        judge.running += 1
        judge.most_running = max(judge.most_running, judge.running)
        try:
            return await judge.answer(body, request.headers.get("authorization", "").removeprefix("Bearer "))
        finally:
            judge.running -= 1

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "examples"}]}

    @app.post("/faults")
    async def inject(request: Request) -> dict[str, int]:
        judge.faults.extend((await request.json())["faults"])
        return {"waiting": len(judge.faults)}

    return app


class Server:
    """The stand-in in a thread of this process, on a free port of 127.0.0.1: ``with Server(StandIn()) as url: ...``."""

    def __init__(self, judge: StandIn, port: int = 0) -> None:
        self.judge = judge
        config = uvicorn.Config(application(judge), host="127.0.0.1", port=port, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the stand-in judge did not start; is the port taken?")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self.judge.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--rule", default="exact", help="the reward that compares answer and reference")
    parser.add_argument("--always", default="", choices=["", "A", "B", "tie"], help="pairwise: always name this one")
    parser.add_argument("--delay-s", type=float, default=0.0, help="before each reply")
    parser.add_argument("--noise", type=int, default=0, help="of so many replies, one is the contrary")
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS, help="of the next request; repeatable")
    args = parser.parse_args(arguments)
    judge = StandIn(args.rule, args.always, args.delay_s, args.noise, deque(args.fault))
    print(f"judge at http://127.0.0.1:{args.port}/v1, model {MODEL}, rule {args.rule}", flush=True)
    try:
        uvicorn.run(application(judge), host="127.0.0.1", port=args.port, log_level="warning")
    finally:
        judge.close()


if __name__ == "__main__":
    main()
