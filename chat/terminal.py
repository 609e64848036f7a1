"""Terminal of a chat: the line editor with its completions, word wrap, a spinner, no echo while a reply streams."""

import contextlib
import os
import re
import sys
import termios
from collections.abc import Callable, Iterator

from utils import paths

PROMPT_STYLE = "bold ansigreen"
MIN_COLUMNS = 20
BREAKS = re.compile(r"( +|\n)")


def read_terminal(commands: list[str], titles: list[str], notice: Callable[[str], None]) -> Iterator[str]:
    """Messages typed by the user, with a history and multi-line editing, until Ctrl-D."""
    session = make_prompt_session(commands, titles)
    while True:
        try:
            yield replace_invalid_utf8(session.prompt()).strip()
        except KeyboardInterrupt:  # clears the line
            notice("/quit or Ctrl-D quits")
        except EOFError:
            return


def make_prompt_session(commands: list[str], titles: list[str]):
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            super().store_string(replace_invalid_utf8(string))

    paths.chat_history().parent.mkdir(parents=True, exist_ok=True)
    paths.chat_history().touch(mode=0o600)
    paths.chat_history().chmod(0o600)  # for the user's eyes alone
    return PromptSession(
        [(PROMPT_STYLE, "> ")],
        history=History(str(paths.chat_history())),
        multiline=True,
        key_bindings=make_key_bindings(),
        prompt_continuation="  ",
        completer=make_completer(commands, titles),
        complete_while_typing=False,  # on Tab
    )


def make_key_bindings():
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings

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

    return keys


def make_completer(commands: list[str], titles: list[str]):
    """Completes commands, the files of /save and /load, and the titles of the corpus."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class ChatCompleter(Completer):
        files = PathCompleter(expanduser=True)

        def get_completions(self, document, event):
            text = document.text_before_cursor
            command, space, argument = text.partition(" ")
            if command in ("/save", "/load") and space:
                yield from self.files.get_completions(Document(argument), event)
            elif text.startswith("/") and not space:
                yield from (Completion(name, -len(text)) for name in commands if name.startswith(text))
            else:
                yield from (Completion(title, -typed) for title, typed in matching_titles(text, titles))

    return ChatCompleter()


def matching_titles(text: str, titles: list[str]) -> list[tuple[str, int]]:
    """(title, typed characters) of the titles that begin with the end of the text; the longest beginning counts."""
    starts = [match.start() for match in re.finditer(r"(?<!\w)\w", text)]
    for start in starts:
        typed = text[start:].lower()
        if found := [title for title in titles if title.lower().startswith(typed)]:
            return [(title, len(typed)) for title in found]
    return []


def replace_invalid_utf8(text: str) -> str:
    """U+FFFD for the surrogates by which Python represents typed bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class WordWrap:
    """Breaks the lines of a streamed text between words, where the terminal would break them within one."""

    def __init__(self, width: int):
        self.width, self.column = width, 0
        self.spaces, self.word = "", ""

    def feed(self, text: str) -> str:
        """The words that are complete, with line breaks."""
        *parts, self.word = BREAKS.split(self.word + text)
        shown = [self._take(part) for part in parts]
        if self._cells(self.word) != len(self.word):  # a script without spaces between words
            shown.append(self._take(self.word))
            self.word = ""
        return "".join(shown)

    def rest(self) -> str:
        last, self.word = self._take(self.word), ""
        return last + self.spaces

    def _take(self, part: str) -> str:
        if part == "\n":
            self.column, self.spaces = 0, ""
            return "\n"
        if not part.strip(" "):
            self.spaces += part
            return ""
        size = len(self.spaces) + self._cells(part)
        if self.column and self.column + size > self.width:
            self.column, self.spaces = self._cells(part) % self.width, ""
            return "\n" + part
        shown, self.spaces = self.spaces + part, ""
        self.column = (self.column + size) % self.width
        return shown

    @staticmethod
    def _cells(text: str) -> int:
        from prompt_toolkit.utils import get_cwidth

        return get_cwidth(text)


@contextlib.contextmanager
def typed_ahead() -> Iterator[None]:
    """Switch the terminal's echo off during a reply; the next prompt receives what was typed. Ctrl-C still interrupts."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = list(before)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


@contextlib.contextmanager
def reply_screen(on_terminal: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows the pieces of a reply: as they are, or on a terminal with its words wrapped, after a spinner
    that runs until the first one."""
    if not on_terminal:
        yield lambda text: print(text, end="", flush=True)
        return
    from rich.console import Console

    wrap = WordWrap(max(MIN_COLUMNS, os.get_terminal_size(sys.stdout.fileno()).columns))

    def show(text: str) -> None:
        spinner.stop()
        print(wrap.feed(text), end="", flush=True)

    with typed_ahead(), Console(stderr=True).status("") as spinner:
        try:
            yield show
        finally:
            spinner.stop()
            print(wrap.rest(), end="", flush=True)
