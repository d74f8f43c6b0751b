"""A served reward without Ray: what goes over the wire, who is turned away, and that a round trip changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import math
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import ERROR, NOT_APPLICABLE, OK, STATUSES, TIMEOUT, UNPARSEABLE, RewardLoadError, Verdict
from rewards.composition import read_parts
from rewards.protocol import ScoreRequest, WireError, read_reply, read_request, write_error, write_reply, write_request
from rewards.remote import remote_reward
from rewards.runner import RewardPool, Scored
from rlplatform.config import ConfigError
from rlplatform.reward_choice import choose
from rlplatform.reward_server import Answer, RewardServer, Served, version_of
from rlplatform.serving import Options, is_loopback, read_token, serve_rewards

TOKEN = "correct-horse-battery"
BEARER = {"authorization": f"Bearer {TOKEN}"}
MINE = """
import os, signal, time
from rewards.base import Verdict, groupwise, rowwise

@rowwise
def behave(prompts, completions, mode, log_extra, log_metric, trainer_state, **columns):
    log_extra("seen", [float("nan") if m == "nan extra" else m for m in mode])
    log_metric("step", trainer_state.global_step)
    scores = []
    for m in mode:
        if m == "sleep": time.sleep(600)
        if m == "nap": time.sleep(0.5)
        if m == "raise": raise KeyError("no such key")
        if m == "die": os.kill(os.getpid(), signal.SIGKILL)
        if m == "deaf": signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); time.sleep(600)
        scores.append({"none": None, "nan": float("nan"), "unparseable": Verdict(0.0, "unparseable", detail="hm"),
                       "parts": Verdict(0.5, parts={"style": 0.25, "odd": float("nan")})}.get(m, 1.0))
    return scores

@groupwise
def longest(completions, **columns):
    most = max(len(c) for c in completions)
    return [float(len(c) == most) for c in completions]
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("served") / "mine.py"
    path.write_text(MINE)
    return path


def served(functions: Any, **changes: Any) -> Served:
    known = {"num_processes": 1, "timeout_s": 1.0, "max_rows": 1000, "max_body": 100_000}
    return Served(read_parts(functions), token_digest=hashlib.sha256(TOKEN.encode()).digest(), **known | changes)


