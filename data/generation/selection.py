"""Passages for training: which ones a quality threshold drops, and how much of the documents they tell."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.generation import filters
from data.generation.coverage import Statements
from data.generation.passages import read_passages
from data.generation.sections import document_uid
from tasks.documents import Document
from utils.progress import progress_bar


def reasons_to_drop(
    files: list[Path], locations: np.ndarray, documents: list[Document], min_score: float | str
) -> list[str]:
    """For each passage the reason to drop it, empty for one to keep."""
    articles = {document.uid: document.text for document in documents}
    seen: set[bytes] = set()
    current, source, reasons = None, set(), []
    for index, text in passages_in_order(files, locations, "quality"):
        if index != current:
            article = filters.words_of(articles.get(document_uid(files[index].stem), ""))
            current, source = index, set(filters.ngrams(article, filters.COPIED_N))
        words = filters.words_of(text)
        digest = filters.text_digest(words)
        reason = "repeated" if digest in seen else filters.fault(words, text) if min_score == "auto" else ""
        if not reason and min_score != "auto" and filters.passage_score(words, text, source) < min_score:
            reason = "below the score"
        reasons.append(reason)
        seen.add(digest)
    return reasons


def measure_coverage(documents: list[Document], files: list[Path], locations: np.ndarray) -> tuple[float, int]:
    """The fraction of all statements of the documents that a passage tells, and the bytes of the passages."""
    known = {document.uid: Statements(document.title, document.text) for document in documents}
    told = {uid: np.zeros(len(statements.texts), bool) for uid, statements in known.items()}
    size = 0
    for index, text in passages_in_order(files, locations, "coverage"):
        size += len(text.encode())
        if (uid := document_uid(files[index].stem)) in known:
            told[uid] |= known[uid].told_by(text)
    every = np.concatenate([*told.values(), np.zeros(0, bool)])
    return float(every.mean()) if len(every) else 1.0, size


def passages_in_order(files: list[Path], locations: np.ndarray, desc: str) -> Iterator[tuple[int, str]]:
    """(index of its file, text) of each passage, with a progress bar."""
    texts = progress_bar(iterable=read_passages(files, locations), total=len(locations), desc=desc, unit="passage")
    return zip(locations[:, 0], texts, strict=True)
