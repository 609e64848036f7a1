"""Requests for what the passages of a document tell least (--aim_tellings).

A plan is a pure function of a document's journal, so an interrupted run continues with what is missing. Pairs and
triples come first, those whose entities occur in the most statements that are told too seldom. A statement whose pairs
were answered without telling it is asked for by name, in a request of kind FACTS.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from data.generation import coverage
from data.generation.coverage import Statements
from data.generation.methods import FACTS, GenerationSettings, PassageRequest, passage_requests
from data.generation.passages import training_text
from tasks.documents import Document

SENTENCES_PER_REQUEST = 5
REQUESTS_PER_PLAN = 4  # about one document, until its coverage is measured again
MIN_TOLD = 0.5  # of the pairs and triples about a statement; below it, statements are asked for by name
SPARE_REQUESTS = 2  # by name, beyond the tellings aimed at; then a statement is given up


@dataclass
class Progress:
    """Tellings of and requests for each statement, from a document's journal; all arrays are (statements,)."""

    tellings: np.ndarray
    attempts: np.ndarray  # answered pairs and triples with an entity in it
    named: np.ndarray  # answered requests of kind FACTS for its sentence

    @classmethod
    def from_records(cls, statements: Statements, records: list[dict]) -> "Progress":
        texts = [text for record in records if (text := training_text(record))]
        progress = cls(statements.tellings(texts), *np.zeros((2, len(statements.texts)), int))
        for record in records:
            if record.get("kind") == FACTS:
                asked = [sentence in record["entities"] for sentence in statements.sentences]
                progress.named += np.array(asked, int)[statements.sentence_of]
            elif training_text(record) and not record.get("summary"):
                progress.attempts += mentions(statements, record.get("entities") or [])
        return progress


def mentions(statements: Statements, entities: list[str]) -> np.ndarray:
    """(statements,) bool: those that contain every content word of one of the entities."""
    names = [words for entity in entities if (words := coverage.stems(entity))]
    return np.array([any(words <= known for words in names) for known in statements.stems], bool)


def plan_requests(
    document: Document,
    statements: Statements,
    progress: Progress,
    listed_items: list[str],
    done: set[str],
    settings: GenerationSettings,
) -> list[PassageRequest]:
    """Up to REQUESTS_PER_PLAN requests; empty when every statement has its tellings or is given up. The first are pairs
    and triples: what those leave out is named next."""
    most_groups = REQUESTS_PER_PLAN // 2 if progress.tellings.any() else REQUESTS_PER_PLAN
    left = settings.aim_tellings + SPARE_REQUESTS - progress.named  # requests by name
    missing = np.clip(np.minimum(settings.aim_tellings - progress.tellings, left), 0, None)
    reachable = progress.tellings >= MIN_TOLD * progress.attempts
    aimed_at = np.where(reachable, missing, 0)
    requests = _plan_groups(document, statements, listed_items, done, settings, aimed_at, most_groups)
    planned = np.zeros(len(missing), bool)
    for request in requests:
        planned |= mentions(statements, list(request.entities))
    by_name = np.where(planned & reachable, 0, missing)
    return requests + _plan_facts(document, statements, done, settings, by_name)[: REQUESTS_PER_PLAN - len(requests)]


def _plan_groups(
    document: Document,
    statements: Statements,
    items: list[str],
    done: set[str],
    settings: GenerationSettings,
    missing: np.ndarray,
    most: int,
) -> list[PassageRequest]:
    """At most `most` pairs and triples, greedily by the number of missing tellings whose statements they mention."""
    of_item = {item: mentions(statements, [item]) for item in items}
    pool = [
        (request, np.any([of_item[item] for item in request.entities], axis=0))
        for kind in settings.kinds
        for request in passage_requests(document, kind, items, settings)
        if not request.is_answered(done)
    ]
    chosen, missing = [], missing.copy()
    while pool and len(chosen) < most:
        gains = [int((missing[mentioned] > 0).sum()) for _, mentioned in pool]
        best = int(np.argmax(gains))
        if not gains[best]:
            break
        request, mentioned = pool.pop(best)
        chosen.append(request)
        missing[mentioned] -= 1
    return chosen


def _plan_facts(
    document: Document, statements: Statements, done: set[str], settings: GenerationSettings, missing: np.ndarray
) -> list[PassageRequest]:
    """Requests that name sentences, those with the most missing tellings first, neighbours together."""
    needs: Counter[int] = Counter()
    for number, count in zip(statements.sentence_of.tolist(), missing.tolist(), strict=True):
        needs[number] = max(needs[number], count)
    requests = []
    for level in range(max(needs.values(), default=0), 0, -1):
        sentences = [statements.sentences[number] for number, count in sorted(needs.items()) if count >= level]
        shift = level % SENTENCES_PER_REQUEST  # other neighbours than for the telling before
        groups = [sentences[:shift]] if shift else []
        groups += [
            sentences[first : first + SENTENCES_PER_REQUEST]
            for first in range(shift, len(sentences), SENTENCES_PER_REQUEST)
        ]
        for group in filter(None, groups):
            request = PassageRequest(document, FACTS, tuple(group), settings.model, settings.method, 0, settings.seed)
            while request.id in done or request.id in {other.id for other in requests}:
                request = replace(request, sample=request.sample + 1)
            requests.append(request)
    return requests