async def pieces(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def ask(server: RewardServer, method: str = "POST", path: str = "/score", body: Any = b"", **headers: str) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(server.handle(method, path, BEARER | headers, pieces(content)))


ROWS = {"prompts": ["p", "p"], "completions": [r"\boxed{7}", "8"], "columns": {"answer": ["7", "7"]}}


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    server = RewardServer(served({"math": 2.0}, timeout_s=20.0))
    yield server
    server.close()


class TestWhoIsAnswered:
    @pytest.mark.parametrize(
        "authorization",
        ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \udcff"],
    )
    @pytest.mark.parametrize(("method", "path"), [("POST", "/score"), ("GET", "/health"), ("GET", "/nothing")])
    def test_nobody_without_the_token(self, server, method, path, authorization):
        answer = ask(server, method, path, ROWS, authorization=authorization)
        assert answer.status == 401
        assert answer.headers == {"WWW-Authenticate": "Bearer"}
        assert TOKEN.encode() not in answer.body

    def test_whoever_has_it(self, server):
        answer = ask(server, body=ROWS)
        assert answer.status == 200
        reply = json.loads(answer.body)
        assert [v["score"] for v in reply["verdicts"]] == [2.0, 0.0]
        assert reply["verdicts"][0]["parts"] == {"math": 1.0}
        assert reply["metrics"] == {"math_checkers_disagree": 0.0}
        assert reply["version"] == json.loads(ask(server, "GET", "/version").body)["version"]
        assert ask(server, body=ROWS, authorization=f"bearer {TOKEN}").status == 200

    def test_the_token_is_not_in_what_travels_to_replicas(self):
        assert TOKEN not in repr(served({"math": 1.0}))

    def test_other_paths_and_methods(self, server):
        assert ask(server, "GET", "/nothing").status == 404
        answer = ask(server, "GET", "/score")
        assert (answer.status, answer.headers) == (405, {"Allow": "POST"})
        assert ask(server, "POST", "/health").status == 405

    def test_health_counts(self, server):
        before = json.loads(ask(server, "GET", "/health").body)
        ask(server, body=ROWS)
        after = json.loads(ask(server, "GET", "/health").body)
        assert after["graded_rows"] == before["graded_rows"] + 2
        assert (after["status"], after["functions"], after["pending_rows"]) == ("ok", ["math"], 0)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("change", "field", "row", "words"),
        [
            (b"{", "body", None, "expected JSON"),
            (b"[]", "body", None, "expected a JSON object, got a list"),
            (b"\xff", "body", None, "expected JSON"),
            (b"[" * 100_00, "body", None, "expected JSON"),
            ({"completions": ["a", float("nan")]}, "body", None, "NaN is no JSON"),
            (b'{"completions": ["a"], "columns": {"n": [1e400]}}', "body", None, "1e400 is no JSON"),
            (b'{"completions": ["a"], "completions": ["b"]}', "body", None, "'completions' stands twice"),
            (b'{"columns": {"answer": ["1"], "answer": ["2"]}}', "body", None, "'answer' stands twice"),
            ({"completion": []}, "completion", None, "completions"),
            ({"completions": []}, "completions", None, "at least one row"),
            ({"completions": "ab"}, "completions", None, "expected a list, a value a row, got a string"),
            ({"completions": ["a", 3]}, "completions", 1, "a string or a list of messages, got a number"),
            ({"completions": ["a", [{"role": "user"}]]}, "completions", 1, "list of messages"),
            ({"completions": ["a", "b", "c"]}, "columns.answer", None, "expected 3 values, one a completion, got 2"),
            ({"prompts": ["a", None]}, "prompts", 1, "got null"),
            ({"prompts": None}, "prompts", None, "got null"),
            ({"prompts": ["a"]}, "prompts", None, "expected 2 values"),
            ({"columns": []}, "columns", None, "expected an object of lists, got a list"),
            ({"columns": {"answer": "ab"}}, "columns.answer", None, "expected a list"),
            ({"columns": {"prompts": ["a", "b"]}}, "columns.prompts", None, "supplied by the platform"),
            ({"completion_ids": [[1], ["a"]]}, "completion_ids", 1, "integers"),
            ({"completion_ids": [[1], [True]]}, "completion_ids", 1, "integers"),
            ({"groups": [1, None]}, "groups", 1, "got null"),
            ({"step": -1}, "step", None, ">= 0"),
            ({"step": True}, "step", None, "True"),
        ],
    )
    def test_422_names_field_and_row(self, server, change, field, row, words):
        body = change if isinstance(change, bytes) else {**ROWS, **change}
        answer = ask(server, body=body)
        assert answer.status == 422
        error = json.loads(answer.body)["error"]
        assert (error["field"], error["row"]) == (field, row)
        assert words in error["message"]

    def test_a_field_that_is_absent(self, server):
        for absent in ("prompts", "completions"):
            answer = ask(server, body={name: value for name, value in ROWS.items() if name != absent})
            assert answer.status == 422
            assert json.loads(answer.body)["error"]["field"] == absent

    def test_a_column_that_routing_needs(self):
        server = RewardServer(served({"exact": {"when": {"task": "qa"}}}))
        try:
            answer = ask(server, body=ROWS)
            assert answer.status == 422
            assert "no column task" in json.loads(answer.body)["error"]["message"]
        finally:
            server.close()

    def test_413_at_the_limit_and_no_end_of_reading(self, server):
        assert ask(server, body=b"x" * 100_001).status == 413
        assert ask(server, body=json.dumps(ROWS).encode().ljust(100_000)).status == 200
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 1000
                yield b"x" * 1000

        assert asyncio.run(server.handle("POST", "/score", BEARER, endless())).status == 413
        assert taken <= 801_000


