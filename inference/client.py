"""Asynchronous client for OpenAI-compatible servers, with retries, a rate limiter and a ledger."""

import asyncio
import contextlib
import dataclasses
import functools
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from inference import completions, server_habits
from inference.budget import Call, Ledger
from inference.completions import (
    CallFailed,
    CallStopped,
    RateLimited,
    Reply,
    RetryableError,
    parse_chat_reply,
    parse_choices,
)
from inference.keys import find_server, redact
from inference.prices import ZERO, Usage
from inference.rate_limiter import RateLimiter, parse_limit_reset
from utils.errors import UserError

MAX_ATTEMPTS = 6
FIRST_DELAY_S = 1.0  # doubled after every attempt, times a random factor of 0.5 to 1.5
MAX_DELAY_S = 60.0
MAX_WAIT_S, SAID_WAIT_S = 6 * 3600.0, 60.0  # that a server may ask for; above the second it is said
SEED_STEP = 1_000_003  # from one request for the same choices to the next
TIMEOUT_S = 600.0  # 4,096 tokens at 10 tokens/s, with a margin
TEMPLATE_TOKENS = 64  # more than any chat template adds to a single message
GET_TIMEOUT_S = 20.0
PROXY_TIMEOUT_STATUSES = {408, 502, 504, 524}
BYTES_PER_TOKEN = 4.0  # of English; estimates the tokens of a call for the rate limiter until its reply


@dataclass(frozen=True)
class _Request:
    """`id` names the call in the ledger; `max_usage` is the largest number of tokens it can be billed for."""

    path: str
    body: dict
    id: str = ""
    max_usage: Usage = ZERO


