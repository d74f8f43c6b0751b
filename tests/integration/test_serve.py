"""`rlplatform serve` and `rlplatform chat` as a user starts them, on a model whose every answer is known beforehand."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import PreTrainedTokenizerBase

from rlplatform.budget import STOP_TEXT
from tests.integration.chain_model import ANSWER, THOUGHT, save_chain_model

ROOT = Path(__file__).parents[2]
STOP_THOUGHT, _, STOP_REST = STOP_TEXT.partition("</think>")
STEP_TOKENS = 2048  # vLLM's default of a server on CPU; a longer prompt is computed in parts
START_S = 300.0


@dataclass
class Model:
    folder: Path
    tokenizer: PreTrainedTokenizerBase

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def post(self, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        """(status, body) of one request."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def say(self, text: str = "hello", **given: Any) -> Any:
        """The reply's only choice with ``usage`` beside it, at temperature 0 where nothing else is given."""
        body = {"model": "chain", "temperature": 0, "return_token_ids": True, **given}
        status, reply = self.post({"messages": [{"role": "user", "content": text}], **body})
        assert status == 200, reply
        (choice,) = reply["choices"]
        return choice | {"usage": reply["usage"], "prompt_token_ids": reply["prompt_token_ids"]}

    def stream(self, text: str = "hello", **given: Any) -> list[Any]:
        """The events of a streamed reply."""
        body = {"model": "chain", "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **given}
        data = json.dumps({"messages": [{"role": "user", "content": text}], **body}).encode()
        request = urllib.request.Request(self.url + "/v1/chat/completions", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            lines = [line.decode().strip().removeprefix("data: ") for line in response if line.strip()]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def environment() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "RAY_"))}
    return found | {"PYTHONPATH": str(ROOT), "VLLM_NO_USAGE_STATS": "1", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("chain")
    return Model(folder, save_chain_model(folder))


@pytest.fixture(scope="module")
def server(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlplatform", "serve", str(model.folder), "--port", str(port), "--name", "chain"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment(), stdout=output, stderr=output)
    started = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_healthy(started)
        yield started
    finally:
        end(process)


def wait_until_healthy(server: Server) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(server.url + "/health", timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer in {START_S:.0f} s: {server.log.read_text()[-4000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """By its pid, as a user does; what it started ends with it."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(60)
    finally:
        _, alive = psutil.wait_procs(children, 20)
        for child in alive:
            child.kill()


def shared_memory(pid: int) -> set[str]:
    """Files in /dev/shm that a process and its children hold."""
    found = set()
    for process in (one := psutil.Process(pid), *one.children(recursive=True)):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        found |= set(re.findall(r"(/dev/shm/\S+)$", maps, flags=re.M))
    return found


# --- thoughts and answers -------------------------------------------------------------------------------------------


def test_thought_and_answer_come_apart(server: Server, model: Model) -> None:
    reply = server.say()
    assert reply["message"]["reasoning"] == THOUGHT
    assert reply["message"]["content"] == "\n\n" + ANSWER
    assert reply["finish_reason"] == "stop"
    expected = model.ids(f"<think>{THOUGHT}</think>\n\n{ANSWER}<|im_end|>")
    assert reply["token_ids"] == expected
    assert reply["usage"]["completion_tokens"] == len(expected)


def test_a_stream_says_the_same_in_the_same_parts(server: Server) -> None:
    events = server.stream()
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    thought = "".join(delta.get("reasoning") or "" for delta in deltas)
    answer = "".join(delta.get("content") or "" for delta in deltas)
    assert (thought, answer) == (THOUGHT, "\n\n" + ANSWER)
    assert not any(delta.get("reasoning") and delta.get("content") for delta in deltas)
    assert len(deltas) > 20  # token by token
    assert events[-1]["usage"]["completion_tokens"] == len(THOUGHT) + len(ANSWER) + 4


def test_the_prompt_is_that_of_our_template(server: Server, model: Model) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q /no_think"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\nyes"},
        {"role": "user", "content": "and?"},
    ]
    for arguments in ({}, {"enable_thinking": False}):
        body = {"messages": messages, "max_tokens": 1, "return_token_ids": True, "chat_template_kwargs": arguments}
        status, reply = server.post(body)
        assert status == 200, reply
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
        assert reply["prompt_token_ids"] == model.ids(text)


def test_no_think_reaches_the_model_and_its_empty_thought_is_none(server: Server) -> None:
    for given in ({}, {"thinking_token_budget": 5}):
        message = server.say("hello /no_think", **given)["message"]
        assert not message["reasoning"]
        assert message["content"] == "\n\n" + ANSWER


def test_with_enable_thinking_false_everything_is_answer(server: Server, model: Model) -> None:
    given = {"chat_template_kwargs": {"enable_thinking": False}}
    for budget in (None, 0, 5):
        reply = server.say(thinking_token_budget=budget, **given)
        assert not reply["message"]["reasoning"]
        assert reply["message"]["content"] == ANSWER
        assert reply["token_ids"] == model.ids(ANSWER + "<|im_end|>")


# --- the budget -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, 5, 25])
def test_at_the_budget_the_stop_text_is_inserted_once(server: Server, model: Model, budget: int) -> None:
    """The budget counts tokens behind ``<think>``."""
    reply = server.say(thinking_token_budget=budget)
    expected = model.ids("<think>" + THOUGHT[:budget]) + model.ids(STOP_TEXT) + model.ids(ANSWER + "<|im_end|>")
    assert reply["token_ids"] == expected
    assert reply["usage"]["completion_tokens"] == len(expected)
    assert reply["message"]["reasoning"] == THOUGHT[:budget] + STOP_THOUGHT
    assert reply["message"]["content"] == STOP_REST + ANSWER


@pytest.mark.parametrize("budget", [27, 30, -1])
def test_a_thought_within_its_budget_is_left_alone_and_so_is_the_answer(server: Server, budget: int) -> None:
    free = server.say()
    assert server.say(thinking_token_budget=budget)["token_ids"] == free["token_ids"]


def test_budgets_of_one_batch_do_not_mix(server: Server, model: Model) -> None:
    budgets = [None, 3, 9, None, 0, 40]
    with ThreadPoolExecutor(len(budgets)) as pool:
        replies = list(pool.map(lambda budget: server.say(thinking_token_budget=budget), budgets))
    for budget, reply in zip(budgets, replies, strict=True):
        bound = budget is not None and budget < len(THOUGHT)
        thought = THOUGHT[:budget] + STOP_THOUGHT if bound else THOUGHT
        assert reply["message"]["reasoning"] == thought
        assert reply["message"]["content"] == (STOP_REST if bound else "\n\n") + ANSWER


def test_a_budget_streams(server: Server) -> None:
    deltas = [c["delta"] for event in server.stream(thinking_token_budget=5) for c in event["choices"]]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == THOUGHT[:5] + STOP_THOUGHT
    assert "".join(delta.get("content") or "" for delta in deltas) == STOP_REST + ANSWER


def test_the_total_holds_within_a_budget(server: Server) -> None:
    reply = server.say(thinking_token_budget=5, max_completion_tokens=12)
    assert reply["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == len(reply["token_ids"]) == 12


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_again(server: Server) -> None:
    given = {"temperature": 1, "thinking_token_budget": 5, "max_completion_tokens": 400}
    first, again, other = (server.say(seed=seed, **given)["token_ids"] for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_seeded_prompt_that_no_step_takes_whole(server: Server, model: Model) -> None:
    """On CPU vLLM's engine would end here, and everybody's requests with it."""
    given = {"temperature": 1, "seed": 7, "max_completion_tokens": 400}
    short = server.say("hello", **given)
    long = server.say("z" * (STEP_TOKENS + 50), **given)
    assert len(long["prompt_token_ids"]) > STEP_TOKENS
    assert long["token_ids"] == short["token_ids"]  # the model says the same to both, and so does the seed


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"thinking_token_budget": -2}, ["thinking_token_budget", "non-negative"]),
        ({"thinking_token_budget": 2.5}, ["thinking_token_budget", "integer"]),
        ({"thinking_token_budget": "many"}, ["thinking_token_budget", "integer"]),
        ({"thinking_budget": 5}, ["thinking_budget", "thinking_token_budget"]),
        ({"temprature": 1, "nonsense": 2}, ["temprature", "temperature", "nonsense"]),
        ({"temperature": -1}, ["temperature", "-1"]),
        ({"max_completion_tokens": 0}, ["max"]),
        ({"seed": "x"}, ["seed"]),
        ({"messages": []}, ["message"]),
    ],
)
def test_what_cannot_be_done_is_said(server: Server, wrong: dict[str, Any], words: list[str]) -> None:
    status, reply = server.post({"messages": [{"role": "user", "content": "hello"}], **wrong})
    assert status == 400, reply
    for word in words:
        assert word in reply["error"]["message"], reply


def test_another_model_and_a_prompt_without_room(server: Server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    status, reply = server.post({"messages": messages, "model": "another"})
    assert (status, "another" in reply["error"]["message"]) == (404, True)
    status, reply = server.post({"messages": [{"role": "user", "content": "z" * 5000}]})
    assert (status, "4096" in reply["error"]["message"]) == (400, True)


def test_completions_know_the_budget_and_their_keys(server: Server, model: Model) -> None:
    body = {"model": "chain", "prompt": "\n", "temperature": 0, "max_tokens": 200, "skip_special_tokens": False}
    status, reply = server.post(body | {"thinking_token_budget": 2}, "/v1/completions")
    assert status == 200, reply
    assert reply["choices"][0]["text"].startswith("<think>ab" + STOP_TEXT + ANSWER)
    status, reply = server.post(body | {"max_token": 2}, "/v1/completions")
    assert (status, "max_tokens" in reply["error"]["message"]) == (400, True)


# --- the command ----------------------------------------------------------------------------------------------------


def test_options_reach_the_server(server: Server) -> None:
    with urllib.request.urlopen(server.url + "/v1/models", timeout=60) as response:
        (card,) = json.loads(response.read())["data"]
    assert (card["id"], card["max_model_len"]) == ("chain", 4096)
    port = int(server.url.rpartition(":")[2])
    tree = [one := psutil.Process(server.process.pid), *one.children(recursive=True)]
    listening = {c.laddr for p in tree for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}


def test_it_ends_by_its_pid_and_leaves_nothing(server: Server) -> None:
    """The last test of this file that asks the server."""
    held = shared_memory(server.process.pid)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children  # the engine
    end(server.process)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not {path for path in held if Path(path).exists()}


def test_help_names_every_option() -> None:
    told = run_command(["serve", "--help"], "").stdout
    assert set(re.findall(r"--[a-z-]+", told)) == {"--host", "--port", "--max-model-len", "--dtype", "--name", "--help"}


def test_what_the_model_cannot_do_is_refused_before_anything_starts(model: Model) -> None:
    ended = run_command(["serve", str(model.folder), "--max-model-len", "5000"], "")
    assert ended.returncode == 2
    assert "positions for 4096" in ended.stderr
    assert "Traceback" not in ended.stderr


def run_command(arguments: list[str], typed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlplatform", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), input=typed, capture_output=True, text=True, timeout=START_S, check=False
    )


# --- chat -----------------------------------------------------------------------------------------------------------


def test_a_conversation_in_the_terminal(model: Model) -> None:
    """What is on the screen is the conversation, and nothing of the engine's."""
    typed = ["hello", ":budget 6", "again", ":clear", "hello /no_think", ":budget many", ":nonsense", ":quit", "never"]
    options = ["--temperature", "0", "--max-model-len", "512", "--max-new-tokens", "200"]
    ended = run_command(["chat", str(model.folder), *options], "\n".join(typed) + "\n")
    assert ended.returncode == 0, ended.stderr
    thought, answer = f"<think>{THOUGHT}</think>", f"\n\n{ANSWER}"
    expected = [
        ":help for commands\n> ",
        f"{thought}{answer}\n> ",
        "thinking budget: 6 tokens\n> ",
        f"<think>{THOUGHT[:5]}{STOP_TEXT}{ANSWER}\n> ",  # the tag is one of the six
        "a new conversation\n> ",
        f"<think></think>{answer}\n> ",
        "expected a number of tokens or off, got 'many'\n> ",
    ]
    told = ended.stdout
    assert told.startswith("".join(expected)), told
    assert told.removeprefix("".join(expected)).startswith("no command :nonsense\n:budget")
    assert "never" not in told
    assert "vllm" not in told.lower()
    assert not re.findall(r".*(?:INFO|WARNING|Warning).*", ended.stderr)  # the bar of a loading model remains