class TestBackPressure:
    def test_rows_beyond_the_limit_are_turned_away_until_there_is_room(self, mine):
        server = RewardServer(served({f"{mine}:behave": 1.0}, max_rows=3, timeout_s=5.0))
        row = {"prompts": ["p"], "completions": ["c"], "columns": {"mode": ["nap"]}}
        many = {"prompts": ["p"] * 5, "completions": ["c"] * 5, "columns": {"mode": ["ok"] * 5}}

        async def send(body: Any) -> Answer:
            return await server.handle("POST", "/score", BEARER, pieces(json.dumps(body).encode()))

        async def scene() -> None:
            assert (await send(many)).status == 200  # an idle server takes any request
            first = [asyncio.create_task(send(row)) for _ in range(3)]
            while server._pending < 3:
                await asyncio.sleep(0.01)
            refused = await send(row)
            assert refused.status == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert "3 rows are waiting, 3 may" in json.loads(refused.body)["error"]["message"]
            assert [answer.status for answer in await asyncio.gather(*first)] == [200] * 3
            assert (await send(row)).status == 200

        try:
            asyncio.run(scene())
        finally:
            server.close()

    def test_rows_of_a_client_that_went_away_count_until_they_are_graded(self, mine):
        server = RewardServer(served({f"{mine}:behave": 1.0}, timeout_s=5.0))
        row = {"prompts": ["p"], "completions": ["c"], "columns": {"mode": ["nap"]}}

        async def scene() -> None:
            task = asyncio.create_task(server.handle("POST", "/score", BEARER, pieces(json.dumps(row).encode())))
            while server._pending < 1:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.sleep(0.05)
            assert server._pending == 1
            while server._pending:
                await asyncio.sleep(0.01)
            assert server._num_graded == 1

        try:
            asyncio.run(asyncio.wait_for(scene(), 20))
        finally:
            server.close()


class TestWire:
    @given(
        st.lists(
            st.tuples(
                st.floats(allow_nan=False, allow_infinity=False),
                st.sampled_from(STATUSES),
                st.dictionaries(st.text(), st.floats(), max_size=2),
                st.text(),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_verdicts_come_back_as_they_went(self, values):
        verdicts = [
            Verdict(score if status == OK else 0.0, status, parts, text) for score, status, parts, text in values
        ]
        body = write_reply(Scored(verdicts, {"column": [math.nan] * len(verdicts)}, {"m": math.inf}, {}), "v")
        for given_row in json.loads(body, parse_constant=pytest.fail)["verdicts"]:
            assert (given_row["score"] is None) == (given_row["status"] != OK)
        reply = read_reply(body, len(verdicts))
        expected = [
            Verdict(v.score, v.status, {k: p for k, p in v.parts.items() if math.isfinite(p)}, v.detail)
            for v in verdicts
        ]
        assert reply.verdicts == expected
        assert reply.extras == {"column": [None] * len(verdicts)}
        assert reply.metrics == {}

    def test_requests_come_back_as_they_went(self):
        request = ScoreRequest(
            ["p", [{"role": "user", "content": "q"}]], ["a", "b"], {"c": [{"x": None}, [1]]}, [[1], []]
        )
        assert read_request(write_request(request)) == ScoreRequest(**{**vars(request), "groups": None, "step": 0})

    @pytest.mark.parametrize("value", [math.nan, b"bytes", object(), {1, 2}])
    def test_what_is_no_json_is_named(self, value):
        with pytest.raises(WireError, match=r"columns\.odd, row 1: cannot be sent as JSON"):
            write_request(ScoreRequest(["p", "p"], ["a", "b"], {"fine": [1, 2], "odd": [1.0, value]}))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"verdicts": []}, "expected 1 values"),
            ({"verdicts": None}, "expected a list"),
            ({"verdicts": [{"score": 1.0}]}, "row 0"),
            ({"verdicts": [{"score": None, "status": "ok"}]}, "an ok verdict without a score"),
            ({"verdicts": [{"score": 1.0, "status": "fine"}]}, "fine"),
            ({"verdicts": [3]}, "row 0"),
            ({"extras": []}, None),
            ({"extras": {"a": [1, 2]}}, "extras.a"),
            ({"extras": [1]}, "expected objects"),
        ],
    )
    def test_replies_that_break_the_contract(self, change, words):
        good = {"verdicts": [{"score": 1.0, "status": "ok", "parts": {}, "detail": "", "seconds": 0.1}]}
        body = json.dumps(good | change).encode()
        if words is None:
            assert read_reply(body, 1).verdicts[0].score == 1.0
        else:
            with pytest.raises(WireError, match=words):
                read_reply(body, 1)


