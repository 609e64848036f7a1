"""Habits of real servers that differ from OpenAI's, for the fake server."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

# The fixed request by which steps recognise a model. It is answered outside of faults and counts.
FIXED_TEXT = "The keeper of the lighthouse opened the ledger and wrote that on the night of the storm the"
REASONING = "Let me see what the text says.\nThe ledger names him. Answer: D."


@dataclass
class Habits:
    """`model`: the weights behind the name; `unsteady`: a fixed request has other replies each time. `ends`: the word
    for the normal end. `reasoning`: `block`, `closing` (a closing tag alone) or `unclosed`. `context`: tokens read of a
    prompt. `refuses`: fields that are an error. `hides_cache`: cached tokens are left out of `prompt_tokens`.
    `input_types`: one of them must be given."""

    model: str = "a"
    unsteady: bool = False
    ignores_stop: bool = False
    ends: str = "stop"
    reasoning: str = ""
    parts: bool = False
    context: int = 1 << 30
    count: Callable[[str], int] = lambda text: len(text) // 4
    hides_cache: bool = False
    refuses: tuple[str, ...] = ()
    input_types: tuple[str, ...] = ()
    fixed_requests: int = 0

    def refusal(self, body: dict) -> dict | None:
        """An error in the words of OpenAI's server, or for `input_type` of NVIDIA's."""
        for name in self.refuses:
            if name in body:
                hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
                return {"message": message, "type": "invalid_request_error", "param": name, "code": "unsupported"}
        if self.input_types and "input" in body and body.get("input_type") not in self.input_types:
            return {"message": f"'input_type' parameter is required: one of {', '.join(self.input_types)}"}
        return None

    def read(self, prompt: str) -> int:
        """Tokens of a prompt that are read."""
        return min(self.count(prompt), self.context)

    def is_fixed(self, body: dict) -> bool:
        return FIXED_TEXT in json.dumps(body)

    def fixed_text(self) -> str:
        self.fixed_requests += 1
        return f"boats came home, {self.model}{self.fixed_requests if self.unsteady else ''}"

    def written(self, text: str, body: dict) -> str:
        """The reply with the text that the model adds before and after its answer."""
        stops = [] if self.ignores_stop else body.get("stop") or []
        places = [text.find(stop) for stop in stops if stop in text]
        text = text[: min(places, default=len(text))]
        forms = {"block": f"<think>\n{REASONING}\n</think>\n\n{text}", "closing": f"{REASONING}\n</think>\n\n{text}"}
        return forms.get(self.reasoning) or (f"<think>\n{REASONING}" if self.reasoning else text)

    def content(self, text: str) -> object:
        half = len(text) // 2
        return [{"type": "text", "text": part} for part in (text[:half], text[half:])] if self.parts else text

    def finish_reason(self) -> str:
        return "length" if self.reasoning == "unclosed" else self.ends

    def vectors(self, texts: list[str]) -> list[dict]:
        """Bags of words hashed into 64 dimensions, so that texts with common words are near; in reverse order."""
        data = []
        for index, text in enumerate(texts):
            vector = [0.0] * 64
            for word in re.findall(r"\w+", text.lower()):
                salted = word if self.model == "a" else self.model + word
                vector[hashlib.blake2b(salted.encode()).digest()[0] % 64] += 1
            data.append({"index": index, "embedding": vector})
        return data[::-1]

    def relevance(self, body: dict) -> list[dict]:
        """Share of each document's words that are in the query, best first."""
        query, results = set(re.findall(r"\w+", body["query"].lower())), []
        for index, document in enumerate(body["documents"]):
            words = set(re.findall(r"\w+", document.lower()))
            share = len(words & query) / max(1, len(words))
            results.append({"index": index, "relevance_score": share if self.model == "a" else 0.5 + share / 2})
        return sorted(results, key=lambda result: -result["relevance_score"])


def uploaded(headers: dict, content: bytes) -> bytes:
    """File in a multipart form."""
    boundary = b"--" + re.search(r'boundary="?([^";]+)', headers["content-type"])[1].encode()
    parts = [part.partition(b"\r\n\r\n") for part in content.split(boundary)]
    return next(body[:-2] for head, _, body in parts if b"filename=" in head)
