"""What an answer in a conversation is: how its words are drawn, how it is had, how it ends.

Who gives it is utils/local_speaker.py or utils/served_speaker.py. Both have `stream(messages, sampling,
answer)`, which yields pieces of text and notes in `answer` how it ends; `count(messages)` and
`room(sampling)`, in tokens; `completes`, where text is continued and nothing is answered; and `at_once`,
the answers that can be given at a time.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chat.conversation import fit
from utils.io import UserError

UNKNOWN = 1 << 30  # tokens of a context of which nobody said how long it is


@dataclass
class Sampling:
    """How words are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0


@dataclass
class Answer:
    """What is known of an answer besides its words. One record an answer: a page has several visitors."""

    ending: str = ""  # stop, or length where it was cut
    tokens: int = 0


class TooLong(UserError):
    """More than the model's context holds."""


def room_for_question(context: int | None, sampling: Sampling) -> int:
    """Tokens that a question may have: the rest, up to a quarter, is the answer's."""
    context = context or UNKNOWN
    return context - min(sampling.max_tokens, context // 4)


def reply(
    speaker, messages: list[dict], sampling: Sampling, answer: Answer, notice: Callable[[str], None]
) -> Iterator[str]:
    """The answer to the last message, in pieces. What does not fit into the context is left out by
    whole turns, the oldest first, and `notice` is told. Raises TooLong where the last message (and the
    system message) alone do not fit, UserError where the server fails."""
    refused, room = None, speaker.room(sampling)
    while fitting := fit(messages, room, speaker.count):
        kept, dropped = fitting
        with contextlib.closing(speaker.stream(kept, sampling, answer)) as pieces:
            try:
                first = next(pieces, "")
            except TooLong as error:  # a server knows better than our guess of tokens
                refused, room = error, speaker.count(kept) - 1
                continue
            if dropped:
                earlier = sum(message["role"] == "user" for message in messages) - 1
                notice(f"the model's context is full: the oldest {dropped} of {earlier} turns are left out")  # fmt: skip
            yield first
            yield from pieces
            return
    alone = [message for message in messages[:1] if message["role"] == "system"] + messages[-1:]
    what = "the message has" if len(alone) == 1 else "system message and message together have"
    raise refused or TooLong(
        f"too long for the model: {what} {speaker.count(alone):,} tokens, and its context has room for "
        f"{room:,}; send a shorter message"
    )
