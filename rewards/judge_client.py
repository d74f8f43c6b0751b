"""A judge behind an OpenAI-compatible endpoint: one request in, a reply or the reason why there is none out.

Retries are the ``openai`` client's: connection errors, timeouts, 408, 409, 429 and 5xx, up to ``max_retries`` times,
after 0.5, 1, 2, ... 8 s less up to a quarter at random, or after what ``Retry-After`` says up to two minutes. Every
other 4xx is final. A key is read from the environment when a client is made, and never shown.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from rewards.base import ERROR, TIMEOUT
from rewards.judge_cache import ReplyCache, key_of
from rewards.judge_prompts import JudgeSettingsError
from rewards.judge_reading import UnreadableReply, read_value
from rewards.judge_rules import Ask, NoReply, Reply, Rules

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_MAX_LINES, _MAX_WIDTH = 3, 300  # of an endpoint's message


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is. Raises JudgeSettingsError."""

    base_url: str = ""  # with /v1
    model: str = ""
    api_key_env: str = ""  # the environment variable that holds the key; "" = the endpoint wants none
    timeout_s: float = 60.0  # seconds an attempt may take
    max_retries: int = 3
    cache: str = ""  # a file of rewards.judge_cache; "" = none
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further keys of the request

    def __post_init__(self) -> None:
        for name in ("base_url", "model", "api_key_env", "cache"):
            if not isinstance(getattr(self, name), str):
                raise JudgeSettingsError(
                    f"judge: {name}: expected a text, got {type(getattr(self, name)).__name__}; is that a column of "
                    "the dataset? rename it there"
                )
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise JudgeSettingsError(
                "judge: base_url: expected the address of an OpenAI-compatible endpoint, e.g. "
                f"http://127.0.0.1:8000/v1, got {self.base_url!r}"
            )
        if url.password or url.username:
            raise JudgeSettingsError("judge: base_url: expected no password in it; name its variable in api_key_env")
        if not self.model:
            raise JudgeSettingsError("judge: model: expected the name under which the endpoint serves the judge")
        if self.api_key_env and not _ENV_NAME.fullmatch(self.api_key_env):
            raise JudgeSettingsError(
                "judge: api_key_env: expected the name of an environment variable in capitals, e.g. JUDGE_API_KEY; "
                "what came is not shown, in case it is the key itself"
            )
        if not self.timeout_s > 0 or not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise JudgeSettingsError(
                f"judge: expected timeout_s > 0 and max_retries >= 0, got {self.timeout_s} and {self.max_retries}"
            )

    @property
    def api_key(self) -> str:
        """Raises JudgeSettingsError when the variable is not set."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise JudgeSettingsError(
                f"judge: api_key_env: the environment variable {self.api_key_env} is not set where rewards are graded"
            )
        return key


async def ask(
    endpoint: Endpoint,
    rules: Rules,
    request: Ask,
    *,
    read: Callable[[Reply, Ask, Rules], object] = read_value,
) -> Reply | NoReply:
    """The reply to a request, from the cache where it is there; the same request at the same time is sent once.

    A reply on which ``read`` raises UnreadableReply is not cached.

    Raises JudgeSettingsError: no key in the environment, or a cache that cannot be used.
    """
    body = request_body(endpoint, rules, request)
    cache = _cache(endpoint.cache) if endpoint.cache else None
    reading = {"pattern": rules.pattern.pattern, "scale": [rules.low, rules.high], "pairwise": rules.pairwise}
    key = key_of({"base_url": endpoint.base_url, "body": body, "reading": reading})
    if cache is not None and (kept := cache.get(key)) is not None:
        return kept

    async def fetch() -> Reply | NoReply:
        reply = await send(endpoint, body)
        if cache is not None and isinstance(reply, Reply) and _is_readable(read, reply, request, rules):
            return replace(reply, text=cache.put(key, reply))  # another process may have been first
        return reply

    return await _once(key, fetch)


@dataclass
class _Flight:
    """A request under way."""

    task: asyncio.Task[Reply | NoReply]
    num_waiting: int = 0


async def _once(key: str, fetch: Callable[[], Coroutine[Any, Any, Reply | NoReply]]) -> Reply | NoReply:
    """What ``fetch`` returns, run once for all who ask under ``key`` meanwhile: answers in a group are often the same.

    It ends when the last of them gives up. Whoever came later has a cached reply.
    """
    loop = asyncio.get_running_loop()
    flights = _flights.setdefault(loop, {})
    first = key not in flights
    if first:
        flights[key] = _Flight(loop.create_task(fetch()))
    flight = flights[key]
    flight.num_waiting += 1
    try:
        reply = await asyncio.shield(flight.task)
    finally:
        flight.num_waiting -= 1
        if not flight.num_waiting:
            flight.task.cancel()  # does nothing where it is done
            if flights.get(key) is flight:
                del flights[key]
    return replace(reply, cached=True, retries=0) if isinstance(reply, Reply) and not first else reply


def request_body(endpoint: Endpoint, rules: Rules, request: Ask) -> dict[str, Any]:
    """What is posted, without ``extra_body``'s keys where it has none."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in request.messages],
        "temperature": rules.temperature,
    }
    if rules.max_tokens:
        body["max_tokens"] = rules.max_tokens
    if rules.temperature > 0:
        body["seed"] = rules.seed + request.vote
    if endpoint.extra_body:
        body["extra_body"] = dict(endpoint.extra_body)
    return body


