"""Files: atomic writes, JSON and JSONL, locks, append-only journals, hashes."""

import fcntl
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError, name_disk_errors
from utils.json_text import parse_json

BOM = b"\xef\xbb\xbf"  # which editors on Windows write at the beginning of a file
PATIENCE_S = 2.0  # a file of the other process is usually small
SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # 4 MiB of a file of weights


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: readers see the old content or the new one.

    Yields a binary file with a temporary name in the same folder. At the end it is synced and renamed to `path`; on
    an error it is removed and `path` is left unchanged. One left by a killed process is written over.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with name_disk_errors(path), ExitStack() as on_error:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = on_error.enter_context(_open_locked(temporary))
        on_error.callback(temporary.unlink, missing_ok=True)
        file.truncate(0)
        yield file
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
        on_error.pop_all()
        file.close()


def _open_locked(path: Path) -> IO[bytes]:
    """Open a temporary file for writing, with its content, once no other process writes to it."""
    while True:
        file = open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))
        _lock_patiently(file, path)
        with suppress(FileNotFoundError):  # renamed by the process that held the lock
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _lock_patiently(file: IO[bytes], path: Path) -> None:
    """Wait for a lock, and say so where it takes longer than PATIENCE_S."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    print(f"waiting for another process that is writing {path}", file=sys.stderr)
    fcntl.flock(file, fcntl.LOCK_EX)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file. `made_by` is the step to name in the error where the file is missing."""
    try:
        return parse_json(read_text(path, made_by))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {made_by}") from error


def read_text(path: Path, made_by: str) -> str:
    """Read a UTF-8 file. `made_by` is the step to name in the error where the file is missing."""
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {made_by}") from error
    except OSError as error:  # a loop of links, a folder without read permission
        raise UserError(f"{path}: {error.strerror}; {made_by}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error


def read_jsonl(path: Path, made_by: str, errors: list[str] | None = None) -> list[dict]:
    """All objects of a JSONL file. Only newlines separate lines: `str.splitlines` would also split at U+2028. With
    `errors`, sentences about malformed lines are added there instead of raising UserError."""
    objects = []
    for number, line in enumerate(read_text(path, made_by).split("\n"), 1):
        try:
            if line.strip():
                objects.append(parse_object(line, path, number))
        except UserError as error:
            if errors is None:
                raise
            errors.append(str(error))
    return objects


def iterate_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield byte offset and object of every line of a JSONL file, one line in memory at a time."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield offset, parse_object(line, path, number)
            offset += len(line)


def usable_texts(values: Iterable[object], name: str, counts: dict[str, list[int]]) -> Iterator[str]:
    """The texts among the values of a column; nulls, lists and blank texts are left out. `counts[name]` is the number
    of these, and of all values. Raises UserError at the end if there was no text."""
    counts[name] = count = [0, 0]
    for value in values:
        count[1] += 1
        if isinstance(value, str) and value.strip():
            yield value
        else:
            count[0] += 1
    if count[1] and count[0] == count[1]:
        raise UserError(f"{name}: none of its {count[1]:,} rows has a text; name another file or column")


def report_left_out(counts: dict[str, list[int]]) -> None:
    """Print a line for every source of which usable_texts left out rows."""
    for name, (left_out, total) in counts.items():
        if left_out:
            line = f"{name}: {left_out:,} of the {total:,} rows that were read have no text and were left out"
            print(line, file=sys.stderr)


def json_digest(value: object, length: int = 12) -> str:
    """The first hex digits of the sha256 of a value as JSON."""
    return sha256_text(json.dumps(value, ensure_ascii=False), length)


def sha256_text(text: str, length: int = 64) -> str:
    """The first hex digits of a text's sha256; 64 are all of them."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """A hash of a large file: of its size and SAMPLES parts spread over it. Weights that were trained again differ in
    every part; a file that was only touched or copied does not."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def parse_object(line: str | bytes, path: Path, number: int) -> dict:
    try:
        value = parse_json(line.removeprefix(BOM) if isinstance(line, bytes) else line.removeprefix("\ufeff"))
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise UserError(f"{path}, line {number}: not valid JSON ({error}); fix or delete that line") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}, line {number}: not a JSON object; fix or delete that line")
    return value


def lock_folder(folder: Path) -> IO[bytes]:
    """Lock a folder for this process, until the returned file is closed or the process ends. The file lies in the
    system's folder for temporary files. Raises UserError where another process of this machine holds the lock."""
    name = f"scp-{os.getuid()}-{sha256_text(str(folder.absolute()), 16)}.lock"
    path = Path(tempfile.gettempdir()) / name
    with name_disk_errors(path):
        file = open(path, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{folder}: another process is writing to it; wait until it ends") from error
    return file


@contextmanager
def blocking_lock(path: Path, holder: str) -> Iterator[None]:
    """Hold a lock file. While another process holds it, print that `holder` is waited for, and wait."""
    with name_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {holder} to finish ({path})", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Journal:
    """An append-only JSONL file that survives kill -9: every appended record is present at the next start.

    Opening locks the file against other processes, which would pay for the same calls again, reads the records into
    `records`, and compacts the file: a last line cut by a kill, and records for which `keep` returns False, are
    dropped. `summarize` returns records that replace the dropped ones in the same atomic write. Appending writes one
    line to the operating system and keeps no copy.

    Raises UserError, with file and line, for a line in the middle that is not a JSON object, and where another
    process holds the lock.
    """

    def __init__(
        self, path: Path, keep: Callable[[dict], bool] = lambda record: True, summarize: Callable[[], list[dict]] = list
    ):
        self.path = path
        self._open()
        self._was_empty = not os.fstat(self._file.fileno()).st_size
        self.records: list[dict] = []
        if not self._read(keep):
            with atomic_write(path) as file:
                for record in [*self.records, *summarize()]:
                    write_record(file, record)
            self.close()
            self._open()

    def append(self, record: dict) -> None:
        with name_disk_errors(self.path):
            write_record(self._file, record)

    def close(self) -> None:
        if self._was_empty and not self._file.closed and not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)  # nothing was appended
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> None:
        with name_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{self.path}: another process is writing to it; wait until it ends") from error
        # Just compacted, or removed as empty, by another process?
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            self._file.close()
            self._open()

    def _read(self, keep: Callable[[dict], bool]) -> bool:
        """Read the records to keep; returns whether the file holds nothing else."""
        count = 0
        for record in read_journal(self.path):
            count += 1
            if keep(record):
                self.records.append(record)
        with open(self.path, "rb") as file:
            lines = sum(1 for _ in file)
        return len(self.records) == count == lines


def read_journal(path: Path) -> Iterator[dict]:
    """Yield the records of a journal, one in memory at a time, without a last line cut by a kill."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield parse_object(line, path, number)


def append_record(path: Path, record: dict) -> None:
    """Append to a journal that is not open; the caller makes sure that no other process writes to it."""
    with name_disk_errors(path), open(path, "ab", buffering=0) as file:
        write_record(file, record)


def write_record(file: IO[bytes], record: dict) -> None:
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    while line:  # unbuffered: bytes that write() accepted are with the operating system
        line = line[file.write(line) :]
