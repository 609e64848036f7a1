"""Replies of OpenAI-compatible servers: parsing of bodies, and classification of HTTP errors."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import UnionType

from inference.prices import Usage
from inference.rate_limiter import parse_retry_after
from utils.errors import UserError
from utils.json_text import mend, parse_json

FATAL_STATUSES = {401, 402, 403, 404}  # wrong key, no credit, no access, no such model: the same for every call
RETRYABLE_STATUSES = {408, 409, 425}  # and every 5xx
FILTERED = {"content_filter", "content_policy_violation"}  # error codes
PROMPT_CUT = "prompt_cut"  # finish_reason of a reply to a prompt that the server cut
# finish_reason in OpenAI's words, and the words of TGI, Cohere, Gemini, Bedrock, Together, Mistral and others.
FINISH_REASONS = {
    "stop": "stop eos eos_token end_turn stop_sequence stop_token stop_string stop_str complete completed finished done",
    "length": "length max_tokens max_length max_new_tokens max_output_tokens model_length token_limit context_length",
    "content_filter": "content_filter content_filtered content_policy_violation safety recitation blocklist "
    "prohibited_content spii error_toxic guardrail_intervened refusal",
}
COMMON_REASON = {word: reason for reason, words in FINISH_REASONS.items() for word in words.split()}
# Reasoning models write their reasoning first, in one of these tags.
THINK_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
THINK = f"(?:{'|'.join(THINK_TAGS)})"
OPENING, ANY_TAG = re.compile(rf"\s*<({THINK})>", re.I), re.compile(rf"</?{THINK}>", re.I)
QUOTES = "`'\"“‘«"
NOTE_REASON, NOTE_UNKNOWN, NOTE_THINK, NOTE_PARTS, NOTE_STOP = (
    "the server names the end of a reply in other words than OpenAI; they are read as `stop` and `length`",
    "the server ends replies with a word that is not known; they are taken for cut",
    "replies begin with the model's reasoning (`</think>`); it is left out",
    "replies come as lists of parts; they are joined",
    "the server ignores `stop`; texts are cut here",
)
NAME_KEYS = ("name", "entity", "strategy", "title", "text", "value", "label", "term", "item", "content", "description")


class CallFailed(Exception):
    """A single call failed: rejected with HTTP 400, or after the last attempt."""


class CallStopped(Exception):
    """The call was abandoned between two attempts, because the client was stopped."""


class PromptCut(CallFailed):
    """The server read only the beginning or the end of the prompt. `reply` was paid for and is not an answer to it."""

    def __init__(self, message: str, reply: "Reply"):
        super().__init__(message)
        self.reply = reply


class FieldRefused(Exception):
    """HTTP 400 because the server does not accept `field` in any request."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class ContentFiltered(CallFailed):
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
    """`notes`: sentences about the server's habits, to be printed once. `tokens_read`: see below."""

    text: str
    finish_reason: str
    usage: dict[str, int]  # prompt_tokens, completion_tokens, and cached_tokens if there are any
    notes: tuple[str, ...] = ()
    tokens_read: int | None = None


def parse_chat_reply(completion: dict, prompt: str = "") -> Reply:
    """Parse a chat completion, without the model's reasoning. Raises ValueError if it has no reply.

    A missing finish_reason is read as `stop` if there is text, else as `empty`.
    """
    choice = first_choice(completion)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("the reply has no message with text")
    content = message.get("content")
    answer, reason, notes = read_choice(join_parts(content), choice.get("finish_reason"), prompt)
    notes += [NOTE_PARTS] if isinstance(content, list) else []
    usage = parse_usage(completion.get("usage"))
    counts = {}
    if usage:
        counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
        counts |= {"cached_tokens": usage.cached} if usage.cached else {}
    return Reply(answer, reason, counts, tuple(notes), tokens_read(completion.get("usage")))


def parse_choices(completion: dict, prompt: str = "", stop: Sequence[str] = ()) -> list[Reply]:
    """The choices of a /completions reply, without the model's reasoning, each cut at the first of the strings `stop`.
    Raises ValueError if there are none, or one has no text."""
    first_choice(completion)
    read = tokens_read(completion.get("usage"))
    replies = []
    for choice in completion["choices"]:
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise ValueError("a choice of the reply has no text; is this a server of /completions?")
        whole, reason, notes = read_choice(choice["text"], choice.get("finish_reason"), prompt)
        text = cut_at(whole, stop)
        if whole[len(text) :] not in ("", *stop):  # some keep the stop string itself
            notes.append(NOTE_STOP)
        replies.append(Reply(text, reason, {}, tuple(notes), read))
    return replies


def read_choice(text: str, reason: object, prompt: str) -> tuple[str, str, list[str]]:
    """Answer, finish_reason in OpenAI's words, and notes. Reasoning that never ends has no answer: a missing
    finish_reason, or one that says the model ended by itself, becomes `length` and `empty`. An unknown finish_reason
    becomes `length`: a text is kept, and `error` and `empty` are words of our own."""
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair was seen once
    common = common_reason(reason)
    notes = [NOTE_REASON] if common != reason and common in FINISH_REASONS else []
    answer = strip_reasoning(text, prompt)
    notes += [NOTE_THINK] if answer != text else []
    if text and not answer:
        common = "empty" if common == "stop" else common or "length"
    elif common and common not in FINISH_REASONS:  # `error` and others: the text may have been cut anywhere
        common, notes = ("length", [*notes, NOTE_UNKNOWN]) if answer.strip() else ("empty", notes)
    return answer, common or ("stop" if answer else "empty"), notes


