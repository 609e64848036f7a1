"""What comes over the wire from OpenAI-compatible servers, read with care: bodies and headers."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from inference.prices import Usage
from inference.rate_limiter import retry_after_s
from utils.errors import UserError

# A wrong key, no money, no access, no such model: the same for every call.
REFUSED = {401, 402, 403, 404}
TRANSIENT = {408, 409, 425}  # and every 5xx
FILTERED = {"content_filter", "content_policy_violation"}


class CallFailed(Exception):
    """One call did not succeed: refused as it is (400) or failed MAX_TRIES times."""


class CallStopped(Exception):
    """The call was given up between two tries, because the client was told to stop."""


class ContentFiltered(Exception):
    """400, because of what the prompt says."""


class RateLimited(Exception):
    """429: to be asked again, after `wait_s` and when the pace allows it."""

    def __init__(self, message: str, wait_s: float):
        super().__init__(message)
        self.wait_s = wait_s


class RetryableError(Exception):
    """Worth another try, after `wait_s` where the server named a time."""

    def __init__(self, message: str, wait_s: float | None):
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str
    usage: dict[str, int]  # prompt_tokens, completion_tokens; cached_tokens where there are any


def parse_chat_reply(completion: dict) -> Reply:
    """A chat completion, as JSON. ValueError for one that has no reply in it.

    Servers that name no finish_reason have it `stop` where there is text.
    """
    choice = first_choice(completion)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else message
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise ValueError("the reply has no message with text")
    text = (content or "").encode("utf-8", "replace").decode()  # half of a surrogate pair, once seen
    usage = parse_usage(completion.get("usage"))
    counts = {}
    if usage:
        counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
        counts |= {"cached_tokens": usage.cached} if usage.cached else {}
    reason = choice.get("finish_reason")
    return Reply(text, str(reason) if reason else ("stop" if text else "empty"), counts)


def parse_choices(completion: dict) -> list[str]:
    """The choices of a /completions reply; ValueError where there are none."""
    first_choice(completion)
    return [str(c.get("text") or "") for c in completion["choices"] if isinstance(c, dict)]


def first_choice(completion: dict) -> dict:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"the reply has no choices ({str(completion.get('error', ''))[:100]})")
    return choices[0]


def parse_json_object(content: bytes) -> dict:
    """A body that is a JSON object; ValueError for any other."""
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("the reply is not a JSON object")
    return value


def parse_usage(usage: object) -> Usage | None:
    """A server's `usage` field; None where it does not count prompt and completion."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = (usage.get("prompt_tokens"), cached or 0, usage.get("completion_tokens"))
    return Usage(*counts) if all(isinstance(count, int) for count in counts) else None


def error_from_response(status: int, headers, content: bytes, safe: Callable[[str], str]) -> Exception:
    """What an HTTP error means for its call, or (UserError) for all; `safe` takes the key out of a
    server's words."""
    try:
        error = parse_json_object(content).get("error")
    except ValueError:
        error = None
    error = error if isinstance(error, dict) else {"message": error or content.decode(errors="replace")}
    text, code = safe(str(error.get("message"))), str(error.get("code"))
    if status in REFUSED or code == "insufficient_quota":
        return UserError(f"the server refuses every call ({status}): {text}")
    wait_s = retry_after_s(headers)
    if status == 429:
        return RateLimited(text, wait_s or 0)
    if status in TRANSIENT or status >= 500:
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
