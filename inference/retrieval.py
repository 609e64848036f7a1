"""Retrieval of chunks: dense (FAISS), BM25, reciprocal rank fusion, and reranking by a server.

Knows strings and their sources, nothing of questions.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np

from inference.client import Client
from inference.completions import CallFailed, parse_indexed
from inference.embeddings import Embedder, embed
from inference.parallel import for_each
from inference.served_model import FIXED_TEXT, ServedModel, agree, identify, journal_of, own_records, server_record
from utils import paths
from utils.errors import UserError
from utils.io import Journal, json_digest, read_journal
from utils.words import word_pattern

RANK_CONSTANT = 60  # of reciprocal rank fusion; Cormack, Clarke and Büttcher, SIGIR 2009
RECALL_CUTOFFS = (1, 2, 4, 8, 16, 128)
RETRIEVERS = ("fusion", "dense", "bm25")
FIXED_DOCUMENTS = ["A ledger of the harbour names every boat of that night.", "Bread was dear in the spring."]
Pair = tuple[str, list[str]]  # a query and its documents


@dataclass(frozen=True)
class Chunk:
    """A part of a source document. The source's name is used by BM25 and the reranker only: prepended to each embedded
    text, it makes the chunks of a source alike (LOG.md, 2026-11-24)."""

    source: str
    number: int
    name: str
    text: str

    @property
    def named_text(self) -> str:
        return f"{self.name}\n{self.text}"


def split(text: str, size: int, overlap: int = 0) -> list[str]:
    """Split a text into parts of at most `size` characters, at paragraphs, else sentences, else words."""
    from semantic_text_splitter import TextSplitter

    return TextSplitter(size, overlap=overlap).chunks(text)


def dense(chunks: list[Chunk], queries: list[str], embedder: Embedder, limit: int) -> list[list[int]]:
    """For each query the numbers of the `limit` nearest chunks by cosine similarity, best first. A chunk that is
    embedded in parts is scored by its nearest part (MaxP; Dai and Callan, SIGIR 2019)."""
    import faiss

    parts = [split(c.text, embedder.max_chars) if embedder.max_chars else [c.text] for c in chunks]
    if not any(parts):
        raise UserError("--rag: the documents have no text to search")
    owners = np.repeat(np.arange(len(chunks)), [len(row) for row in parts])
    with contextlib.closing(embedder):
        vectors = embed([part for row in parts for part in row], embedder)
        query_vectors = embed(queries, embedder, "query")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # This many parts belong to at least `limit` chunks.
    part_limit = min(len(owners), limit * max(map(len, parts)))
    _, nearest = index.search(query_vectors, part_limit)
    return [list(dict.fromkeys(owners[row].tolist()))[:limit] for row in nearest]


class Bm25:
    """An index of chunks by BM25 over English stems.

    In scripts without spaces between words, such as Chinese, every character is a word (utils/words.py).
    """

    def __init__(self, chunks: list[Chunk]):
        import bm25s
        import Stemmer

        self._settings = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
        self._settings["token_pattern"] = word_pattern(shortest=2)
        self._index, self._count = bm25s.BM25(), len(chunks)
        words = self._tokenize([chunk.named_text for chunk in chunks])
        self._is_empty = not any(words.ids)  # no chunk has a word, such as a text of punctuation
        if not self._is_empty:
            self._index.index(words, show_progress=False)

    def search(self, queries: list[str], limit: int) -> list[list[int]]:
        """For each query the numbers of the `limit` best chunks, best first; they share a word with the query."""
        rankings = []
        for words in self._tokenize(queries, return_ids=False):
            scores = self._index.get_scores(words) if words and not self._is_empty else np.zeros(self._count)
            best = np.argsort(-scores, kind="stable")[:limit]
            rankings.append([int(number) for number in best if scores[number] > 0])
        return rankings

    def _tokenize(self, texts: list[str], **settings: bool):
        import bm25s

        return bm25s.tokenize([normalize("NFC", text) for text in texts], **self._settings, **settings)


def bm25(chunks: list[Chunk], queries: list[str], limit: int) -> list[list[int]]:
    return Bm25(chunks).search(queries, limit)


def fuse(rankings: list[list[int]], limit: int) -> list[int]:
    """Reciprocal rank fusion: chunks ordered by the sum of 1 / (60 + rank) over the rankings that contain them."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))[:limit]