def _is_readable(read: Callable[[Reply, Ask, Rules], object], reply: Reply, request: Ask, rules: Rules) -> bool:
    try:
        read(reply, request, rules)
    except UnreadableReply:
        return False
    return True


async def send(endpoint: Endpoint, body: Mapping[str, Any]) -> Reply | NoReply:
    """The reply to the request ``body``, as the ``openai`` client takes it; raises JudgeSettingsError as ``ask``."""
    import openai
    from openai.types.chat import ChatCompletion

    url, key = endpoint.base_url, endpoint.api_key
    try:
        client = await _client(endpoint)
        response = await client.chat.completions.with_raw_response.create(**body)
        answer = response.parse()
    except openai.APITimeoutError:
        tries = endpoint.max_retries + 1
        return NoReply(TIMEOUT, f"{url}: no reply within {endpoint.timeout_s:g} s, tried {tries} times")
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        return NoReply(
            ERROR,
            _hide(f"{url} cannot be reached: {type(cause).__name__}: {cause}; is the model served there, is "
                  f"base_url right (it usually ends in /v1), does a proxy or firewall stand between?", key),
        )  # fmt: skip
    except openai.APIStatusError as error:
        return NoReply(ERROR, _hide(f"{url} answered HTTP {error.status_code}: {_message(error)}{_hint(error)}", key))
    except (openai.OpenAIError, ValueError) as error:
        return NoReply(ERROR, _hide(f"{url} did not answer with a chat completion: {_first_lines(str(error))}", key))
    message = answer.choices[0].message if isinstance(answer, ChatCompletion) and answer.choices else None
    if not isinstance(answer, ChatCompletion) or message is None or not isinstance(message.content, (str, type(None))):
        shown = _first_lines(answer if isinstance(answer, str) else repr(answer))
        return NoReply(ERROR, _hide(f"{url} did not answer with a chat completion: {shown}", key))
    choice, usage = answer.choices[0], answer.usage
    return Reply(
        text=message.content or "",
        complete=choice.finish_reason not in ("length", "content_filter"),
        retries=response.retries_taken,
        prompt_tokens=usage.prompt_tokens or 0 if usage else 0,
        completion_tokens=usage.completion_tokens or 0 if usage else 0,
    )


def _message(error: Any) -> str:
    """What the endpoint says, without the client's wrapping."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return _first_lines(str(body or error.response.text or error.message))


def _first_lines(text: str) -> str:
    lines = [line[:_MAX_WIDTH] for line in text.strip().splitlines()[:_MAX_LINES]]
    return "\n".join(lines) or "nothing"


def _hint(error: Any) -> str:
    hints = {
        401: "; does the variable named by api_key_env hold the right key?",
        403: "; may this key use this model?",
        404: "; does base_url end in /v1, and does the endpoint serve this model?",
        429: "; lower concurrency (or per_second of a reward), or raise max_retries",
    }
    return hints.get(error.status_code, "")


def _hide(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


# --- one client a loop and endpoint, one cache a file ---------------------------------------------------------------

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[AsyncOpenAI, AsyncGenerator[AsyncOpenAI]]]] = (
    WeakKeyDictionary()
)
_flights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Flight]] = WeakKeyDictionary()
_caches: dict[str, ReplyCache] = {}


async def _client(endpoint: Endpoint) -> AsyncOpenAI:
    """The client of the running loop. ``asyncio.run`` closes asynchronous generators at its end, and so its clients."""
    loop = asyncio.get_running_loop()
    of_loop = _clients.setdefault(loop, {})
    name = key_of(asdict(endpoint))
    if name not in of_loop:
        life = _open(endpoint, name, of_loop)
        of_loop[name] = (await anext(life), life)
    return of_loop[name][0]


async def _open(endpoint: Endpoint, name: str, of_loop: dict[str, Any]) -> AsyncGenerator[AsyncOpenAI]:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    loopback = urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1")
    client = AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",
        timeout=endpoint.timeout_s,
        max_retries=endpoint.max_retries,
        http_client=DefaultAsyncHttpxClient(trust_env=False) if loopback else None,  # no proxy in between
    )
    client.organization = client.project = None  # of OPENAI_* in the environment: another endpoint's business
    try:
        yield client
    finally:
        of_loop.pop(name, None)
        await client.close()


def _cache(path: str) -> ReplyCache:
    if path not in _caches:
        _caches[path] = ReplyCache(path)
    return _caches[path]
