"""Journals of passage records, and the training corpus in them."""

import fcntl
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from data.generation import methods
from data.generation.sections import document_uid
from inference.client import BYTES_PER_TOKEN
from inference.completions import PROMPT_CUT, common_reason, strip_reasoning
from tasks.documents import Document
from utils.errors import UserError, name_disk_errors
from utils.io import Journal, append_record, iterate_jsonl, read_journal, sha256_text
from utils.json_text import parse_json
from utils.sentences import complete_part
from utils.words import words_of

FINISHED = "stop"  # finish_reason of a reply that the model ended by itself
FILTERED = "content_filter"  # finish_reason of a reply blocked by the server's content filter
FAILED = "error"  # finish_reason of a record without a usable reply
BLANK = "empty"  # finish_reason of a reply without text: a failure that is counted by itself
CUT = "length"  # finish_reason of a reply that reached --max_tokens
SOURCE_DIGITS = 16  # of the hash of the document that a record is about
MAX_OPEN = 100  # journals; a system may allow 256 open files
# Of the values of a record.
TYPES = dict.fromkeys(("id", "kind", "text", "summary"), str) | dict.fromkeys(("tries", "max_tokens"), int)
TYPES |= {"entities": list, "usage": dict}
PASSAGE_KINDS = {kind for method in methods.METHODS.values() for kind in method.group_sizes} | {methods.FACTS}
MIN_TRIMMED_WORDS = 100  # a cut reply with fewer words in its complete sentences is left out
MAY_MENTION = "</think>"  # the prompt of a record is not at hand: only whole leading blocks are reasoning


class PassageStore:
    """The journals of one folder: record ids, listed items and token counts in memory, texts on disk.

    Only one process may write to a journal: `open` locks it until the process ends. With `read_only` no file is changed,
    not even a torn last line. Failed calls are dropped on opening and requested again. With `retry_failed`
    truncated and filtered replies and those to prompts that the server cut, which were paid for, are requested again
    too; they stay until another reply to the same request is on disk (drop_replaced, is_better).
    """

    def __init__(self, folder: Path, retry_failed: bool = False, read_only: bool = False):
        self.folder, self.retry_failed, self.read_only = folder, retry_failed, read_only
        self.done: dict[str, set[str]] = {}  # record ids by uid
        self.listed_items: dict[str, list[str]] = {}  # entities or strategies by uid
        self.finish_reasons: Counter[str] = Counter()
        self.usage: dict[str, Counter[str]] = defaultdict(Counter)  # token counts and records by kind
        self.unfinished: dict[str, str] = {}  # finish_reason of replies that may be asked for again, by record id
        self.list_prompt_tokens: dict[str, int] = {}  # prompt tokens of the list request by uid
        self.list_tries: dict[str, int] = {}  # tries of a list request that gave no list, by uid
        self.cut_lists: dict[str, int] = {}  # --max_tokens at which a list was cut, by uid
        self._sources: dict[str, str | None] = {}  # hash of the document by uid, None if it is not known
        self._tokens: dict[str, float] = {}  # tokens of passages that are trained on, by record id
        self._locks: IO[bytes] | None = None
        self._replaced: set[str] = set()  # uids of documents with two replies to one request

    def open(self, uid: str, list_id: str | None, source: str | None = None) -> None:
        """Read a document's journal and drop the records that are to be requested again.

        `list_id` is the record id of the list request, None for a method without one; `source` the hash of the document.
        Raises UserError for a journal that another process writes to.
        """
        if not self.read_only:
            self._lock(uid)
        self.done[uid], self._sources[uid], path = set(), source, self.path(uid)
        if not path.exists():
            return
        is_best = best_only(path)

        def keep(written: dict) -> bool:
            record = typed(written)
            kept = finish_reason(record) not in (FAILED, BLANK) and is_best(written)
            if kept:
                self._count(uid, record, list_id)
                if self.retry_failed and (id := record_id(record)) in self.unfinished:
                    self.done[uid].discard(id)
                    self._tokens.pop(id, None)
            elif record.get("id") == list_id:
                self.list_tries[uid] = record.get("tries", 0)
            return kept

        if self.read_only:
            for record in read_journal(path):
                keep(record)
        else:
            Journal(path, keep).close()

    def open_all(self, documents: list[Document], settings: methods.GenerationSettings) -> None:
        for document in documents:
            list_id = methods.list_request(document, settings).id if settings.list_kind else None
            self.open(document.uid, list_id, document.source_sha256)

    def open_remaining(self) -> None:
        """Read the journals of all other documents in the folder, without changing them."""
        self.read_only, self.retry_failed = True, False
        for path in self.folder.glob("*.jsonl"):
            if path.stem not in self.done:
                self.open(path.stem, None)

    def append(self, uid: str, record: dict, list_id: str | None = None) -> None:
        append_record(self.path(uid), record)
        self._count(uid, record, list_id)

    def drop_replaced(self) -> None:
        """Drop from the journals the replies in whose place others came."""
        for uid in sorted(self._replaced):
            Journal(self.path(uid), best_only(self.path(uid))).close()
        self._replaced.clear()

    def passage_tokens(self) -> int:
        """Tokens of all passages that are trained on, lists and summaries not included; estimated from the texts of a
        server that counts none."""
        return round(sum(self._tokens.values()))

    def _lock(self, uid: str) -> None:
        """Lock a document for this process: one byte of one file, as a system may allow only 256 open files."""
        path = self.folder / ".documents.lock"
        with name_disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._locks = self._locks or open(path, "ab")
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sha256_text(uid, 15), 16))
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{self.path(uid)}: another process is writing to it; wait until it ends") from error

    def path(self, uid: str) -> Path:
        return self.folder / f"{uid}.jsonl"

    def _count(self, uid: str, record: dict, list_id: str | None) -> None:
        reason, id = finish_reason(record), record_id(record)
        self.finish_reasons[reason] += 1
        if reason in (FAILED, BLANK):
            return
        if replaced := self.unfinished.pop(id, None):
            self.finish_reasons -= Counter([replaced])  # which drops a count of 0
            self._replaced.add(uid)
        # Not a list: with other entities, the passages about the present ones would be paid for in vain.
        if reason != FINISHED and "summary" not in record:
            self.unfinished[id] = reason
        self.done[uid].add(id)
        if record.get("usage") and reason != PROMPT_CUT:
            self.usage[record.get("kind", "")].update(record["usage"], records=1)
        if record.get("kind") in PASSAGE_KINDS and not is_stale(record, self._sources.get(uid)):
            self._tokens[id] = tokens_of(record)
        if record.get("id") == list_id and reason == CUT:
            self.cut_lists[uid] = record.get("max_tokens", 0)
        if record.get("id") == list_id and record.get("entities"):
            self.cut_lists.pop(uid, None)
            self.listed_items[uid] = record["entities"]
            self.list_prompt_tokens[uid] = (record.get("usage") or {}).get("prompt_tokens", 0)


