"""Chat templates: conversations as text, token ids and loss masks.

A conversation is a list of messages, {"role": "system" | "user" | "assistant", "content": text}.
"""

import contextlib
from pathlib import Path

import numpy as np
from jinja2.exceptions import TemplateError

from utils import paths
from utils.errors import UserError, first_line
from utils.io import read_text
from utils.special_tokens import encode_rendered, hide, show

AMBIGUOUS = (
    "formats earlier turns differently from the last one, so the assistant's tokens cannot be located; "
    "use another with --template FILE"
)
PROBE = [
    {"role": "user", "content": "red"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "green"},
    {"role": "assistant", "content": "white"},
]


def set_template(tokenizer, file: Path | None, flag: str) -> None:
    """Set the tokenizer's template to that of `file`, else keep its own, else use Llama 3.1's.

    Raises UserError, which names the command-line `flag`, where the vocabulary lacks Llama 3.1's special tokens, and
    where replies do not end with a special token.
    """
    if isinstance(tokenizer.chat_template, dict):  # several, by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if file:
        tokenizer.chat_template = read_text(file, "name a file with a Jinja chat template")
    elif tokenizer.chat_template is None:
        llama = read_text(paths.llama_template(), "it ships with the repository")
        if "<|eot_id|>" not in tokenizer.get_vocab():
            raise UserError(
                f"{flag}: has no chat template, nor Llama 3.1's special tokens; give one with --template FILE"
            )
        tokenizer.chat_template = llama
    check_template(tokenizer)


def render(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> str:
    """The conversation as the model sees it; `add_generation_prompt` appends the header of the reply. Unpaired
    surrogates, which no tokenizer accepts, become question marks.

    Raises UserError where the template rejects the messages.
    """
    return show(tokenizer, _render_hidden(tokenizer, messages, add_generation_prompt))


def _render_hidden(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> str:
    """The same, with the special tokens that messages contain still hidden."""
    hidden = [
        {key: hide(tokenizer, value) if isinstance(value, str) and key != "role" else value for key, value in m.items()}
        for m in messages
    ]
    try:
        text = tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"the chat template rejects this conversation: {first_line(error)}") from error
    return text.encode("utf-8", "replace").decode()


def encode(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> list[int]:
    """The same as token ids. The template itself writes the BOS token, if any; special tokens in a message are text."""
    return encode_rendered(tokenizer, [_render_hidden(tokenizer, messages, add_generation_prompt)])[0]


def end_of_turn_id(tokenizer) -> int:
    """The id of the special token that the template puts after a reply. Raises UserError where there is none."""
    tail = render(tokenizer, PROBE).rpartition(PROBE[-1]["content"])[2]
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if (added := tokenizer.added_tokens_decoder.get(token)) and added.special:
            return token
    raise UserError("the chat template ends replies without a special token; use another with --template FILE")


def check_template(tokenizer) -> None:
    """Raises UserError where the assistant's tokens cannot be located in a conversation of two turns."""
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
    """Ids that end a reply: the tokenizer's EOS, and the template's end of turn where it has one."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        with contextlib.suppress(UserError):
            ends.add(end_of_turn_id(tokenizer))
    return sorted(ends)


def encode_with_mask(tokenizer, conversations: list[list[dict]], learn_all: bool = False) -> list[np.ndarray]:
    """For each conversation (2, tokens) int32: token ids and loss mask, 1 for the assistant's tokens and the token
    that ends a reply, or with `learn_all` for every token; 0 elsewhere, and for a reply with `"weight": 0`.

    A reply begins where the ids of the whole conversation differ from the ids of everything before the reply, so
    nothing is assumed about where a tokenizer puts white space. All texts are encoded in one call, on all cores.
    """
    if not conversations:
        return []
    texts, heads = [], []  # heads: the conversation whose beginning a text is, or None for a whole one
    for number, messages in enumerate(conversations):
        texts.append(_render_hidden(tokenizer, messages))
        heads.append(None)
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and is_learnt(message) != learn_all:
                texts.append(_render_hidden(tokenizer, messages[:index], add_generation_prompt=True))
                heads.append(number)
    encoded = encode_rendered(tokenizer, texts)
    end, found = end_of_turn_id(tokenizer), []
    for ids, number in zip(encoded, heads, strict=True):
        if number is None:
            found.append(np.stack([ids, np.full(len(ids), learn_all)]).astype(np.int32))
        else:
            _mark_answer(found[number], ids, end, int(not learn_all))
    return found


def is_learnt(message: dict) -> bool:
    """True unless a message has the weight 0, as in OpenAI's files for fine-tuning."""
    return message.get("weight") != 0


def _mark_answer(rows: np.ndarray, head: list[int], end: int, value: int) -> None:
    """Set the loss mask to `value` in `rows` (2, tokens) for the reply that follows the ids `head`."""
    ids, counted = rows
    length = min(len(head), len(ids))
    differ = np.flatnonzero(ids[:length] != head[:length])
    begin = int(differ[0]) if len(differ) else length
    ends = begin + np.flatnonzero(ids[begin:] == end)
    if begin < len(head) - 1 or not len(ends):  # one token may hold white space of prompt and reply
        raise UserError(f"the chat template {AMBIGUOUS}")
    counted[begin : ends[0] + 1] = value


def replace_surrogates(text: str) -> str:
    """The text with unpaired surrogates, which files, terminals and tokenizers reject, replaced by `?`."""
    return text.encode("utf-8", "replace").decode()


def conversation_error(messages: object) -> str | None:
    """The reason why a value is not a complete conversation; None if it is one."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return "has no list `messages`"
    if not all(isinstance(m.get("content"), str) for m in messages):
        return "a message has no string `content`"
    for message in messages:
        weight, allowed = message.get("weight"), (0, 1) if message.get("role") == "assistant" else (0,)
        if weight is not None and (isinstance(weight, bool) or weight not in allowed):
            return f"a message has the weight {weight!r}; only 0 and 1, of the assistant's messages, are known"
    roles = [m.get("role") for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "after an optional system message, user and assistant must alternate, and the assistant must be last"
    return None
