"""A journal that several processes write to at once.

Knows JSON lines and locks, nothing of their meaning.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import name_disk_errors
from utils.io import Journal, parse_object, write_record

WRITER = "by"  # key of a record: the process that appended it


class SharedJournal:
    """An append-only JSONL file of several processes, each of which sees the records of all.

    `apply` is called for every record in the file, and for those that other processes append, before this one appends
    its own. `snapshot` returns records that mean the same as all that were applied; a process that opens the file while
    no other has it open replaces the content by them. The file survives kill -9: a torn line of a killed process is
    removed before the next one is appended.
    """

    def __init__(self, path: Path, apply: Callable[[dict], object], snapshot: Callable[[], list[dict]]):
        self.path, self._apply, self._writer = path, apply, secrets.token_hex(4)
        self._end = self._lines = 0  # of the records that were read, in bytes and lines
        with name_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._users = open(path.with_name(f".{path.name}.lock"), "ab")
            if self._is_alone():
                Journal(path, lambda record: bool(apply(record)) and False, snapshot).close()
            fcntl.flock(self._users, fcntl.LOCK_SH)  # until the process ends; waits for a snapshot of another one
            self._file = open(path, "a+b", buffering=0)
        with self.locked():
            pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Apply the records of the others, and keep them from appending further ones meanwhile."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._read()
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def append(self, record: dict) -> None:
        """Append a record, within `locked()`."""
        with name_disk_errors(self.path):
            write_record(self._file, record | {WRITER: self._writer})
        self._end, self._lines = os.fstat(self._file.fileno()).st_size, self._lines + 1

    def close(self) -> None:
        self._file.close()
        self._users.close()

    def _is_alone(self) -> bool:
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _read(self) -> None:
        content = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size - self._end, self._end)
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.ftruncate(self._file.fileno(), self._end + complete)
        for line in content[:complete].splitlines():
            self._lines += 1
            record = parse_object(line, self.path, self._lines)
            if record.pop(WRITER, None) != self._writer:
                self._apply(record)
        self._end += complete