class TestVersion:
    def test_it_changes_with_source_and_settings_and_with_nothing_else(self, tmp_path):
        path = tmp_path / "scores.py"
        path.write_text("def fn(completions, *, by=1.0): return [by] * len(completions)\n")
        name = f"{path}:fn"
        first = version_of(served({name: 1.0}))
        assert version_of(served({name: 1.0}, num_processes=4, max_rows=7)) == first
        settings = version_of(served({name: {"args": {"by": 2}}}))
        assert settings["functions"]["fn"]["source"] == first["functions"]["fn"]["source"]
        assert settings["functions"]["fn"]["settings"]
        assert "settings" not in first["functions"]["fn"]
        assert settings["version"] != first["version"]
        weight = version_of(served({name: 0.5}))
        assert weight["functions"]["fn"]["part"] != first["functions"]["fn"]["part"]
        assert weight["version"] != first["version"]
        path.write_text(path.read_text() + "# changed\n")
        changed = version_of(served({name: 1.0}))
        assert changed["functions"]["fn"]["source"] != first["functions"]["fn"]["source"]
        assert changed["version"] != first["version"]
        assert str(tmp_path) not in json.dumps(first)
        assert first["packages"]["math-verify"]

    def test_an_adapted_function_counts_by_its_own_file(self, tmp_path):
        path = tmp_path / "scores.py"
        path.write_text("def fn(data_source, solution_str, ground_truth, extra_info): return 1.0\n")
        first = version_of(served({f"verl:{path}:fn": 1.0}))
        path.write_text(path.read_text() + "# changed\n")
        assert version_of(served({f"verl:{path}:fn": 1.0})) != first


