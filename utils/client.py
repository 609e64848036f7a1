"""Who answers over a wire: one client for every OpenAI-compatible server.

It knows prompts and replies, nothing of documents or entities.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from utils import paths
from utils.io import UserError

MAX_TRIES = 6
FIRST_DELAY_S = 1.0  # doubled after every try, half to one and a half of it drawn at random
LONGEST_DELAY_S = 60.0
TIMEOUT_S = 600.0  # 4,096 tokens at 10 tokens/s, with a margin
REFUSED = {401, 403, 404}  # a wrong key, no access, no such model: the same for every call
TRANSIENT = {408, 409, 425, 429}  # and every 5xx


class CallFailed(Exception):
    """One call did not succeed: refused as it is (400) or failed MAX_TRIES times."""


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str
    usage: dict[str, int]  # prompt_tokens, completion_tokens


def find_key(base_url: str | None) -> str:
    """The API key: $OPENAI_API_KEY, else the key file. A local server needs none."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and paths.key_file().is_file():
        key = paths.key_file().read_text().strip()
    if not key and base_url:
        return "none"
    if not key:
        raise UserError(f"no API key: set OPENAI_API_KEY, or write the key into {paths.key_file()}")
    if not key.isprintable() or not key.isascii() or " " in key:
        raise UserError("the API key has white space or odd characters in it; set it again")
    return key


class Client:
    """Chat completions with bounded retries; `retries` counts them over all calls."""

    def __init__(self, model: str, base_url: str | None):
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # 1 s to import: not for --help

        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.model, self.retries = model, 0
        self._jitter = random.Random()  # spreads retries; no output depends on it
        self._key = find_key(base_url)
        self._api = AsyncOpenAI(
            api_key=self._key,
            base_url=base_url,
            timeout=TIMEOUT_S,
            max_retries=0,  # retried here, where they are counted
            http_client=DefaultAsyncHttpxClient(),
        )

    async def chat(self, prompt: str, **settings: object) -> Reply:
        """One reply to one user message; `settings` are fields of the chat-completions request.

        Raises CallFailed after a 400 or MAX_TRIES tries, UserError where no call can succeed.
        """
        messages = [{"role": "user", "content": prompt}]
        completion = await self._retried(
            self._api.chat.completions.create, messages=messages, **settings
        )
        choice = completion.choices[0]
        counts = {
            name: getattr(completion.usage, name, 0) or 0
            for name in ("prompt_tokens", "completion_tokens")
        }
        text = getattr(choice.message, "content", None) or ""
        return Reply(text, choice.finish_reason or "", counts)

    async def complete(self, prompt: str, samples: int, **settings: object) -> list[str]:
        """`samples` continuations of a text. Servers may give fewer choices than asked for (some
        ignore `n`): what is missing is asked for again. Raises as `chat` does."""
        texts: list[str] = []
        while len(texts) < samples:
            completion = await self._retried(
                self._api.completions.create, prompt=prompt, n=samples - len(texts), **settings
            )
            texts += [choice.text or "" for choice in completion.choices]
        return texts[:samples]

    async def _retried(self, create: Callable[..., Awaitable], **request: object):
        """The server's answer, with at least one choice, after at most MAX_TRIES tries."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self._once(create, request)
            except _Transient as error:
                if attempt == MAX_TRIES:
                    raise CallFailed(str(error)) from error
                self.retries += 1
                await asyncio.sleep(error.wait_s or self._delay(attempt))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._api.close()

    async def _once(self, create: Callable[..., Awaitable], request: dict):
        import openai

        try:
            completion = await create(model=self.model, **request)
        except openai.APIStatusError as error:
            raise self._judge(error) from error
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
            # A torn or malformed body arrives as a connection, validation or JSON error.
            raise _Transient(self._safe(f"{type(error).__name__}: {error}"), None) from error
        if not getattr(completion, "choices", None):
            raise _Transient("the reply has no choices", None)
        return completion

    def _judge(self, error) -> Exception:
        """What an HTTP error means for this call and for the run."""
        status, text = error.status_code, self._safe(str(error.message))
        if status in REFUSED or error.code == "insufficient_quota":
            return UserError(f"the server refuses every call ({status}): {text}")
        if status in TRANSIENT or status >= 500:
            wait = error.response.headers.get("retry-after", "")
            wait_s = (
                min(float(wait), LONGEST_DELAY_S) if wait.replace(".", "", 1).isdigit() else None
            )
            return _Transient(f"{status}: {text}", wait_s)
        return CallFailed(f"{status}: {text}")

    def _delay(self, attempt: int) -> float:
        longest = min(FIRST_DELAY_S * 2 ** (attempt - 1), LONGEST_DELAY_S)
        return longest * self._jitter.uniform(0.5, 1.5)

    def _safe(self, text: str) -> str:
        """A server's words on one short line, without the key."""
        return " ".join(text.replace(self._key, "***").split())[:300]


class _Transient(Exception):
    """Worth another try, after `wait_s` where the server named a time."""

    def __init__(self, message: str, wait_s: float | None):
        super().__init__(message)
        self.wait_s = wait_s


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