class Client:
    """Client of one model on one server. Calls are spaced by a rate limiter, recorded in a ledger and retried up to
    MAX_ATTEMPTS times; refusals with HTTP 429 are retried without limit.

    `timeout_s` holds for one attempt; a server that asks to wait longer than `max_wait_s` ends the run. `retries` and `refused` count repeated attempts, and those after a 429.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        rate_limiter: RateLimiter | None = None,
        ledger: Ledger | None = None,
        timeout_s: float = TIMEOUT_S,
        max_wait_s: float = MAX_WAIT_S,
        key_variable: str = "OPENAI_API_KEY",
    ):
        self._address, self._key = find_server(base_url, key_variable)
        self.url = self._address.public
        self.is_openai = (urlsplit(self.url).hostname or "").endswith("api.openai.com")
        self.model, self.retries, self.refused, self._replies = model, 0, 0, 0
        self.rate_limiter, self.ledger = rate_limiter or RateLimiter(), ledger or Ledger()
        self._stopping = asyncio.Event()
        self._jitter = random.Random()  # spreads retries; no output depends on it
        self._timeout_s, self._max_wait_s = timeout_s, max_wait_s
        self.fields = server_habits.Fields()
        self._counts = server_habits.PromptCounts()

    @functools.cached_property
    def api(self):
        """OpenAI's own client, for files and batches."""
        from openai import AsyncOpenAI  # 1 s to import

        return AsyncOpenAI(api_key=self._key, **self._address.openai_settings())

    async def chat(self, prompt: str, *, max_tokens: int, id: str = "", cache_key: str = "", **settings) -> Reply:
        """Reply to one user message; `settings` are further fields of the request.

        `id` names the call in the ledger; calls with the same `cache_key` share a prefix. Raises CallFailed after
        HTTP 400 or MAX_ATTEMPTS attempts, PromptCut if the server read only a part of the prompt, BudgetExhausted
        before the ledger's budget would be exceeded, CallStopped after `stop`, and UserError if no call can succeed.
        """
        body = self.request(prompt, max_tokens, cache_key, settings)
        parse = functools.partial(parse_chat_reply, prompt=prompt)
        try:
            reply = await self._retry(self._chat_request(prompt, max_tokens, body, id), parse)
        except completions.ContentFiltered:
            return Reply("", "content_filter", {})
        self.say(reply.notes)
        await self._counts.check(prompt, reply, self._count_chat)
        return reply

    def request(self, prompt: str, max_tokens: int, cache_key: str, settings: dict) -> dict:
        """Body of a chat request. OpenAI's server renames `max_tokens` and accepts a hint for its prefix cache."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]} | settings
        if not self.is_openai:
            return body | {"max_tokens": max_tokens}
        hint = {"prompt_cache_key": cache_key} if cache_key else {}
        return body | {"max_completion_tokens": max_tokens} | hint

    async def complete(
        self, prompt: str, samples: int, stop: Sequence[str] = (), save: Callable | None = None, **settings: object
    ) -> list[str]:
        """`samples` completions of a text, each cut at the first of the strings `stop`. Some servers return fewer
        choices than requested (or ignore `n`); the missing ones are requested again, with another seed. `save` is called
        with the completions of each reply. Raises as `chat` does."""
        texts: list[str] = []
        settings |= {"stop": list(stop)} if stop else {}
        parse = functools.partial(parse_choices, prompt=prompt, stop=stop)
        while len(texts) < samples:
            if texts and isinstance(seed := settings.get("seed"), int):
                settings["seed"] = seed + SEED_STEP
            body = {"model": self.model, "prompt": prompt, "n": samples - len(texts)} | settings
            replies = (await self._retry(_Request("/completions", body), parse))[: samples - len(texts)]
            await self._counts.check(prompt, replies[0], self._count_text)
            self.say(note for reply in replies for note in reply.notes)
            texts += (new := [reply.text for reply in replies])
            if save:
                save(new)
        return texts

    def say(self, notes: Iterable[str]) -> None:
        """Print a sentence about the server, once in a process, which may have several clients."""
        for note in notes:
            print_once(f"{self.url}: {note}")

    def check_context(self) -> None:
        """Raise UserError if the server has cut every prompt so far, and there were several."""
        if message := self._counts.always_cut():
            raise UserError(f"{self.url}: {message}")

    async def _count_chat(self, text: str) -> int | None:
        """Tokens that the server reads of a message. Costs a call."""
        request = self._chat_request(text, 1, self.request(text, 1, "", {}))
        return (await self._retry(request, parse_chat_reply)).tokens_read

    async def _count_text(self, text: str) -> int | None:
        body = {"model": self.model, "prompt": text, "max_tokens": 1}
        return (await self._retry(_Request("/completions", body), parse_choices))[0].tokens_read

    def _chat_request(self, prompt: str, max_tokens: int, body: dict, id: str = "") -> _Request:
        max_usage = Usage(len(prompt.encode()) + TEMPLATE_TOKENS, 0, max_tokens)
        return _Request("/chat/completions", body, id, max_usage)

    async def post(self, path: str, body: dict, parse: Callable[[dict], Any]) -> Any:
        """Parsed reply to another request; where `parse` raises ValueError it is repeated. Raises as `chat` does."""
        return await self._retry(_Request(path, body), parse)

    async def get(self, path: str, of_root: bool = False) -> dict:
        """The JSON object at a path, with `of_root` outside of /v1; empty if there is none. One attempt."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=GET_TIMEOUT_S)
        try:
            async with self._http.get(self._address.of(path, of_root), timeout=limit) as response:
                return completions.parse_json_object(await response.read()) if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return {}

    async def call(self, request: Awaitable, or_none: bool = False):
        """Result of a request made with `api`; with `or_none`, None for what does not exist. Raises UserError if it
        fails."""
        import openai

        try:
            return await request
        except openai.APIError as error:
            if or_none and isinstance(error, openai.NotFoundError):
                return None
            raise UserError(f"the server refused: {self._redact(str(error))}") from error

    def stop(self) -> None:
        """Start no further attempts; attempts in flight may finish."""
        self._stopping.set()
        self.rate_limiter.stop()

    async def close(self) -> None:
        await self._http.close()
        if "api" in self.__dict__:
            await self.api.close()

    @functools.cached_property
    def _http(self):
        """Pool of open connections, as many as calls. aiohttp, because at 256 calls/s the client is the bottleneck:
        0.7 ms per call, 1.3 with httpx2, 1.9 through OpenAI's client (LOG.md, 2026-11-22)."""
        import aiohttp  # 0.2 s to import: not for --help

        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(self._record_sent)
        return aiohttp.ClientSession(
            headers={"authorization": self._address.authorization or f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            proxy=self._address.proxy(),  # trust_env=True would look it up in a thread, at every call
            trace_configs=[trace],
        )

    async def _retry(self, request: _Request, parse: Callable[[dict], Any]) -> Any:
        """Parsed reply to a request; `parse` raises ValueError for an unusable reply."""
        attempts = 0
        while True:
            try:
                return parse(await self._attempt(request))
            except completions.FieldRefused as error:
                self.say([self.fields.change(error.field, self._redact(str(error)))])
                continue
            except RateLimited:
                self.refused += 1
            except (RetryableError, ValueError) as error:
                attempts += 1
                if attempts == MAX_ATTEMPTS:
                    hint = "" if self._replies else f" (no reply so far from {self.url})"
                    raise CallFailed(self._redact(str(error)) + hint) from error
                backoff_s = min(FIRST_DELAY_S * 2 ** (attempts - 1), MAX_DELAY_S) * self._jitter.uniform(0.5, 1.5)
                await self._sleep(getattr(error, "wait_s", None) or backoff_s)
            self.retries += 1
            if self._stopping.is_set():
                raise CallStopped

    async def _attempt(self, request: _Request) -> dict:
        """One attempt, recorded in the ledger and spaced by the rate limiter."""
        self._say_wait(self.rate_limiter.paused_s())
        call = await self.ledger.reserve(request.id, request.max_usage)
        estimated_tokens = request.max_usage.prompt / BYTES_PER_TOKEN
        started_at, usage, completion = None, ZERO, {}
        request = dataclasses.replace(request, body=self.fields.adapt(request.body))
        try:
            started_at = await self.rate_limiter.acquire(estimated_tokens)
            if self._stopping.is_set():
                raise CallStopped
            response, content = await self._send(request, call)
            if response.status < 400:
                completion = completions.parse_json_object(content)
                # A server that counts no tokens is assumed to have billed the maximum.
                usage = completions.parse_usage(completion.get("usage")) or request.max_usage
        except (CallStopped, UserError, RetryableError, ValueError, asyncio.CancelledError):
            self.ledger.record_failure(call)
            raise
        finally:
            if started_at is not None:
                self.rate_limiter.record_end(estimated_tokens, usage.total)
        if response.status >= 400:
            error = self._http_error(call, response, content, started_at)
            raise server_habits.refused_field(response.status, content, request.body) or error
        self.ledger.record_reply(call, usage)
        self._replies += 1
        self.rate_limiter.pause(parse_limit_reset(response.headers))
        return completion

    async def _send(self, request: _Request, call: Call) -> tuple[Any, bytes]:
        """Response and its body. Raises UserError for an invalid address, RetryableError for an incomplete response."""
        import aiohttp

        try:
            url = self._address.of(request.path)
            async with self._http.post(url, json=request.body, trace_request_ctx=call) as response:
                return response, await response.read()
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise UserError(f"--base_url {self.url}: not the address of a server") from error
        except aiohttp.ClientConnectorError as error:
            if self.retries and not self._replies:  # not at the second try, a second later, either
                reason = completions.connection_fault(error.os_error)
                raise UserError(f"cannot reach {self.url} ({reason}); start the server") from error
            raise RetryableError(f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from error

    def _http_error(self, call: Call, response, content: bytes, started_at: float) -> Exception:
        """Settle a call that ended with an HTTP error; returns the exception to raise."""
        # A server's own errors are free; behind a proxy that timed out, the reply may still be generated and billed.
        timed_out = response.status in PROXY_TIMEOUT_STATUSES
        (self.ledger.record_failure if timed_out else self.ledger.record_refusal)(call)
        error = completions.error_from_response(response.status, response.headers, content, self._redact)
        self._say_wait(getattr(error, "wait_s", None) or 0)
        if isinstance(error, RateLimited):
            self.rate_limiter.pause(parse_limit_reset(response.headers))
            self.rate_limiter.record_refusal(started_at, error.wait_s or 0)
        return error

    def _say_wait(self, seconds: float) -> None:
        if seconds > self._max_wait_s:
            hours = f"the server asks to wait {seconds / 3600:,.1f} hours"
            raise UserError(f"{self.url}: {hours}; the same command resumes then, and --max_wait SECONDS waits for it")
        if seconds > SAID_WAIT_S:
            until = time.strftime("%H:%M", time.localtime(time.time() + seconds))
            self.say([f"the server asks to wait {seconds / 60:.0f} minutes, until {until}"])

    async def _record_sent(self, session, context, params) -> None:
        """Tell the ledger when the bytes of a request leave, and not earlier: a call that still waits for a
        connection when the program is killed has cost nothing."""
        call = context.trace_request_ctx
        if not call.sent:
            self.ledger.record_sent(call)

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or the client is stopped."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _redact(self, text: str) -> str:
        return redact(self._key, self._address.redact(text))


@functools.cache  # a second call with the same line does nothing
def print_once(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
