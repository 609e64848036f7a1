"""User errors: one line on stderr, exit code 2. Bugs keep their traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.device import is_main_process

# Options that libraries recommend, by which a file's code would run, and what to say in place of that.
CODE_OPTIONS = {
    "trust_remote_code": "it comes with code of its own, which is never run",
    "weights_only": "it holds more than tensors, which could run code",
}
MAX_SHOWN_NAME = 200  # characters of a path in an error
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
TORCH_WRITER = "inline_container.cc"  # in messages of torch.save that could not write
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM)
# A name that is too long, a file in the place of a folder or the other way round, a loop of links.
ODD_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)


RESUMES = "resumes from here"  # see run()


class UserError(Exception):
    """An error that the user can fix. The message names the file or flag, and the step that helps."""


class UserErrors(UserError):
    """Several of them, a line for each."""


def run(main: Callable[[], None], again: str = "starts over") -> None:
    """Call the main function of an entry script. `again` says what the same command does after Ctrl-C.

    A UserError is printed as one line `error: …` and exits with 2, as is a full disk or a missing permission that no
    step names; Ctrl-C exits with 130; any other exception is a bug and keeps its traceback. In a distributed run only
    rank 0 prints.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8, or a terminal that is not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with name_disk_errors():
            main()
    except UserError as error:
        lines = str(error).splitlines() if isinstance(error, UserErrors) else [str(error)]
        for line in lines if is_main_process() else ():
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as error:
        # On a terminal ^C, and often a progress bar, stand on the line.
        line = f"interrupted; the same command {str(error) or again}"
        print("\n" * sys.stderr.isatty() + line, file=sys.stderr)
        sys.exit(130)


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the exception's type where the message is empty. Advice to run a
    file's code is not passed on."""
    for option, reason in CODE_OPTIONS.items():
        if option in str(error):
            return reason
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def name_damage(path: Path, advice: str) -> Iterator[None]:
    """Turn what the content of a damaged file of ours leads to into a UserError that names `path` and the step that
    helps."""
    try:
        yield
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: damaged, or changed by hand ({reason}); {advice}") from error


class name_disk_errors:  # noqa: N801  a context manager
    """Turns a full disk or a missing write permission into a UserError that names `path`, or, without one, the file of
    the error. Of a class of its own are the errors of safetensors, tokenizers and torch's writer."""

    def __init__(self, path: Path | None = None):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UserError):
            return
        number = disk_errno(error)
        file = getattr(error, "filename", None)
        name = f"{self.path or file}: " if self.path or file else ""
        if number in DISK_FULL:
            raise UserError(f"{name}no space left on the disk; nothing is lost: free some, and repeat") from error
        places = (self.path, *self.path.parents) if self.path else ()
        ours = file is None or self.path is None or self.path in Path(file).parents or Path(file).parent in places
        if ours and number in NOT_WRITABLE:
            raise UserError(f"{name}no permission to {'write there' if self.path else 'read or write it'}") from error
        if self.path is None and file is not None and number in ODD_PATHS:
            raise UserError(f"{shorten(str(file))}: {os.strerror(number)}; use another name or folder") from error


def shorten(name: str) -> str:
    return name if len(name) <= MAX_SHOWN_NAME else f"{name[:MAX_SHOWN_NAME]}…"


def disk_errno(error: BaseException | None) -> int | None:
    """The system's number of an error that a file operation raised, also within a library; None for other errors."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError) and TORCH_WRITER in str(error):  # it hides the number
        return errno.ENOSPC
    stated = re.search(r"\(os error (\d+)\)", str(error))  # libraries written in Rust
    return int(stated[1]) if stated else None