def common_reason(reason: object) -> str:
    """A finish_reason in OpenAI's words; unknown ones are kept. SGLang's is an object with a `type`."""
    reason = reason.get("type") if isinstance(reason, dict) else reason
    word = str(reason or "")
    return COMMON_REASON.get(word.strip().lower().removeprefix("finish_reason_"), word)


def join_parts(content: object) -> str:
    """The text of a message's content: a string, or a list of parts with a `type`, of which those of type text (or
    output_text) are joined. Raises ValueError for any other."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") for part in content):
        texts = [part.get("text") for part in content if str(part["type"]).endswith("text")]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    if not isinstance(content, str | None):
        raise ValueError("the reply has no message with text")
    return content or ""


def strip_reasoning(text: str, prompt: str = "") -> str:
    """A reply without the reasoning before the answer: a leading `<think>…</think>`, or everything before a closing
    tag whose opening tag was in the chat template's prompt. Reasoning that never ends leaves no text.

    A document may be about such tags: a tag after other text, in quotes, or in the prompt, is part of the text.
    """
    if not ANY_TAG.search(text):
        return text
    answer = text
    while opening := OPENING.match(answer):
        closing = re.compile(rf"</{re.escape(opening[1])}>", re.I).search(answer, opening.end())
        if not closing and ANY_TAG.search(prompt):
            return answer
        answer = answer[closing.end() :].lstrip() if closing else ""
    if answer != text or ANY_TAG.search(prompt):
        return answer
    unquoted = (tag for tag in ANY_TAG.finditer(text) if text[: tag.start()][-1:] not in QUOTES or not tag.start())
    first = next(unquoted, None)
    return text[first.end() :].lstrip() if first and first[0].startswith("</") else text


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string; some servers ignore them."""
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]


def first_choice(completion: dict) -> dict:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = completion.get("error", "")  # not shortened here: half a key could not be redacted
        raise ValueError(f"the reply has no choices ({error})")
    return choices[0]


def parse_indexed(reply: dict, key: str, field: str, count: int) -> list:
    """Values of `field` in the list `reply[key]`, by `index`. Raises ValueError unless those are 0 to count - 1."""
    items = reply.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"the reply has no {key}")
    values = {item["index"]: item.get(field) for item in items if isinstance(item.get("index"), int)}
    if values.keys() != set(range(count)):
        raise ValueError(f"the reply has {field} for {len(values)} of {count} texts")
    return [values[index] for index in range(count)]


def parse_json_object(content: bytes) -> dict:
    """Parse a body that is a JSON object. Raises ValueError for any other."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError("the reply is not a JSON object")
    return value


def parse_usage(usage: object) -> Usage | None:
    """Parse the `usage` field of a reply; None unless it counts prompt and completion tokens, from 0 upwards."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = (usage.get("prompt_tokens"), cached or 0, usage.get("completion_tokens"))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    prompt, cached, completion = counts
    # Some servers leave the tokens of their cache out of prompt_tokens.
    return Usage(prompt if cached <= prompt else prompt + cached, cached, completion)


def tokens_read(usage: object) -> int | None:
    """Upper bound of the prompt tokens that the server read by its `usage`; None if it does not say.

    Some servers leave tokens of their cache out of `prompt_tokens` and count them elsewhere, so every count with
    `cache` in its name is added.
    """
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    details = usage.get("prompt_tokens_details")
    counts = usage | (details if isinstance(details, dict) else {})
    return usage["prompt_tokens"] + sum(n for name, n in counts.items() if "cache" in name and isinstance(n, int))


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


def json_object_in(reply: str, key: str, held: type | UnionType = list | dict) -> dict:
    """The JSON object in an LLM's reply that holds a value of type `held` (a list or object, or str) at `key`; text
    around it (a sentence, a Markdown fence) is ignored.

    What strict JSON does not allow is read too: line breaks in strings, trailing commas, a missing end. Raises
    ValueError for a reply without such an object; prose is never taken for one, since the value must be there.
    """
    decoder = json.JSONDecoder(strict=False)
    starts = [match.start() for match in re.finditer(rf"\{{\s*(?=[\"'“]|{key})", reply)]
    for start in starts:
        try:
            value = decoder.raw_decode(reply, start)[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(value.get(key), held):
            return mend(value)
    begins = "[\"'“]" if held is str else "[\\[{]"
    place = re.search(rf"[\"'“]?\b{key}[\"'”]?\s*:\s*{begins}", reply)
    if not starts or not place or place.start() < starts[0]:
        raise ValueError(f"the reply contains no JSON object with {key}")
    try:
        return mend(repair_json(reply[starts[0] :], key))
    except RecursionError as error:
        raise ValueError("the JSON object is nested too deeply") from error


def repair_json(text: str, key: str) -> dict:
    """An object in almost JSON. Raises ValueError if it is none."""
    import json_repair  # 0.1 s to import

    text = text.partition("\n```")[0].rstrip()
    if not text.endswith(("}", "]", ",")) and len(re.findall(r'(?<!\\)"', text)) % 2:
        text = text[: text.rindex('"')]  # a reply cut in a string: half a name is no name
    value = json_repair.loads(text)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"the reply contains no JSON object with {key}")
    return value


def text_of(item: object) -> str:
    """A listed item's text: a string, or an object that holds it under a key such as `name`; else empty."""
    if isinstance(item, dict):
        item = next((item[key] for key in NAME_KEYS if isinstance(item.get(key), str)), None)
    return " ".join(item.split()) if isinstance(item, str) else ""


def connection_fault(error: OSError) -> str:
    """The system's words for a connection that could not be made; asyncio's own are about its calls."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or type(error).__name__
