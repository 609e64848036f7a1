"""Journals of passage records, and the training corpus in them."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.generation import methods
from inference.completions import PROMPT_CUT, common_reason, strip_reasoning
from tasks.documents import Document
from utils.errors import UserError
from utils.io import Journal, append_record, iterate_jsonl, read_journal
from utils.sentences import complete_part
from utils.words import words_of

FINISHED = "stop"  # finish_reason of a reply that the model ended by itself
FILTERED = "content_filter"  # finish_reason of a reply blocked by the server's content filter
FAILED = "error"  # finish_reason of a record without a usable reply
BLANK = "empty"  # finish_reason of a reply without text: a failure that is counted by itself
CUT = "length"  # finish_reason of a reply that reached --max_tokens
MIN_TRIMMED_WORDS = 100  # a cut reply with fewer words in its complete sentences is left out
MAY_MENTION = "</think>"  # the prompt of a record is not at hand: only whole leading blocks are reasoning


class PassageStore:
    """The journals of one folder: record ids, listed items and token counts in memory, texts on disk.

    Only one process may write to a folder; the lock on its ledger enforces that. With `read_only` no file
    is changed, not even a torn last line. With `retry_failed` truncated and filtered replies and those
    to prompts that the server cut, which were paid for, are dropped on opening and requested again; failed calls
    always are.
    """

    def __init__(self, folder: Path, retry_failed: bool = False, read_only: bool = False):
        self.folder, self.retry_failed, self.read_only = folder, retry_failed, read_only
        self.done: dict[str, set[str]] = {}  # record ids by uid
        self.listed_items: dict[str, list[str]] = {}  # entities or strategies by uid
        self.finish_reasons: Counter[str] = Counter()
        self.usage: dict[str, Counter[str]] = defaultdict(Counter)  # token counts and records by kind
        self.list_prompt_tokens: dict[str, int] = {}  # prompt tokens of the list request by uid

    def open(self, uid: str, list_id: str | None) -> None:
        """Read a document's journal and drop the records that are to be requested again.

        `list_id` is the record id of the list request, None for a method without one.
        """
        self.done[uid], path = set(), self.path(uid)
        if not path.exists():
            return

        def keep(record: dict) -> bool:
            kept = self._is_kept(record)
            if kept:
                self._count(uid, record, list_id)
            return kept

        if self.read_only:
            for record in read_journal(path):
                keep(record)
        else:
            Journal(path, keep).close()

    def open_all(self, documents: list[Document], settings: methods.GenerationSettings) -> None:
        for document in documents:
            self.open(document.uid, settings.list_kind and methods.list_request(document, settings).id)

    def open_remaining(self) -> None:
        """Read the journals of all other documents in the folder, without changing them."""
        self.read_only, self.retry_failed = True, False
        for path in self.folder.glob("*.jsonl"):
            if path.stem not in self.done:
                self.open(path.stem, None)

    def append(self, uid: str, record: dict, list_id: str | None = None) -> None:
        append_record(self.path(uid), record)
        self._count(uid, record, list_id)

    def passage_tokens(self) -> int:
        """Reply tokens of all passages, lists and summaries not included."""
        kinds = {kind for method in methods.METHODS.values() for kind in method.group_sizes} | {methods.FACTS}
        return sum(counts["completion_tokens"] for kind, counts in self.usage.items() if kind in kinds)

    def path(self, uid: str) -> Path:
        return self.folder / f"{uid}.jsonl"

    def _is_kept(self, record: dict) -> bool:
        reason = finish_reason(record)
        # A list is kept: with other entities, the passages about the present ones would be paid for in vain.
        kept = reason == FINISHED or not self.retry_failed or "summary" in record
        return reason not in (FAILED, BLANK) and kept

    def _count(self, uid: str, record: dict, list_id: str | None) -> None:
        reason = finish_reason(record)
        self.finish_reasons[reason] += 1
        if reason in (FAILED, BLANK):
            return
        self.done[uid].add(record.get("id", ""))
        if record.get("usage") and reason != PROMPT_CUT:
            self.usage[record.get("kind", "")].update(record["usage"], records=1)
        if record.get("id") == list_id and record.get("entities"):
            self.listed_items[uid] = record["entities"]
            self.list_prompt_tokens[uid] = (record.get("usage") or {}).get("prompt_tokens", 0)


def locate_passages(
    folders: list[Path], made_by: str, drop_cut: bool = False, counts: Counter | None = None
) -> tuple[list[Path], np.ndarray]:
    """The journals of some folders, and the location of every passage in them.

    The training corpus is every `training_text`, one document each. Returns the files and an (n, 2) int64 array of file index and byte offset (16 bytes per passage),
    ordered by file, then record id, which does not depend on the order in which calls were answered. Cut replies are
    added to `counts` as `trimmed` or `cut` (left out).
    Raises UserError for a folder without journals, and if there is no passage.
    """
    files: list[Path] = []
    locations: list[np.ndarray] = []
    for folder in folders:
        journals = sorted(folder.glob("*.jsonl"))
        if not journals:
            raise UserError(f"{folder}: contains no passages; {made_by}")
        for path in journals:
            offsets = _passage_offsets(path, drop_cut, counts if counts is not None else Counter())
            locations.append(np.array([(len(files), offset) for offset in offsets]).reshape(-1, 2))
            files.append(path)
    if not sum(map(len, locations)):
        raise UserError(f"{', '.join(map(str, folders))}: contains no complete passage; {made_by}")
    return files, np.concatenate(locations).astype(np.int64)


def read_passages(files: list[Path], locations: np.ndarray) -> Iterator[str]:
    """The passages at `locations`, in that order, one in memory at a time."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb")) for path in files]
        for index, offset in locations:
            opened[index].seek(offset)
            yield training_text(json.loads(opened[index].readline()))


def training_text(record: dict, drop_cut: bool = False) -> str:
    """The text of a record in the training corpus, empty for a record that is not in it: every summary and text that
    the model ended by itself, and, without `drop_cut`, cut texts up to their last complete sentence."""
    reason = finish_reason(record)
    # Earlier versions kept the reasoning of a reply, and the server's own words for its end.
    text = strip_reasoning(record.get("text") or "", prompt=MAY_MENTION)
    if reason == CUT and not drop_cut and not record.get("summary"):
        trimmed = complete_part(text)
        return trimmed if len(words_of(trimmed)) >= MIN_TRIMMED_WORDS else ""
    return (record.get("summary") or text) if reason == FINISHED else ""


def finish_reason(record: dict) -> str:
    """The finish_reason of a record in OpenAI's words, also of those written by earlier versions."""
    return common_reason(record.get("finish_reason"))


def _passage_offsets(path: Path, drop_cut: bool, counts: Counter) -> list[int]:
    """Byte offsets of a journal's passages, ordered by record id."""
    passages = []
    for offset, record in iterate_jsonl(path):
        text = training_text(record, drop_cut)
        if text:
            passages.append((str(record.get("id")), offset))
        if finish_reason(record) == CUT:
            counts["trimmed" if text else "cut"] += 1
    return [offset for _, offset in sorted(passages)]