@dataclass(frozen=True)
class Reranker:
    """A model behind `/rerank`, in the format shared by Cohere, vLLM and llama.cpp: a request of a query and
    documents, a reply of `results` with `index` and `relevance_score`. Its key is $RERANK_API_KEY."""

    model: str
    base_url: str
    concurrency: int = 8

    def rank(self, chunks: list[Chunk], queries: list[str], candidates: list[list[int]]) -> list[list[int]]:
        """Candidates of each query, best first. Scores are cached by content, so that a query is paid for once."""
        pairs = [(query, [chunks[n].named_text for n in row]) for query, row in zip(queries, candidates, strict=True)]
        scores = asyncio.run(self._all_scores({self._key(*pair): pair for pair in pairs}))
        rankings = []
        for pair, row in zip(pairs, candidates, strict=True):
            score_of = dict(zip(row, scores[self._key(*pair)], strict=True))
            rankings.append(sorted(row, key=score_of.__getitem__, reverse=True))
        return rankings

    def _key(self, query: str, documents: list[str]) -> str:
        return json_digest([self.model, query, documents], 32)

    async def _all_scores(self, pairs: dict[str, Pair]) -> dict[str, list[float]]:
        """Scores of (query, documents) pairs by key, from the cache or the server."""
        client = Client(self.model, self.base_url, key_variable="RERANK_API_KEY")
        try:
            path, served = await self._cache(client, pairs)
            with Journal(path) as journal:
                scores = {record["key"]: record["scores"] for record in own_records(journal, served)}

                def save(key: str, values: list[float]) -> None:
                    scores[key] = values
                    journal.append({"key": key, "scores": values})

                await self._score(client, {key: pair for key, pair in pairs.items() if key not in scores}, save)
        finally:
            await client.close()
        return scores

    async def _cache(self, client: Client, pairs: dict[str, Pair]) -> tuple[Path, ServedModel]:
        """The journal of this model's scores, and its identity. Scores by an earlier version are checked by one."""
        served = await identify(client, lambda: self._request(client, FIXED_TEXT, FIXED_DOCUMENTS), "--reranker")
        path, said = paths.reranker_scores_file(self.model), {}
        if path.exists() and not server_record(path):
            scores = {record["key"]: record["scores"] for record in read_journal(path)}
            key = next((key for key in pairs if key in scores), None)
            said[path] = key is not None and agree(scores[key], await self._request(client, *pairs[key]))
        return journal_of(path, served, client.say, said.get), served

    async def _request(self, client: Client, query: str, documents: list[str]) -> list[float]:
        body = {"model": self.model, "query": query, "documents": documents}
        return await client.post("/rerank", body, lambda reply: parse_scores(reply, len(documents)))

    async def _score(self, client: Client, pairs: dict[str, Pair], save: Callable) -> None:
        """Request the scores of (query, documents) pairs and save each by its key."""
        failures = []

        async def score(item: tuple[str, Pair]) -> None:
            try:
                save(item[0], await self._request(client, *item[1]))
            except CallFailed as error:
                failures.append(str(error))

        await for_each(pairs.items(), score, self.concurrency)
        if failures:
            raise UserError(
                f"--reranker {self.model}: {len(failures)} of {len(pairs)} queries failed (the last: {failures[-1]}); "
                "the other scores are saved, and the same command retries the failed queries"
            )


def parse_scores(reply: dict, count: int) -> list[float]:
    """Scores of a /rerank reply, in the order of the documents. Raises ValueError if some are missing."""
    scores = parse_indexed(reply, "results", "relevance_score", count)
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise ValueError("the reply has scores that are not numbers")
    return [float(score) for score in scores]


def recall_and_mrr(ranks: list[int | None]) -> dict[str, float]:
    """Recall at the RECALL_CUTOFFS and mean reciprocal rank, from the rank (1 and up) of the first relevant chunk of
    each query; None if it was not retrieved."""
    values = np.array([rank or np.inf for rank in ranks])
    recalls = {f"recall@{k}": round(float((values <= k).mean()), 4) for k in RECALL_CUTOFFS}
    return recalls | {"mrr": round(float((1 / values).mean()), 4)}
