"""TODO utils.errors."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: shown as one line, exit code 2."""


def run(main: Callable[[], None]) -> None:
    """Call an entry script's main: a UserError becomes one line on stderr and exit code 2,
    Ctrl-C exit code 130. Everything else is a bug and keeps its traceback. Of several ranks the
    first one speaks for all."""
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def first_line(error: Exception) -> str:
    """What a library's error says first; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def name_disk_errors(path: Path) -> Iterator[None]:
    """A full disk or a forbidden folder is the user's to mend: name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{path}: no space left on the disk; what was there before is kept") from error
        ours = error.filename is None or Path(error.filename).parent in path.parents
        if ours and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{path}: not allowed to write there") from error
        raise
