"""Special tokens written in a text are text, also inside a conversation whose template adds real ones.

`hide` replaces them before a chat template is rendered, and `encode_rendered` encodes them as text. The tokenizer
cannot tell the two kinds apart by itself, so its copy for this purpose knows the real ones by other names.
"""

import functools
import json
import re

from tokenizers import Tokenizer

from utils.errors import UserError

HIDDEN, REAL = "\U0010fffe", "\U0010ffff"  # noncharacters of Unicode: in no text


@functools.lru_cache(maxsize=2)  # 0.1 ms for Llama 3's 256, called for every message
def special_tokens(tokenizer) -> dict[str, int]:
    """Id by text of every special token."""
    return {
        token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special and token.content
    }


def hide(tokenizer, text: str) -> str:
    """The text with every special token in it replaced by a placeholder."""
    ids = special_tokens(tokenizer)
    text = text.replace(HIDDEN, "\ufffd")
    return _pattern(tokenizer).sub(lambda found: f"{HIDDEN}{ids[found[0]]}{HIDDEN}", text) if ids else text


def show(tokenizer, text: str) -> str:
    """The text with placeholders replaced by the special tokens they stand for."""
    texts = {id: text for text, id in special_tokens(tokenizer).items()}
    return re.sub(f"{HIDDEN}(\\d+){HIDDEN}", lambda found: texts[int(found[1])], text)


def encode_rendered(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of rendered conversations: special tokens of the template as such, hidden ones as text.

    Raises UserError for a hidden one that this tokenizer cannot encode as text.
    """
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    hidden = [number for number, text in enumerate(texts) if HIDDEN in text]
    if hidden:
        copy = _Copy(tokenizer)
        for number in hidden:
            rows[number] = copy.encode(texts[number])
    return rows


class _Copy:
    """A copy of a tokenizer whose special tokens are named by their ids, so that their usual text is only text."""

    def __init__(self, tokenizer):
        self._tokenizer, self._special = tokenizer, special_tokens(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError("a message contains a special token, which this tokenizer cannot encode as text")
        content = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            if token["content"] in self._special:
                token["content"] = _name(token["id"])
        self._backend = Tokenizer.from_str(json.dumps(content))
        self._ids = {self._backend.token_to_id(_name(id)): id for id in self._special.values()}

    def encode(self, text: str) -> list[int]:
        plain = re.sub(f"{HIDDEN}\\d+{HIDDEN}", "word", text)
        if self._encode(plain) != self._tokenizer(plain, add_special_tokens=False)["input_ids"]:
            raise UserError("a message contains a special token, which this tokenizer cannot encode as text")
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        named = _pattern(self._tokenizer).sub(lambda found: _name(self._special[found[0]]), text)
        ids = self._backend.encode(show(self._tokenizer, named), add_special_tokens=False).ids
        return [self._ids.get(id, id) for id in ids]


def _name(id: int) -> str:
    return f"{REAL}{id}{REAL}"


@functools.lru_cache(maxsize=2)
def _pattern(tokenizer) -> re.Pattern:
    """Matches every special token, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(special_tokens(tokenizer), key=len, reverse=True))))
