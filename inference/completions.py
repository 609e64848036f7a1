"""Replies of OpenAI-compatible servers: parsing of bodies, and classification of HTTP errors."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from inference.prices import Usage
from inference.rate_limiter import parse_retry_after
from utils.errors import UserError

FATAL_STATUSES = {401, 402, 403, 404}  # wrong key, no credit, no access, no such model: the same for every call
RETRYABLE_STATUSES = {408, 409, 425}  # and every 5xx
FILTERED = {"content_filter", "content_policy_violation"}  # error codes


class CallFailed(Exception):
    """A single call failed: rejected with HTTP 400, or after the last attempt."""


class CallStopped(Exception):
    """The call was abandoned between two attempts, because the client was stopped."""


class ContentFiltered(Exception):
    """HTTP 400 caused by the content of the prompt."""


class RetryableError(Exception):
    """A failed attempt that is worth repeating, after `wait_s` seconds if the server named a time."""

    def __init__(self, message: str, wait_s: float | None = None):
        super().__init__(message)
        self.wait_s = wait_s


class RateLimited(RetryableError):
    """HTTP 429: to be retried as often as necessary, when the rate limiter allows it."""


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str
    usage: dict[str, int]  # prompt_tokens, completion_tokens, and cached_tokens if there are any


def parse_chat_reply(completion: dict) -> Reply:
    """Parse a chat completion. Raises ValueError if it has no reply.

    A missing finish_reason is read as `stop` if there is text, else as `empty`.
    """
    choice = first_choice(completion)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else message
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise ValueError("the reply has no message with text")
    text = (content or "").encode("utf-8", "replace").decode()  # half of a surrogate pair was seen once
    usage = parse_usage(completion.get("usage"))
    counts = {}
    if usage:
        counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
        counts |= {"cached_tokens": usage.cached} if usage.cached else {}
    reason = choice.get("finish_reason")
    return Reply(text, str(reason) if reason else ("stop" if text else "empty"), counts)


def parse_choices(completion: dict) -> list[str]:
    """Texts of a /completions reply. Raises ValueError if there are none."""
    first_choice(completion)
    return [str(choice.get("text") or "") for choice in completion["choices"] if isinstance(choice, dict)]


def first_choice(completion: dict) -> dict:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"the reply has no choices ({str(completion.get('error', ''))[:100]})")
    return choices[0]


def parse_indexed(reply: dict, key: str, field: str, count: int) -> list:
    """Values of `field` in the list `reply[key]`, by `index`. Raises ValueError unless those are 0 to count - 1."""
    items = reply.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"the reply has no {key}")
    values = {item.get("index"): item.get(field) for item in items}
    if values.keys() != set(range(count)):
        raise ValueError(f"the reply has {field} for {len(values)} of {count} texts")
    return [values[index] for index in range(count)]


def parse_json_object(content: bytes) -> dict:
    """Parse a body that is a JSON object. Raises ValueError for any other."""
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("the reply is not a JSON object")
    return value


def parse_usage(usage: object) -> Usage | None:
    """Parse the `usage` field of a reply; None unless it counts prompt and completion tokens."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = (usage.get("prompt_tokens"), cached or 0, usage.get("completion_tokens"))
    return Usage(*counts) if all(isinstance(count, int) for count in counts) else None


def error_from_response(status: int, headers, content: bytes, redact: Callable[[str], str]) -> Exception:
    """Exception for an HTTP error: UserError if every call would fail, else RateLimited, RetryableError,
    ContentFiltered or CallFailed. `redact` removes the key from the server's message."""
    try:
        error = parse_json_object(content).get("error")
    except ValueError:
        error = None
    error = error if isinstance(error, dict) else {"message": error or content.decode(errors="replace")}
    text, code = redact(str(error.get("message"))), str(error.get("code"))
    if status in FATAL_STATUSES or code == "insufficient_quota":
        return UserError(f"the server refuses every call ({status}): {text}")
    wait_s = parse_retry_after(headers)
    if status == 429:
        return RateLimited(text, wait_s)
    if status in RETRYABLE_STATUSES or status >= 500:
        return RetryableError(f"{status}: {text}", wait_s)
    return ContentFiltered(text) if code in FILTERED else CallFailed(f"{status}: {text}")


def json_object_in(reply: str) -> dict:
    """The outermost {...} of an LLM's reply; text around it (a sentence, a Markdown fence) is ignored.

    Raises ValueError for a reply without a JSON object.
    """
    start, end = reply.find("{"), reply.rfind("}")
    if not 0 <= start < end:
        raise ValueError("the reply contains no JSON object")
    return json.loads(reply[start : end + 1])
