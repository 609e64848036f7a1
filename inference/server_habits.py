"""Habits of servers that differ from OpenAI's: request fields that they refuse, and prompts that they cut.

Each is decided by what the server itself says, never by its name.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from inference.budget import BudgetExhausted
from inference.completions import PROMPT_CUT, CallFailed, CallStopped, FieldRefused, PromptCut, Reply
from utils.errors import UserError

# Fields that a request can do without, the least important first, and what is different then.
OMITTED = {
    "prompt_cache_key": "the server's own cache applies",
    "encoding_format": "the server's own format applies",
    "seed": "replies cannot be repeated",
    "top_p": "the server's own top-p applies",
    "n": "every completion is a call of its own",
    "response_format": "the form of a reply is asked for by the prompt alone",
    "stop": "texts are cut here",
    "temperature": "replies are sampled at the server's own temperature, whatever --temperature says",
}
RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
UNSUPPORTED = re.compile(
    r"\b(?:not|n't|cannot)\b.{0,30}\b(?:support|allow|permit|accept|recogni[sz]e|implement|available|used|specified)"
    r"|unsupported|unrecogni[sz]ed|unknown|unexpected|extra (?:input|field|argument)|additional propert|deprecated"
    r"|unavailable|only the default|invalid (?:parameter|argument|field)|forbidden|disabled|no such",
    re.I | re.S,
)
# A value out of range is another fault: the same request without the field would not be what was asked for.
OUT_OF_RANGE = re.compile(
    r"too (?:large|long|high|many|big|small|low)|exceed|context (?:length|window)|out of range"
    r"|must be (?:between|less|greater|positive|[<>])|at (?:most|least)|maximum (?:value|length)",
    re.I,
)
AS_PARAMETER = r"[`'\"]{0}[`'\"]|(?:parameter|param|argument|field|key|body|supplied)s?[:.]? *[`'\"]?{0}\b|^{0}\b|\b{0} (?:is|are) "
MANY = r"\bn *(?:>|=|must|is)|(?:one|single|multiple) (?:completion|choice)"

MIN_CONTEXT = 64  # tokens: a smaller count is not a context but what a cache left
SURE_CONTEXT = 512  # tokens: the smallest context of a language model
MIN_BYTES_PER_TOKEN = 6  # English has 4 to 5 in all common tokenizers: up to here nothing is counted
UNSPACED_CHARS = 6  # per token, of scripts without spaces; common tokenizers take 1 to 3
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
WORDS_PER_TOKEN = 4  # SuperBPE's limit (Liu et al., 2025): no published tokenizer puts more words into a token
SLICES = 32
CUT_PROMPTS = 3  # if the first prompts, this many, are all cut, so will be the others
Count = Callable[[str], Awaitable[int | None]]


def refused_field(status: int, content: bytes, body: dict) -> FieldRefused | None:
    """The field of `body` that the server refuses, by its own message; None for any other error."""
    if status not in (400, 422):
        return None
    text = content.decode(errors="replace")
    param = re.search(r'"param"\s*:\s*"(\w+)"', text)
    message = re.search(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")', text)
    message = json.loads(message[1], strict=False) if message else text
    named = {name: place for name in (*OMITTED, *RENAMED) if name in body and (place := _place(name, message))}
    if param and param[1] in body and param[1] in (*OMITTED, *RENAMED):
        named = {param[1]: 0}
    for name in sorted(named, key=named.get):
        always = name == "response_format" or (name == "n" and body["n"] != 1)
        if always or (UNSUPPORTED.search(message) and not OUT_OF_RANGE.search(message)):
            both = [other for other in OMITTED if other in named] if re.search(r"\bboth\b", message) else []
            return FieldRefused(both[0] if both else name, " ".join(message.split()))
    return None


def _place(name: str, message: str) -> int:
    """Where a message names a field, from 1; 0 if it does not. Names that are words must look like a parameter."""
    pattern = rf"(?<!\w){name}(?!\w)" if "_" in name else AS_PARAMETER.format(name)
    found = re.search(f"{pattern}|{MANY}" if name == "n" else pattern, message, re.I)
    return found.start() + 1 if found else 0


class Fields:
    """Fields of requests that a server refused, and what is sent instead."""

    def __init__(self):
        self.changes: dict[str, str | None] = {}  # the field's other name, None if it is omitted
        self._notes: dict[str, str] = {}

    def adapt(self, body: dict) -> dict:
        """A request with refused fields renamed or omitted."""
        if not self.changes:
            return body
        names = {name: self.changes.get(name, name) for name in body}
        return {names[name]: value for name, value in body.items() if names[name]}

    def change(self, field: str, reason: str) -> str:
        """Send no request with this field again; returns a sentence about it. Raises CallFailed if the field can
        neither be renamed nor omitted."""
        if field in self.changes.values():
            raise CallFailed(f"400: {reason}")
        if field not in self.changes:
            new_name = self.changes[field] = RENAMED.get(field)
            effect = f"sent as `{new_name}`" if new_name else f"omitted; {OMITTED[field]}"
            self._notes[field] = f"the server refuses `{field}` ({reason}): {effect}"
        return self._notes[field]


def least_tokens(prompt: str) -> int:
    """A number of tokens that common tokenizers never stay below, by words: they do not join two words into a token,
    however often these are repeated, but do put long runs of spaces, dashes or digits into one."""
    unspaced = len(UNSPACED.findall(prompt))
    words = sum(any(map(str.isalnum, word)) for word in UNSPACED.sub("", prompt).split())
    return words + unspaced // UNSPACED_CHARS


def surely_cut(prompt: str, tokens: int | None) -> bool:
    """True if no tokenizer at all could read `prompt` as so few tokens."""
    return tokens is not None and tokens >= SURE_CONTEXT and least_tokens(prompt) > WORDS_PER_TOKEN * tokens


class PromptCounts:
    """Finds the prompts that a server cuts without a word, by the tokens that it says it read.

    Fewer tokens than words is suspicious, but not proof: a tokenizer may join words, and some servers leave cached
    tokens out of their count. So the first suspicion is checked, once: the same prompt with its parts in another order
    (which no cache holds) has more tokens if the cache was left out, and half of it has half the tokens if nothing is
    cut.
    """

    def __init__(self):
        self._lock = asyncio.Lock()
        self._trusted = False
        self._cut = self._whole = self._context = 0  # prompts, and tokens once a prompt was cut

    async def check(self, prompt: str, reply: Reply, count: Count) -> None:
        """Raise PromptCut if the server read only a part of the prompt. `count` sends a text and returns the tokens
        that were read."""
        if not await self._is_cut(prompt, reply.tokens_read, count):
            self._whole += 1
            return
        self._cut += 1
        message = (
            f"the server cut the prompt: its context is {self._context:,} tokens, and the prompt has at least "
            f"{least_tokens(prompt):,}; start it with a larger context"
        )
        raise PromptCut(message, replace(reply, finish_reason=PROMPT_CUT))

    def always_cut(self) -> str:
        """An error message if every prompt so far was cut, and there were several; else empty."""
        if self._whole or self._cut < CUT_PROMPTS:
            return ""
        return (
            f"the server cut all {self._cut} prompts so far to its context of {self._context:,} tokens; start it with "
            "a larger one (Ollama: OLLAMA_CONTEXT_LENGTH)"
        )

    async def _is_cut(self, prompt: str, tokens: int | None, count: Count) -> bool:
        if tokens is None or tokens < MIN_CONTEXT or len(prompt.encode()) <= MIN_BYTES_PER_TOKEN * tokens:
            return False
        if self._trusted or len(" ".join(prompt.split()).encode()) <= MIN_BYTES_PER_TOKEN * tokens:
            return False
        if least_tokens(prompt) <= tokens:
            return False
        async with self._lock:
            if self._trusted or abs(tokens - self._context) <= self._context / 10:
                return not self._trusted
            if surely_cut(prompt, tokens) or await self._confirm(prompt, tokens, count):
                self._context = max(tokens, self._context)
                return True
        return False

    async def _confirm(self, prompt: str, tokens: int, count: Count) -> bool:
        """True if the server cuts the prompt; False, also for later prompts, if its counts are right."""
        size = -(-len(prompt) // SLICES)
        slices = [prompt[start : start + size] for start in range(0, len(prompt), size)]
        try:
            whole = await count("".join(slices[::-1]))
            half = await count("".join(slices[1::2])) if whole else None
        except (CallFailed, CallStopped, BudgetExhausted, UserError):
            return False
        if half is None or whole > 1.1 * tokens or half < 0.6 * tokens:
            self._trusted = True
        return not self._trusted
