"""What came back: journals of passages, and the corpus that is in them."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.generation import methods
from tasks.documents import Document
from utils.errors import UserError
from utils.io import Journal, append_record, iterate_jsonl, read_journal

FINISHED = "stop"  # the finish_reason of a reply that ended by itself
FAILED = "error"  # of a record that holds no reply


class PassageStore:
    """The journals of one folder: what of them is done, and what it took. The texts stay on disk.

    One process writes to a folder; its ledger, which is locked, sees to that. With `read_only`
    nothing is changed, not even a torn line.
    """

    def __init__(self, folder: Path, retry_failed: bool = False, read_only: bool = False):
        self.folder, self.retry_failed, self.read_only = folder, retry_failed, read_only
        self.done: dict[str, set[str]] = {}  # record ids by uid
        self.listed: dict[str, list[str]] = {}  # entities, or what a method lists, by uid
        self.reasons: Counter[str] = Counter()  # finish_reason of the records
        self.usage: dict[str, Counter[str]] = defaultdict(Counter)  # by kind: tokens, records
        self.list_prompt_tokens: dict[str, int] = {}  # by uid: what the listing call's prompt had

    def open(self, uid: str, list_id: str | None) -> None:
        """Read a document's journal. What failed is dropped from it, to be asked for again; with
        `retry_failed` also what was cut or filtered, which was paid for."""
        self.done[uid], path = set(), self.path(uid)
        if not path.exists():
            return
        if self.read_only:
            for record in filter(self._stays, read_journal(path)):
                self._note(uid, record, list_id)
            return

        def keep(record: dict) -> bool:
            if self._stays(record):
                self._note(uid, record, list_id)
                return True
            return False

        Journal(path, keep).close()

    def append(self, uid: str, record: dict, list_id: str | None = None) -> None:
        append_record(self.path(uid), record)
        self._note(uid, record, list_id)

    def path(self, uid: str) -> Path:
        return self.folder / f"{uid}.jsonl"

    def _stays(self, record: dict) -> bool:
        reason = record.get("finish_reason")
        kept = reason == FINISHED or not self.retry_failed or bool(record.get("summary"))
        return reason != FAILED and kept

    def _note(self, uid: str, record: dict, list_id: str | None) -> None:
        self.reasons[record.get("finish_reason", "")] += 1
        if record.get("finish_reason") == FAILED:
            return
        self.done[uid].add(record.get("id", ""))
        if record.get("usage"):
            self.usage[record.get("kind", "")].update(record["usage"], records=1)
        if record.get("id") == list_id and record.get("entities"):
            self.listed[uid] = record["entities"]
            self.list_prompt_tokens[uid] = (record.get("usage") or {}).get("prompt_tokens", 0)


def locate_passages(folders: list[Path], made_by: str) -> tuple[list[Path], np.ndarray]:
    """Where the passages of some folders of journals lie: the corpus is every summary and every
    text that ended well, one document each.

    Returns the files and an (n, 2) int64 array of file number and byte offset, 16 bytes a passage,
    in order of file, then of record id: the order in which concurrent calls happened to end leaves
    no trace. Raises UserError where a folder holds no journal.
    """
    files: list[Path] = []
    places: list[np.ndarray] = []
    for folder in folders:
        found = sorted(folder.glob("*.jsonl"))
        if not found:
            raise UserError(f"{folder}: holds no passages; {made_by}")
        for path in found:
            offsets = _passages_of(path)
            places.append(np.array([(len(files), offset) for offset in offsets]).reshape(-1, 2))
            files.append(path)
    if not sum(map(len, places)):
        raise UserError(f"{', '.join(map(str, folders))}: no passage in it ended well; {made_by}")
    return files, np.concatenate(places).astype(np.int64)


def read_passages(files: list[Path], places: np.ndarray) -> Iterator[str]:
    """The passages at `places`, in that order, one in memory at a time."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb")) for path in files]
        for number, offset in places:
            opened[number].seek(offset)
            yield training_text(json.loads(opened[number].readline()))


def _passages_of(path: Path) -> list[int]:
    """Byte offsets of a journal's passages, by record id."""
    return [
        offset
        for _, offset in sorted(
            (str(record.get("id")), offset) for offset, record in iterate_jsonl(path) if training_text(record)
        )
    ]


def training_text(record: dict) -> str:
    if record.get("finish_reason") != FINISHED:
        return ""
    return record.get("summary") or record.get("text") or ""


def open_all(store: PassageStore, documents: list[Document], recipe: methods.GenerationSettings) -> None:
    for document in documents:
        listing = recipe.list_kind and methods.list_request(document, recipe).id
        store.open(document.uid, listing)