# --- the client, over a real socket -----------------------------------------------------------------------------------


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["prompts", "completions", "columns", "groups", "completion_ids", "step", "role", "content"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@dataclass
class Http:
    """An HTTP server in a thread: every request goes to ``answer``."""

    answer: Any  # (method, path, headers, body) -> Answer
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Http:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append({"path": self.path, "headers": headers, "body": body})
                answer = outer.answer("POST", self.path, headers, body)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def through(server: RewardServer) -> Any:
    return lambda method, path, headers, body: asyncio.run(server.handle(method, path, headers, pieces(body)))


@pytest.fixture
def token(monkeypatch) -> None:
    monkeypatch.setenv("RLPLATFORM_REWARD_TOKEN", TOKEN)
    monkeypatch.setattr("rewards.remote._MAX_WAIT_S", 0.01)


@pytest.mark.usefixtures("token")
class TestRemote:
    def test_a_round_trip_equals_a_direct_call(self, mine):
        """Hostile rows too: statuses, parts and reasons arrive as they were said."""
        modes = ["ok", "sleep", "raise", "none", "nan", "unparseable", "parts", "die", "deaf", "ok"]
        functions = {f"{mine}:behave": 1.0, "math": 0.5}
        columns = {"mode": modes, "answer": ["7"] * 10}
        completions = [r"\boxed{7}"] * 9 + [r"\boxed{9^{9^{9^{9}}}}"]
        arguments = (["p"] * 10, completions, columns, [[1]] * 10, {"global_step": 3}, [0] * 10)
        with RewardPool(functions, timeout_s=1.0) as pool:
            direct = pool.score(*arguments)
        server = RewardServer(served(functions))
        try:
            with (
                Http(through(server)) as web,
                RewardPool({"remote": {"args": {"url": web.url}}}, timeout_s=60.0) as pool,
            ):
                scored = pool.score_detailed(*arguments)
        finally:
            server.close()
        assert {v.status for v in direct} == {OK, TIMEOUT, ERROR, UNPARSEABLE}
        assert [v.status for v in scored.verdicts] == [v.status for v in direct]
        assert [v.score for v in scored.verdicts] == [v.score for v in direct]
        for there, here in zip(scored.verdicts, direct, strict=True):
            if here.ok:
                finite = {f"remote/{name}": part for name, part in here.parts.items() if math.isfinite(part)}
                assert there.parts == {"remote": here.score, **finite}
        assert "KeyError: 'no such key'" in scored.verdicts[2].detail
        assert f'File "{mine}"' in scored.verdicts[2].detail
        assert scored.verdicts[1].seconds >= 1.0
        assert scored.extras["seen"][0] == "ok"
        assert scored.metrics["step"] == 3.0

    def test_another_version_than_the_one_that_was_named_is_an_error(self, mine):
        server = RewardServer(served({f"{mine}:longest": 1.0}))
        try:
            version = json.loads(ask(server, "GET", "/version").body)["version"]
            with Http(through(server)) as web:
                assert remote_reward(["p"], ["a"], url=web.url, version=version)[0].ok
                [verdict] = remote_reward(["p"], ["a"], url=web.url, version="3f0c00000000")
        finally:
            server.close()
        assert verdict.status == ERROR
        assert f"expected version 3f0c00000000, and the server grades with version {version} now" in verdict.detail

    def test_groups_travel_whole(self, mine):
        server = RewardServer(served({f"{mine}:longest": 1.0}))
        try:
            with Http(through(server)) as web, RewardPool({"remote": {"args": {"url": web.url}}}) as pool:
                verdicts = pool.score(["same"] * 4, ["aa", "b", "ccc", "dddd"], groups=[0, 0, 1, 1])
        finally:
            server.close()
        assert [v.score for v in verdicts] == [1.0, 0.0, 0.0, 1.0]

    def test_without_groups_the_rows_of_a_prompt_are_one(self, mine):
        server = RewardServer(served({f"{mine}:longest": 1.0}))
        try:
            prompts = ["p", "q", "p", "q"]
            reply = json.loads(ask(server, body={"prompts": prompts, "completions": ["aa", "b", "a", "cc"]}).body)
        finally:
            server.close()
        assert [v["score"] for v in reply["verdicts"]] == [1.0, 0.0, 0.0, 1.0]

    def test_a_server_that_does_not_answer_makes_the_group_a_timeout(self):
        answered = threading.Event()
        good = write_reply(Scored([Verdict(1.0)] * 2, {}, {}, {}), "v")

        def late(*_: Any) -> Answer:
            answered.wait(20)
            return Answer(200, good, {})

        with Http(late) as web, RewardPool({"remote": {"args": {"url": web.url}}}, timeout_s=1.0) as pool:
            verdicts = pool.score(["p"] * 2, ["a", "b"], groups=[0, 0])
            answered.set()
            again = pool.score(["p"] * 2, ["a", "b"], groups=[0, 0])
        assert [v.status for v in verdicts] == [TIMEOUT] * 2
        assert [v.score for v in again] == [1.0, 1.0]

    def test_a_busy_server_is_asked_again(self):
        good = write_reply(Scored([Verdict(1.0)], {}, {}, {}), "v")
        answers = iter(
            [
                Answer(429, b"{}", {"Retry-After": "7"}),
                Answer(503, b"", {}),
                Answer(200, good, {}),
                Answer(500, b"", {}),
            ]
        )
        with Http(lambda *_: next(answers)) as web:
            verdicts = remote_reward(["p"], ["c"], url=web.url + "/")
        assert [v.score for v in verdicts] == [1.0]
        assert len(web.requests) == 3
        assert web.requests[0]["path"] == "/score"
        assert web.requests[0]["headers"]["authorization"] == f"Bearer {TOKEN}"

    def test_retry_after_is_obeyed(self, monkeypatch):
        waits: list[float] = []
        monkeypatch.setattr("rewards.remote._MAX_WAIT_S", 30.0)
        monkeypatch.setattr("rewards.remote.time.sleep", waits.append)
        with Http(lambda *_: Answer(429, b"{}", {"Retry-After": "7"})) as web:
            [verdict] = remote_reward(["p"], ["c"], url=web.url, attempts=6)
        assert verdict.status == ERROR
        assert "asked 6 times; the last time HTTP 429" in verdict.detail
        assert [wait >= 7.0 for wait in waits] == [True] * 5
        assert 0.75 * 0.5 * 2**4 <= waits[4] <= 1.25 * 0.5 * 2**4  # the back-off has grown beyond it by then

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (Answer(401, b"{}", {}), "refuses the token"),
            (Answer(413, b'{"error": "too large"}', {}), "HTTP 413: .*too large"),
            (Answer(302, b"", {"Location": "http://127.0.0.1:9/"}), "HTTP 302"),
            (Answer(200, b"<html>", {}), "body: expected JSON"),
            (Answer(200, b'{"verdicts": []}', {}), "expected 1 values"),
        ],
    )
    def test_other_answers_are_errors_at_once(self, answer, words):
        with Http(lambda *_: answer) as web:
            [verdict] = remote_reward(["p"], ["c"], url=web.url)
        assert verdict.status == ERROR
        assert re.search(words, verdict.detail)
        assert len(web.requests) == 1

    def test_nobody_there(self):
        [first, _] = remote_reward(["p", "p"], ["c", "d"], url="http://127.0.0.1:9", attempts=3)
        assert first.status == ERROR
        assert "asked 3 times; the last time no answer to 0.0 MiB: ConnectionRefusedError" in first.detail

    def test_what_is_not_set_is_said(self, monkeypatch):
        for url in ("", "grader:8000", "ftp://grader"):
            assert "url: expected http://HOST:PORT" in remote_reward(["p"], ["c"], url=url)[0].detail
            with pytest.raises(
                RewardLoadError, match=r"reward\.functions\.remote\.args: url: expected http://HOST:PORT"
            ):
                RewardPool({"remote": {"args": {"url": url}}})
        monkeypatch.delenv("RLPLATFORM_REWARD_TOKEN")
        assert "$RLPLATFORM_REWARD_TOKEN" in remote_reward(["p"], ["c"], url="http://127.0.0.1:9")[0].detail
        detail = remote_reward(["p"], ["c"], url="http://127.0.0.1:9", token_file="/no/such")[0].detail
        assert "/no/such" in detail

    def test_a_column_that_is_no_json_is_an_error_that_names_it(self):
        [verdict] = remote_reward(["p"], ["c"], url="http://127.0.0.1:9", blob=[b"x"])
        assert verdict.status == ERROR
        assert "columns.blob, row 0" in verdict.detail

    def test_no_proxy_sees_the_token(self, monkeypatch):
        good = write_reply(Scored([Verdict(0.0, NOT_APPLICABLE)], {}, {}, {}), "v")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with Http(lambda *_: Answer(200, good, {})) as web:
            assert remote_reward(["p"], ["c"], url=web.url)[0].status == NOT_APPLICABLE