def read_records(path: Path) -> Iterator[dict]:
    """Records of a journal, of several replies to one request the best; each has an id, a kind, entities and a text,
    which are empty where the record has none."""
    for record in filter(best_only(path), read_journal(path)):
        yield {"kind": "", "text": "", "entities": []} | typed(record) | {"id": str(record.get("id", ""))}


def typed(record: dict) -> dict:
    """A record, also one that another program wrote or a person edited, without values of another type than ours."""
    known = {key: value for key, value in record.items() if isinstance(value, TYPES.get(key, object))}
    if "entities" in known:
        known["entities"] = [name for name in known["entities"] if isinstance(name, str)]
    if "usage" in known:
        known["usage"] = {name: count for name, count in known["usage"].items() if isinstance(count, int)}
    return known


def record_id(record: dict) -> str:
    """The id of a record; empty where it is no text, as in a file of another program."""
    id = record.get("id")
    return id if isinstance(id, str) else ""


def is_stale(record: dict, source: str | None) -> bool:
    """True for a record about an earlier version of the document with the hash `source`; records of earlier versions of
    this program name none."""
    return source is not None and record.get("source") not in (None, "", source[:SOURCE_DIGITS])


def tokens_of(record: dict) -> float:
    """Tokens of the part of a reply that is trained on, by the server's count, else estimated."""
    text = training_text(record)
    if counted := record.get("usage", {}).get("completion_tokens"):
        return counted * len(text) / max(1, len(record.get("text", "")))
    return len(text.encode()) / BYTES_PER_TOKEN


def best_only(path: Path) -> Callable[[dict], bool]:
    """A predicate for the records of a journal in their order: of several replies to one request the best, once."""
    counts = Counter(re.findall(rb'"id"\s*:\s*"([^"]*)"', path.read_bytes()))
    several = {id.decode(errors="replace") for id, count in counts.items() if count > 1}
    best: dict[str, dict | None] = {}
    for record in read_journal(path) if several else ():
        id = record_id(record)
        if id and id in several and (id not in best or is_better(record, best[id])):
            best[id] = record

    def is_best(record: dict) -> bool:
        id = record_id(record)
        if id not in best:
            return True
        if record != best[id]:
            return False
        best[id] = None
        return True

    return is_best


