"""Chat in the terminal, or with messages from a pipe."""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chat.conversation import Conversation, Engine, ReplyStatus, Sampling, parse_temperature, stream_reply
from inference.completions import strip_reasoning
from utils import paths
from utils.errors import UserError, first_line

HELP = """\
Enter sends; Alt-Enter, or a \\ at the end of a line, starts a new line; the arrow keys recall earlier messages.
Ctrl-C stops a reply, Ctrl-D quits.
  /reset              start a new conversation
  /system [TEXT]      show or set the system message; /system - removes it
  /retry              remove the last reply and ask again
  /save FILE          save as one line of JSONL, for data/tokenize_instruct.py
  /load FILE          continue a saved conversation
  /temperature [T]    show or set the sampling temperature; 0 is greedy
  /speed              turn tokens/s after every reply on or off
  /help  /quit"""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


class Repl:
    """Reads messages and commands; replies go to stdout, everything else to stderr."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str):
        self.engine, self.sampling, self.conversation = engine, sampling, Conversation(system)
        self.interactive = sys.stdin.isatty()
        self.replies = 0  # added to the seed
        self.show_speed = False
        self.unanswered: str | None = None  # the message that /retry sends after an error

    def run(self) -> None:
        """Run until /quit or the end of the input; input from a pipe stops at the first error."""
        for text in read_terminal() if self.interactive else read_pipe():
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

    def command(self, name: str, argument: str) -> None:
        methods = (self.reset, self.system, self.retry, self.save, self.load, self.temperature, self.speed, self.help)
        commands = {method.__name__: method for method in methods}
        if name not in commands:
            raise UserError(f"there is no /{name}; /help lists the commands")
        commands[name](argument.strip())

    def ask(self, message: str) -> None:
        """Run one turn. Without a reply the message is removed from the conversation, and /retry sends it again."""
        if self.engine.is_base_model:
            self.conversation.reset()
        self.conversation.add_user(message)
        self.unanswered, status, start = message, ReplyStatus(), time.monotonic()
        reply = self.print_reply(status)
        if not reply:
            self.conversation.pop_turn()
            print_notice("[no reply; /retry asks again]")
            return
        self.unanswered = None
        answer = strip_reasoning(reply, message)
        if answer != reply:
            print_notice("[what is before the closing tag is reasoning, and no part of the conversation]")
        self.conversation.add_assistant(answer)
        if self.show_speed:
            speed = status.tokens / (time.monotonic() - start)
            print_notice(f"[{status.tokens} tokens, {speed:.1f} tokens/s]")

    def print_reply(self, status: ReplyStatus) -> str:
        """Print the reply as it arrives and return it; Ctrl-C ends it early."""
        self.replies += 1
        sampling = replace(self.sampling, seed=self.sampling.seed + self.replies)
        reply, messages = "", self.conversation.messages()
        try:
            with contextlib.closing(stream_reply(self.engine, messages, sampling, status, print_notice)) as pieces:
                for piece in pieces:
                    reply += piece
                    print(CONTROL_CHARACTERS.sub("", piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print_notice("\n[stopped]")
        except UserError:
            print(flush=True)
            self.conversation.pop_turn()
            raise
        else:
            print(flush=True)
            if status.finish_reason == "length":
                print_notice("[reply cut off at --max_tokens or the end of the context window]")
        return reply

    def retry(self, _: str) -> None:
        turns = list(self.conversation.turns)
        message = self.unanswered or self.conversation.pop_turn()
        if message is None:
            raise UserError("no message to send again")
        try:
            self.ask(message)
        finally:
            if self.unanswered:  # the earlier reply is kept
                self.conversation.turns = turns

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self.unanswered = None
        print_notice("new conversation")

    def system(self, text: str) -> None:
        if text and self.engine.is_base_model:
            raise UserError("/system: a base model takes no system message")
        if text:
            self.conversation.system = "" if text == "-" else text
        print_notice(f"system message: {self.conversation.system or 'none'}")

    def save(self, name: str) -> None:
        if not self.conversation.turns:
            raise UserError("/save: the conversation is empty")
        with named_file("/save", name) as path:
            self.conversation.save(path)
        print_notice(f"saved: {path}")

    def load(self, name: str) -> None:
        with named_file("/load", name) as path:
            self.conversation.load(path)
        self.unanswered = None
        print_notice(f"loaded: {path}, {len(self.conversation.turns) // 2} turns")

    def temperature(self, text: str) -> None:
        if text:
            try:
                self.sampling = replace(self.sampling, temperature=parse_temperature(text))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"/temperature {error}") from error
        print_notice(f"temperature: {self.sampling.temperature}")

    def speed(self, _: str) -> None:
        self.show_speed = not self.show_speed
        print_notice(f"tokens/s after every reply: {'on' if self.show_speed else 'off'}")

    def help(self, _: str) -> None:
        print_notice(HELP)


def print_notice(text: str) -> None:
    """Print text that is not the model's to stderr."""
    print(CONTROL_CHARACTERS.sub("", text), file=sys.stderr, flush=True)


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


def read_terminal() -> Iterator[str]:
    """Messages typed by the user, with a history and multi-line editing, until Ctrl-D."""
    session = make_prompt_session()
    while True:
        try:
            yield replace_invalid_utf8(session.prompt()).strip()
        except KeyboardInterrupt:  # clears the line
            print_notice("/quit or Ctrl-D quits")
        except EOFError:
            return


def make_prompt_session():
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            super().store_string(replace_invalid_utf8(string))

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def send(event) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def insert_line_break(event) -> None:
        event.current_buffer.insert_text("\n")

    paths.chat_history().parent.mkdir(parents=True, exist_ok=True)
    history = History(str(paths.chat_history()))
    return PromptSession("> ", history=history, multiline=True, key_bindings=keys, prompt_continuation="  ")


def replace_invalid_utf8(text: str) -> str:
    """U+FFFD for the surrogates by which Python represents typed bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