@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_whatever_is_sent_is_read_or_refused_by_field(body):
    try:
        request = read_request(body)
    except WireError as error:
        told = json.loads(write_error(error))["error"]
        assert set(told) == {"field", "row", "message"}
    else:
        assert len(request.prompts) == len(request.completions) > 0


class TestToken:
    def test_of_a_file(self, tmp_path):
        path = tmp_path / "token"
        path.write_text(f" {TOKEN}\n")
        assert read_token(path) == (TOKEN, False)

    @pytest.mark.parametrize("text", ["", "short", "two words that are long", "nicht-ganz-ascii-ü-nicht"])
    def test_of_no_use(self, tmp_path, text):
        path = tmp_path / "token"
        path.write_text(text)
        with pytest.raises(ConfigError, match="at least 16 ASCII characters"):
            read_token(path)
        with pytest.raises(ConfigError, match="No such file"):
            read_token(tmp_path / "none")

    def test_made(self):
        first, second = read_token(None), read_token(None)
        assert first[1]
        assert first != second
        assert len(first[0]) >= 40


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_listening_beyond_this_machine_is_warned_of_and_the_token_shown_once(monkeypatch, capsys, host, warns):
    started = []

    @contextmanager
    def nothing(choice, options, token):
        started.append(token)
        yield "http://here", "v1"

    monkeypatch.setattr("rlplatform.serving.serving", nothing)
    monkeypatch.setattr("rlplatform.serving.threading.Event.wait", lambda *_: True)
    monkeypatch.setattr("rlplatform.serving.signal.signal", lambda *_: None)
    serve_rewards(choose(["math"]), Options(host=host))
    told = capsys.readouterr()
    assert told.out.count(started[0]) == 1
    assert "serving math at http://here (version v1)" in told.out
    assert ("can be reached from other machines, and HTTP is not encrypted" in told.err) == warns


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
