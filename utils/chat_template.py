"""Chat templates: a conversation as text and ids, and which of its tokens a model is to learn.

A conversation is a list of messages, {"role": "system" | "user" | "assistant", "content": text}.
"""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from jinja2.exceptions import TemplateError

from utils import paths
from utils.errors import UserError, first_line
from utils.io import read_text

AMBIGUOUS = (
    "writes earlier turns in another way than the last one, so an answer's words cannot be told from the "
    "rest; give another with --template FILE"
)
PROBE = [
    {"role": "user", "content": "red"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "green"},
    {"role": "assistant", "content": "white"},
]


def set_template(tokenizer, file: Path | None, flag: str) -> None:
    """Have the tokenizer use the template of `file`, else its own, else Llama 3.1's turns.

    Raises UserError, which names the `flag` that the user typed, where its vocabulary has none of
    Llama 3.1's marks, and where an answer does not end with a token that means nothing else.
    """
    if isinstance(tokenizer.chat_template, dict):  # several, by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if file:
        tokenizer.chat_template = read_text(file, "name a file that holds a Jinja chat template")
    elif tokenizer.chat_template is None:
        llama = read_text(paths.llama_template(), "it ships with the repository")
        if "<|eot_id|>" not in tokenizer.get_vocab():
            raise UserError(
                f"{flag}: has no chat template, nor the tokens of Llama 3.1's; give one with --template FILE"
            )
        tokenizer.chat_template = llama
    check_template(tokenizer)


def digest(template: str) -> str:
    """sha256 of a template's text."""
    return hashlib.sha256(template.encode()).hexdigest()


def render(tokenizer, messages: list[dict], to_be_answered: bool = False) -> str:
    """The conversation as its model sees it; `to_be_answered` adds the head of the answer. Halves of
    surrogate pairs, which no tokenizer takes, become question marks.

    Raises UserError where the template refuses the messages.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_be_answered)
    except (TemplateError, TypeError) as error:
        raise UserError(f"the chat template refuses this conversation: {first_line(error)}") from error
    return text.encode("utf-8", "replace").decode()


def encode(tokenizer, messages: list[dict], to_be_answered: bool = False) -> list[int]:
    """The same as token ids. The template writes the beginning token itself, where there is one."""
    text = render(tokenizer, messages, to_be_answered)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def end_of_turn_id(tokenizer) -> int:
    """The id of the special token that the template puts behind an answer. UserError where there is none."""
    tail = render(tokenizer, PROBE).rpartition(PROBE[-1]["content"])[2]
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if (added := tokenizer.added_tokens_decoder.get(token)) and added.special:
            return token
    raise UserError(
        "the chat template ends answers without a special token, so nobody could tell where they end; "
        "give another with --template FILE"
    )


def check_template(tokenizer) -> None:
    """Raises UserError where the words of two answers in one conversation could not be told from the rest."""
    (rows,) = encode_with_mask(tokenizer, [PROBE])
    inner = np.diff(rows[1], prepend=0, append=0)
    spans = zip(np.flatnonzero(inner == 1), np.flatnonzero(inner == -1), strict=True)
    found = [tokenizer.decode(rows[0, begin:end]) for begin, end in spans]
    end = tokenizer.decode([end_of_turn_id(tokenizer)])
    if len(found) != 2 or any(
        not text.endswith(message["content"] + end) or "green" in text
        for text, message in zip(found, PROBE[1::2], strict=True)
    ):
        raise UserError(f"the chat template {AMBIGUOUS}")


def stop_token_ids(tokenizer) -> list[int]:
    """The tokens at which an answer is over: the template's, where it can be told, and the tokenizer's own."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        with contextlib.suppress(UserError):
            ends.add(end_of_turn_id(tokenizer))
    return sorted(ends)


def encode_with_mask(tokenizer, conversations: list[list[dict]]) -> list[np.ndarray]:
    """For each conversation (2, tokens) int32: its ids, and 1 where they are an assistant's words or
    the token that ends them, else 0.

    The words begin where the ids of the whole leave those of all that comes before them: so nothing is
    assumed about where a tokenizer puts white space. All texts are encoded in one call, on all cores.
    """
    if not conversations:
        return []
    texts, heads = [], []  # heads: the number of the conversation that a text begins
    for number, messages in enumerate(conversations):
        texts.append(render(tokenizer, messages))
        heads.append(None)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                texts.append(render(tokenizer, messages[:index], to_be_answered=True))
                heads.append(number)
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    end, found = end_of_turn_id(tokenizer), []
    for ids, number in zip(encoded, heads, strict=True):
        if number is None:
            found.append(np.stack([ids, np.zeros(len(ids))]).astype(np.int32))
        else:
            _mark_answer(found[number], ids, end)
    return found


def _mark_answer(rows: np.ndarray, head: list[int], end: int) -> None:
    """Set the mask in `rows` (2, tokens) for the answer that comes after `head`."""
    ids, counted = rows
    length = min(len(head), len(ids))
    differ = np.flatnonzero(ids[:length] != head[:length])
    begin = int(differ[0]) if len(differ) else length
    ends = begin + np.flatnonzero(ids[begin:] == end)
    if begin < len(head) - 1 or not len(ends):  # one token may hold white space of both
        raise UserError(f"the chat template {AMBIGUOUS}")
    counted[begin : ends[0] + 1] = 1


def replace_surrogates(text: str) -> str:
    """A text without halves of surrogate pairs, which no file, terminal or tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def conversation_error(messages: object) -> str | None:
    """What keeps a value from being a finished conversation; None where nothing does."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return "has no list `messages`"
    if not all(isinstance(m.get("content"), str) for m in messages):
        return "a message has no text in `content`"
    roles = [m.get("role") for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "after a system message, if any, user and assistant must take turns, and the assistant end"
    return None
