"""Who answers over a wire: one client for every OpenAI-compatible server.

It knows prompts and replies, nothing of documents or entities.
"""

import asyncio
import contextlib
import functools
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from inference.budget import Call, Ledger
from inference.completions import (
    CallFailed,
    CallStopped,
    ContentFiltered,
    RateLimited,
    Reply,
    RetryableError,
    error_from_response,
    parse_chat_reply,
    parse_choices,
    parse_json_object,
    parse_usage,
)
from inference.keys import find_key, redact
from inference.prices import Usage
from inference.rate_limiter import RateLimiter, limit_wait_s
from utils.errors import UserError

OPENAI_URL = "https://api.openai.com/v1"
MAX_TRIES = 6
FIRST_DELAY_S = 1.0  # doubled after every try, half to one and a half of it drawn at random
LONGEST_DELAY_S = 60.0
TIMEOUT_S = 600.0  # 4,096 tokens at 10 tokens/s, with a margin
TEMPLATE_TOKENS = 64  # more than any chat template puts around one message
GAVE_UP = {408, 502, 504, 524}
BYTES_A_TOKEN = 4.0  # of English; only to keep a limit of tokens a minute, until a call is answered


class Client:
    """Chat completions at a pace that the server allows, noted in a ledger, with bounded retries.

    `timeout_s` is for one try. What a server refuses with 429 is asked again as often as it takes."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        pace: RateLimiter | None = None,
        ledger: Ledger | None = None,
        timeout_s: float = TIMEOUT_S,
        key_variable: str = "OPENAI_API_KEY",
    ):
        self._url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.is_openai = (urlsplit(self._url).hostname or "").endswith("api.openai.com")
        self.model, self.retries, self.refused, self._answers = model, 0, 0, 0
        self.pace, self.ledger = pace or RateLimiter(), ledger or Ledger()
        self._stopping = asyncio.Event()
        self._jitter = random.Random()  # spreads retries; no output depends on it
        self._key = find_key(None if self._url == OPENAI_URL else self._url, key_variable)
        self._timeout_s = timeout_s

    @functools.cached_property
    def _http(self):
        """Connections, kept open, as many as calls. aiohttp, because at 256 calls a second the client
        is what is waited for: 0.7 ms a call, 1.3 with httpx2, 1.9 through OpenAI's client
        (LOG.md, 2026-11-22)."""
        import aiohttp  # 0.2 s to import: not for --help

        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(self._leaving)
        return aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            proxy=self._proxy(),  # trust_env=True would ask for it in a thread, at every call
            trace_configs=[trace],
        )

    @functools.cached_property
    def api(self):
        """The rest of the API, by OpenAI's own client."""
        from openai import AsyncOpenAI  # 1 s to import

        return AsyncOpenAI(api_key=self._key, base_url=self._url)

    async def chat(
        self, prompt: str, *, max_tokens: int, id: str = "", cache_key: str = "", **settings: object
    ) -> Reply:
        """One reply to one user message; `settings` are further fields of the request.

        `id` names the call in the ledger; calls of one `cache_key` share a prefix. Raises CallFailed
        after a 400 or MAX_TRIES tries, BudgetSpent before the ledger's budget would be passed,
        UserError where no call can succeed.
        """
        request = self.request(prompt, max_tokens, cache_key, settings)
        most = Usage(len(prompt.encode()) + TEMPLATE_TOKENS, 0, max_tokens)
        try:
            return await self._retried("/chat/completions", id, most, request, parse_chat_reply)
        except ContentFiltered:
            return Reply("", "content_filter", {})

    def request(self, prompt: str, max_tokens: int, cache_key: str, settings: dict) -> dict:
        """The fields of a chat-completions request. OpenAI's own server has a newer name for the
        longest reply, and takes a hint for its prefix cache."""
        request = {"model": self.model, "messages": [{"role": "user", "content": prompt}]} | settings
        if not self.is_openai:
            return request | {"max_tokens": max_tokens}
        hint = {"prompt_cache_key": cache_key} if cache_key else {}
        return request | {"max_completion_tokens": max_tokens} | hint

    async def complete(self, prompt: str, samples: int, **settings: object) -> list[str]:
        """`samples` continuations of a text. Servers may give fewer choices than asked for (some
        ignore `n`): what is missing is asked for again. Raises as `chat` does."""
        texts: list[str] = []
        while len(texts) < samples:
            request = {"model": self.model, "prompt": prompt, "n": samples - len(texts)} | settings
            texts += await self._retried("/completions", "", Usage(), request, parse_choices)
        return texts[:samples]

    async def post(self, path: str, request: dict, read: Callable[[dict], Any]) -> Any:
        """What `read` finds in the reply to a request of another kind. Raises as `chat` does."""
        return await self._retried(path, "", Usage(), request, read)

    async def call(self, request: Awaitable):
        """Another of the API's calls, by its own client; UserError where it fails."""
        import openai

        try:
            return await request
        except openai.APIError as error:
            raise UserError(f"the server refused: {self._safe(str(error))}") from error

    def stop(self) -> None:
        """No further tries: what is under way may end, what waits for another try gives up."""
        self._stopping.set()
        self.pace.stop()

    async def close(self) -> None:
        await self._http.close()
        if "api" in self.__dict__:
            await self.api.close()

    async def _retried(self, path: str, id: str, most: Usage, request: dict, read: Callable[[dict], Any]) -> Any:
        """What `read` finds in the server's answer; it raises ValueError where there is nothing."""
        tries = 0
        while True:
            try:
                return read(await self._once(path, id, most, request))
            except RateLimited:
                self.refused += 1
            except (RetryableError, ValueError) as error:
                tries += 1
                if tries == MAX_TRIES:
                    raise CallFailed(self._safe(str(error))) from error
                await self._wait(getattr(error, "wait_s", None) or self._delay(tries))
            self.retries += 1
            if self._stopping.is_set():
                raise CallStopped

    async def _once(self, path: str, id: str, most: Usage, request: dict) -> dict:
        """One try, in the ledger and at the pace."""
        import aiohttp

        call = await self.ledger.admit(id, most)
        about = most.prompt / BYTES_A_TOKEN
        begun, usage = None, Usage()
        try:
            begun = await self.pace.start(about)
            if self._stopping.is_set():
                self.ledger.failed(call)
                raise CallStopped
            url = self._url.rstrip("/") + path
            async with self._http.post(url, json=request, trace_request_ctx=call) as response:
                content = await response.read()
            if response.status >= 400:
                self._refuse(call, response.status)
                raise self._judge(response, content, begun)
            completion = parse_json_object(content)
            # What a server does not count is taken as the most that it can be.
            usage = parse_usage(completion.get("usage")) or most
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            self.ledger.failed(call)
            raise UserError(f"--base_url {self._url}: not the address of a server") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            # No connection, or a torn or malformed body.
            self.ledger.failed(call)
            raise self._no_answer(error) from error
        except asyncio.CancelledError:
            self.ledger.failed(call)
            raise
        finally:
            if begun is not None:
                self.pace.end(about, usage.total)
        self.ledger.answered(call, usage)
        self._answers += 1
        self.pace.pause(limit_wait_s(response.headers))
        return completion

    def _refuse(self, call: Call, status: int) -> None:
        """An error of the server's own is free; behind a proxy that gave up the reply may be made."""
        (self.ledger.failed if status in GAVE_UP else self.ledger.refused)(call)

    def _judge(self, response, content: bytes, begun: float) -> Exception:
        error = error_from_response(response.status, response.headers, content, self._safe)
        if isinstance(error, RateLimited):
            self.pace.pause(limit_wait_s(response.headers))
            self.pace.refuse(begun, error.wait_s)
        return error

    async def _leaving(self, session, context, params) -> None:
        """Have the ledger told when the bytes of a request leave, and not before: what waits for a
        connection when the program is killed has cost nothing."""
        call = context.trace_request_ctx
        if not call.sent:
            self.ledger.sent(call)

    def _proxy(self) -> str | None:
        """The environment's, as urllib reads it."""
        url = urlsplit(self._url)
        return None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)

    def _no_answer(self, error: Exception) -> Exception:
        text = self._safe(f"{type(error).__name__}: {error}")
        if not self._answers:
            text += f" (no answer yet from {self._url})"
        return RetryableError(text, None)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _delay(self, tries: int) -> float:
        longest = min(FIRST_DELAY_S * 2 ** (tries - 1), LONGEST_DELAY_S)
        return longest * self._jitter.uniform(0.5, 1.5)

    def _safe(self, text: str) -> str:
        return redact(self._key, text)


async def for_each(items: Iterable, work: Callable[..., Awaitable[None]], concurrency: int) -> None:
    """`await work(item)` for every item, in order of the items, `concurrency` at a time.

    Items are taken from the iterable only when a worker is free. The first exception cancels the
    others and is raised.
    """
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except* UserError as errors:
        raise errors.exceptions[0] from None