def is_better(record: dict, other: dict) -> bool:
    """True if a record is to be kept in place of another one with the same id: one that the model ended by itself, and
    of two cut ones the longer."""

    def rank(one: dict) -> tuple[bool, bool, int]:
        reason = finish_reason(one)
        return reason == FINISHED, reason == CUT, len(typed(one).get("text", ""))

    return rank(record) > rank(other)


def locate_passages(
    folders: list[Path],
    made_by: str,
    drop_cut: bool = False,
    counts: Counter | None = None,
    sources: dict[str, str] | None = None,
) -> tuple[list[Path], np.ndarray]:
    """The journals of some folders, and the location of every passage in them.

    The training corpus is every `training_text`, one document each. Returns the files and an (n, 2) int64 array of file
    index and byte offset (16 bytes per passage), ordered by file, then record id, which does not depend on the order in
    which calls were answered. Cut replies are added to `counts` as `trimmed` or `cut` (left out). With `sources`, the
    source_sha256 of every document by uid, passages about a document that was edited or deleted since are left out, and
    counted as `stale`.
    Raises UserError for a folder without journals, and if there is no passage.
    """
    files: list[Path] = []
    locations: list[np.ndarray] = []
    seen: set[tuple[str, str, int]] = set()  # journal, id and hash of the text: a folder may be given with its copy
    for folder in folders:
        journals = sorted(folder.glob("*.jsonl"))
        if not journals:
            raise UserError(f"{folder}: contains no passages; {made_by}")
        for path in journals:
            source = None if sources is None else sources.get(document_uid(path.stem), "")
            offsets = _passage_offsets(path, drop_cut, counts if counts is not None else Counter(), source, seen)
            locations.append(np.array([(len(files), offset) for offset in offsets]).reshape(-1, 2))
            files.append(path)
    if not sum(map(len, locations)):
        raise UserError(f"{', '.join(map(str, folders))}: contains no complete passage; {made_by}")
    return files, np.concatenate(locations).astype(np.int64)


def read_passages(files: list[Path], locations: np.ndarray) -> Iterator[str]:
    """The passages at `locations`, in that order, one in memory at a time."""
    opened: OrderedDict[int, IO[bytes]] = OrderedDict()
    try:
        for index, offset in locations:
            if index not in opened:
                opened[index] = open(files[index], "rb")
                if len(opened) > MAX_OPEN:
                    opened.popitem(last=False)[1].close()
            opened[index].seek(offset)
            yield training_text(parse_json(opened[index].readline()))
    finally:
        for file in opened.values():
            file.close()


def training_text(record: dict, drop_cut: bool = False) -> str:
    """The text of a record in the training corpus, empty for a record that is not in it: every summary and text that
    the model ended by itself, and, without `drop_cut`, cut texts up to their last complete sentence."""
    reason = finish_reason(record)
    # Earlier versions kept the reasoning of a reply, and the server's own words for its end.
    text = record.get("text")
    text = strip_reasoning(text if isinstance(text, str) else "", prompt=MAY_MENTION)
    if reason == CUT and not drop_cut and not record.get("summary"):
        trimmed = complete_part(text)
        return trimmed if len(words_of(trimmed)) >= MIN_TRIMMED_WORDS else ""
    return (typed(record).get("summary") or text) if reason == FINISHED else ""


def finish_reason(record: dict) -> str:
    """The finish_reason of a record in OpenAI's words, also of those written by earlier versions: these kept unknown
    words of a server, and `error` and `empty` of one beside the text of a reply."""
    reason = common_reason(record.get("finish_reason"))
    has_text = isinstance(record.get("text"), str) and bool(record["text"].strip())
    if has_text and reason and reason not in (FINISHED, FILTERED, PROMPT_CUT):
        return CUT
    return reason


def _passage_offsets(path: Path, drop_cut: bool, counts: Counter, source: str | None, seen: set) -> list[int]:
    """Byte offsets of a journal's passages, ordered by record id, without those in `seen`, to which it adds its own."""
    passages, is_best = [], best_only(path)
    for offset, record in iterate_jsonl(path):
        text = training_text(record, drop_cut)
        if not is_best(record):
            continue
        if text and is_stale(record, source):
            counts["stale"] += 1
            continue
        copy = (path.name, record_id(record), hash(text))
        if text and copy[1] and copy in seen:
            counts["copies"] += 1
            continue
        if text:
            seen.add(copy)
            passages.append((str(record.get("id")), offset))
        if finish_reason(record) == CUT:
            counts["trimmed" if text else "cut"] += 1
    return [offset for _, offset in sorted(passages)]
