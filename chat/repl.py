"""Chat in the terminal, or with messages from a pipe."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chat.compare import Comparer, Side, format_passages, label_sides, load_sides, no_passages, save_sides
from chat.conversation import ReplyStatus, Sampling, parse_temperature
from chat.terminal import read_terminal, reply_screen
from inference.completions import strip_reasoning
from inference.retrieval import Chunk
from utils.errors import UserError, first_line
from utils.words import without_controls

HELP = """\
Enter sends; Alt-Enter, or a \\ at the end of a line, starts a new line; the arrow keys recall earlier messages.
Tab completes commands, file names and titles of the corpus. Ctrl-C stops a reply, Ctrl-D quits.
  /reset              start a new conversation
  /system [TEXT]      show or set the system message; /system - removes it
  /retry              remove the last reply and ask again
  /save FILE          save as one line of JSONL, for data/tokenize_instruct.py
  /load FILE          continue a saved conversation
  /temperature [T]    show or set the sampling temperature; 0 is greedy
  /compare [MODEL]    show the second model, or compare with this one; open_book: the same model, with the passages
                      found in the corpus in its prompt; /compare - ends the comparison
  /speed              turn tokens/s after every reply on or off
  /help  /quit"""


class Repl:
    """Reads messages and commands; replies go to stdout, with labels and passages if two models are compared, everything
    else to stderr."""

    def __init__(self, sides: list[Side], sampling: Sampling, comparer: Comparer, titles: Sequence[str] = ()):
        self.sides, self.sampling, self.comparer = sides, sampling, comparer
        self.titles = list(titles)  # completed by Tab
        self.interactive = sys.stdin.isatty()
        self.on_terminal = self.interactive and sys.stdout.isatty()
        self.replies = 0  # added to the seed
        self.show_speed = False
        self.unanswered: str | None = None  # the message that /retry sends after an error
        self.asked: str | None = None  # the last message

    def run(self) -> None:
        """Run until /quit or the end of the input; input from a pipe stops at the first error."""
        names = [f"/{name}" for name in (*self.commands(), "quit")]
        for text in read_terminal(names, self.titles, print_notice) if self.interactive else read_pipe():
            if text == "/quit":
                break
            try:
                if text.startswith("/"):
                    self.command(*text[1:].partition(" ")[::2])
                elif text:
                    self.ask(text)
            except UserError as error:
                if not self.interactive:
                    raise
                print_notice(f"error: {error}" + ("; /retry asks again" if self.unanswered else ""))

    def commands(self) -> dict[str, Callable[[str], None]]:
        methods = (self.reset, self.system, self.retry, self.save, self.load, self.temperature, self.compare)
        return {method.__name__: method for method in (*methods, self.speed, self.help)}

    def command(self, name: str, argument: str) -> None:
        if name not in self.commands():
            raise UserError(f"there is no /{name}; /help lists the commands")
        self.commands()[name](argument.strip())

    def ask(self, message: str) -> None:
        """Run one turn. A model that gave no reply does not have the message in its conversation; if none gave one, or
        after an error, /retry sends it again."""
        self.unanswered = self.asked = message
        self.replies += 1
        compared = len(self.sides) > 1
        corpus = self.comparer.find_corpus() if compared else None
        passages = corpus.search(message) if corpus else []
        before = [list(side.conversation.turns) for side in self.sides]
        try:
            answered = [self.ask_side(side, message, passages) for side in self.sides]
        except UserError:
            self.restore(before)
            raise
        if any(answered):
            self.unanswered = None
        if compared:
            print(without_controls(f"── passages ──\n{format_passages(passages) or no_passages(corpus)}\n"), flush=True)
        elif self.on_terminal:
            print(flush=True)

    def ask_side(self, side: Side, message: str, passages: list[Chunk]) -> bool:
        """Print one model's reply and add it to its conversation. Returns False if there is none."""
        if len(self.sides) > 1:
            print(without_controls(f"── {side.label} ──"), flush=True)
        if side.engine.is_base_model:
            side.conversation.reset()
        side.conversation.add_user(message)
        status, start = ReplyStatus(), time.monotonic()
        reply = self.print_reply(side, passages, status)
        if not reply:
            side.conversation.pop_turn()
            print_notice("[no reply; /retry asks again]")
            return False
        answer = strip_reasoning(reply, message)
        if answer != reply:
            print_notice("[what is before the closing tag is reasoning, and no part of the conversation]")
        side.conversation.add_assistant(answer)
        if self.show_speed:
            speed = status.tokens / (time.monotonic() - start)
            print_notice(f"[{status.tokens} tokens, {speed:.1f} tokens/s]")
        return True

    def print_reply(self, side: Side, passages: list[Chunk], status: ReplyStatus) -> str:
        """Print the reply as it arrives and return it; Ctrl-C ends it early."""
        sampling = replace(self.sampling, seed=self.sampling.seed + self.replies)
        reply = ""
        try:
            pieces = side.stream(passages, sampling, status, print_notice)
            with contextlib.closing(pieces), reply_screen(self.on_terminal) as show:
                for piece in pieces:
                    reply += piece
                    show(without_controls(piece))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print_notice("\n[stopped]")
        except UserError:
            print(flush=True)
            raise
        else:
            print(flush=True)
            if status.finish_reason == "length":
                print_notice("[reply cut off at --max_tokens or the end of the context window]")
        return reply

    def restore(self, turns: list[list[dict]]) -> None:
        for side, kept in zip(self.sides, turns, strict=True):
            side.conversation.turns = kept

    def retry(self, _: str) -> None:
        message = self.unanswered or self.asked or self.sides[0].conversation.last_message()
        if message is None:
            raise UserError("no message to send again")
        turns = [list(side.conversation.turns) for side in self.sides]
        for side in self.sides:
            if not self.unanswered and side.conversation.last_message() == message:
                side.conversation.pop_turn()
        try:
            self.ask(message)
        finally:
            if self.unanswered:  # the earlier replies are kept
                self.restore(turns)

    def reset(self, _: str) -> None:
        for side in self.sides:
            side.conversation.reset()
        self.unanswered = self.asked = None
        print_notice("new conversation")

    def system(self, text: str) -> None:
        chats = [side for side in self.sides if not side.engine.is_base_model]
        if text and not chats:
            raise UserError("/system: a base model takes no system message")
        for side in chats if text else []:
            side.conversation.system = "" if text == "-" else text
        print_notice(f"system message: {(chats or self.sides)[0].conversation.system or 'none'}")

    def save(self, name: str) -> None:
        if not any(side.conversation.turns for side in self.sides):
            raise UserError("/save: the conversation is empty")
        with named_file("/save", name) as path:
            save_sides(path, self.sides)
        print_notice(f"saved: {path}")

    def load(self, name: str) -> None:
        with named_file("/load", name) as path:
            load_sides(path, self.sides)
        self.unanswered = self.asked = None
        print_notice(f"loaded: {path}, {len(self.sides[0].conversation.turns) // 2} turns")

    def temperature(self, text: str) -> None:
        if text:
            try:
                self.sampling = replace(self.sampling, temperature=parse_temperature(text))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"/temperature {error}") from error
        print_notice(f"temperature: {self.sampling.temperature}")

    def compare(self, name: str) -> None:
        """Compare with the model `name` from the next message on; `-` ends the comparison, no name shows it."""
        if name and len(self.sides) > 1:
            ended = self.sides.pop().label  # before another model is loaded: it frees its memory
            print_notice(f"comparison with {ended} ended")
        if name not in ("", "-"):
            self.sides.append(self.comparer.second_side(self.sides[0], name, "/compare"))
            label_sides(self.sides)
        if len(self.sides) == 1:
            print_notice("no comparison; /compare MODEL or /compare open_book begins one")
            return
        print_notice(f"comparing {' and '.join(side.label for side in self.sides)}; /compare - ends it")

    def speed(self, _: str) -> None:
        self.show_speed = not self.show_speed
        print_notice(f"tokens/s after every reply: {'on' if self.show_speed else 'off'}")

    def help(self, _: str) -> None:
        print_notice(HELP)


def print_notice(text: str) -> None:
    """Print text that is not the model's to stderr."""
    print(without_controls(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def named_file(command: str, name: str) -> Iterator[Path]:
    """The path that the user named. Errors of the file system become UserErrors: too long a name, no such user, ..."""
    if not name:
        raise UserError(f"{command}: name a file")
    try:
        yield Path(name).expanduser()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~user without a home
        raise UserError(f"{command} {name[:100]}: {first_line(error)}") from error


def read_pipe() -> Iterator[str]:
    """One message per line; a backslash at the end of a line joins the next one to it."""
    message = ""
    for line in sys.stdin.buffer:
        message += line.decode("utf-8", "replace").rstrip("\r\n")
        if message.endswith("\\"):
            message = message[:-1] + "\n"
            continue
        yield message.strip()
        message = ""
    yield message.strip()
