"""The conversation in a terminal, and the same out of a pipe."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chat.conversation import Conversation, ReplyStatus, Sampling, stream_reply
from utils import paths
from utils.errors import UserError, first_line

HELP = """\
Enter sends, Alt-Enter (or a \\ at the end of a line) begins a new line, arrows bring earlier messages back.
Ctrl-C stops an answer, Ctrl-D leaves.
  /reset              begin a new conversation
  /system [TEXT]      show or set the system message; /system - takes it away
  /retry              take the last answer back and ask again
  /save FILE          as a line of JSONL, which data/tokenize_instruct.py takes
  /load FILE          go on from such a file
  /temperature [T]    show or set it; 0 takes the likeliest words
  /speed              tokens/s after every answer, or no longer
  /help  /quit"""
# All but tab and newline: a model's words move no cursor.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Repl:
    """Reads messages and commands, writes answers to stdout and everything else to stderr."""

    def __init__(self, speaker, sampling: Sampling, system: str):
        self.speaker, self.sampling, self.conversation = speaker, sampling, Conversation(system)
        self.first_seed, self.asked, self.timed, self.failed = sampling.seed, 0, False, None
        self.typed = sys.stdin.isatty()  # by a person

    def run(self) -> None:
        """Until the input ends or /quit. Out of a pipe the first error ends it."""
        for text in lines_of_terminal() if self.typed else lines_of_pipe():
            if text == "/quit":
                break
            try:
                if text.startswith("/"):
                    self.command(*text[1:].partition(" ")[::2])
                elif text:
                    self.ask(text)
            except UserError as error:
                if not self.typed:
                    raise
                print_notice(f"error: {error}" + ("; /retry asks again" if self.failed else ""))

    def command(self, name: str, argument: str) -> None:
        commands = {
            "reset": self.reset,
            "system": self.system,
            "retry": self.retry,
            "save": self.save,
            "load": self.load,
            "temperature": self.temperature,
            "speed": self.speed,
            "help": self.help,
        }
        if name not in commands:
            raise UserError(f"there is no /{name}; /help lists the commands")
        commands[name](argument.strip())

    def ask(self, text: str) -> None:
        """One turn. Of an answer that Ctrl-C stops what there is is kept; where the server fails, the
        question is taken back, and /retry asks it again."""
        if self.speaker.completes:
            self.conversation.reset()
        self.conversation.ask(text)
        self.failed, said, answer, begun = text, "", ReplyStatus(), time.monotonic()
        self.asked += 1
        sampling = replace(self.sampling, seed=self.first_seed + self.asked)
        pieces = stream_reply(self.speaker, self.conversation.messages(), sampling, answer, print_notice)
        try:
            for piece in pieces:
                said += piece
                print(CONTROL.sub("", piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self.typed:
                raise
            print_notice("\n[stopped]")
        except UserError:
            print(flush=True)
            self.conversation.take_back()
            raise
        else:
            print(flush=True)
            if answer.ending == "length":
                print_notice("[cut: --max_tokens, or the model's context, is reached]")
        finally:
            pieces.close()
        if not said:  # stopped before the first word, or nothing was answered
            self.conversation.take_back()
            print_notice("[no answer; /retry asks again]")
            return
        self.failed = None
        self.conversation.answer(said)
        if self.timed:
            seconds = time.monotonic() - begun
            print_notice(f"[{answer.tokens} tokens, {answer.tokens / seconds:.1f} a second]")

    def retry(self, _: str) -> None:
        before = list(self.conversation.turns)
        question = self.failed or self.conversation.take_back()
        if question is None:
            raise UserError("nothing was asked yet")
        try:
            self.ask(question)
        finally:
            if self.failed:  # the answer that there was is kept
                self.conversation.turns = before

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self.failed = None
        print_notice("a new conversation")

    def system(self, text: str) -> None:
        if text and self.speaker.completes:
            raise UserError("/system: a model that continues text takes none")
        if text:
            self.conversation.system = "" if text == "-" else text
        print_notice(f"system message: {self.conversation.system or 'none'}")

    def save(self, name: str) -> None:
        if not self.conversation.turns:
            raise UserError("nothing was said yet")
        path = file_named(name, "/save")
        with mistyped(name):
            self.conversation.save(path)
        print_notice(f"saved: {path}")

    def load(self, name: str) -> None:
        path = file_named(name, "/load")
        with mistyped(name):
            self.conversation.load(path)
        self.failed = None
        print_notice(f"going on from {path}, {len(self.conversation.turns) // 2} turns")

    def temperature(self, text: str) -> None:
        if text:
            self.sampling.temperature = temperature_of(text, "/temperature")
        print_notice(f"temperature: {self.sampling.temperature}")

    def speed(self, _: str) -> None:
        self.timed = not self.timed
        print_notice(f"tokens/s after every answer: {'on' if self.timed else 'off'}")

    def help(self, _: str) -> None:
        print_notice(HELP)


def print_notice(text: str) -> None:
    """Something that is not the model's."""
    print(CONTROL.sub("", text), file=sys.stderr, flush=True)


def file_named(name: str, command: str) -> Path:
    if not name:
        raise UserError(f"{command}: name a file")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{command} {name}: {first_line(error)}") from error


@contextlib.contextmanager
def mistyped(name: str) -> Iterator[None]:
    """What the system says of a file name that cannot be is the user's to mend."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{name[:100]}: {first_line(error)}") from error


def temperature_of(text: str, where: str) -> float:
    """Raises UserError, which says `where` it was typed, for what is no number from 0 to 5."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 5:
        raise UserError(f"{where} {text}: a number from 0 to 5")
    return value


def clean(text: str) -> str:
    """What was typed, with U+FFFD for bytes that are not UTF-8, which Python hands on as surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def lines_of_pipe() -> Iterator[str]:
    """A message a line; a backslash at its end takes the next one in."""
    message = ""
    for line in sys.stdin.buffer:
        message += line.decode("utf-8", "replace").rstrip("\r\n")
        if message.endswith("\\"):
            message = message[:-1] + "\n"
            continue
        yield message.strip()
        message = ""
    yield message.strip()


def lines_of_terminal() -> Iterator[str]:
    """What a person types, with history and lines of its own; ends with Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            super().store_string(clean(string))

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
    def new_line(event) -> None:
        event.current_buffer.insert_text("\n")

    paths.chat_history().parent.mkdir(parents=True, exist_ok=True)
    session = PromptSession(
        "> ", history=History(str(paths.chat_history())), multiline=True, key_bindings=keys, prompt_continuation="  "
    )
    while True:
        try:
            yield clean(session.prompt()).strip()
        except KeyboardInterrupt:  # of what is being typed
            print_notice("/quit or Ctrl-D leaves")
        except EOFError:
            return
