"""Who finds the passage: by meaning (vectors, FAISS), by words (BM25), by both, reranked by a server.
It knows strings and their sources, not questions."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference.client import Client, for_each
from inference.completions import CallFailed
from inference.embeddings import ApiEmbedder, LocalEmbedder, embed
from utils import paths
from utils.errors import UserError
from utils.io import Journal

RANK_CONSTANT = 60  # of reciprocal rank fusion; Cormack, Clarke and Büttcher, SIGIR 2009
RETRIEVERS = ("fusion", "dense", "bm25")


@dataclass(frozen=True)
class Chunk:
    """A part of a source. The source's name is indexed for the words alone: in front of every vector
    it makes the passages of a source alike (LOG.md, 2026-11-24)."""

    source: str
    number: int
    name: str
    text: str


def split(text: str, size: int, overlap: int = 0) -> list[str]:
    """Parts of at most `size` characters: whole paragraphs, else sentences, else words, as many as fit."""
    from semantic_text_splitter import TextSplitter

    return TextSplitter(size, overlap=overlap).chunks(text)


def dense(
    passages: list[Chunk], queries: list[str], embedder: LocalEmbedder | ApiEmbedder, most: int
) -> list[list[int]]:
    """For every query the numbers of the passages nearest by cosine, best first. Of a passage that is
    embedded in parts the nearest part counts (MaxP; Dai and Callan, SIGIR 2019)."""
    import faiss

    parts = [split(p.text, embedder.window) if embedder.window else [p.text] for p in passages]
    owners = np.repeat(np.arange(len(passages)), [len(of_one) for of_one in parts])
    vectors = embed([part for of_one in parts for part in of_one], embedder)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # Among so many parts there are `most` passages at least.
    enough = min(len(owners), most * max(map(len, parts)))
    _, found = index.search(embed(queries, embedder), enough)
    return [list(dict.fromkeys(owners[row].tolist()))[:most] for row in found]


def bm25(passages: list[Chunk], queries: list[str], most: int) -> list[list[int]]:
    """The same by the words that query and passage, or the name of its source, share; English stems."""
    import bm25s
    import Stemmer

    settings = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25()
    texts = [f"{passage.name}\n{passage.text}" for passage in passages]
    index.index(bm25s.tokenize(texts, **settings), show_progress=False)
    rankings = []
    for words in bm25s.tokenize(queries, return_ids=False, **settings):
        scores = index.get_scores(words) if words else np.zeros(len(passages))
        best = np.argsort(-scores, kind="stable")[:most]
        rankings.append([int(number) for number in best if scores[number] > 0])
    return rankings


def fuse(rankings: list[list[int]], most: int) -> list[int]:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over the rankings that have a passage."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))[:most]


@dataclass(frozen=True)
class Reranker:
    """A model behind `/rerank`, in the form that Cohere, vLLM and llama.cpp share: a query and
    documents go, `results` of `index` and `relevance_score` come. Its key is $RERANK_API_KEY."""

    model: str
    base_url: str
    concurrency: int = 8

    def rank(self, passages: list[Chunk], queries: list[str], candidates: list[list[int]]) -> list[list[int]]:
        """The candidates of every query, best first. A query is paid for once, by its content."""
        texts = [[f"{passages[n].name}\n{passages[n].text}" for n in row] for row in candidates]
        asked = {self._key(*pair): pair for pair in zip(queries, texts, strict=True)}
        with Journal(paths.reranker_scores_file(self.model)) as journal:
            scores = {record["key"]: record["scores"] for record in journal.records}

            def save(key: str, found: list[float]) -> None:
                scores[key] = found
                journal.append({"key": key, "scores": found})

            missing = {key: pair for key, pair in asked.items() if key not in scores}
            asyncio.run(self._ask(missing, save))
        rankings = []
        for query, row, of_row in zip(queries, candidates, texts, strict=True):
            of_query = dict(zip(row, scores[self._key(query, of_row)], strict=True))
            rankings.append(sorted(row, key=lambda number: -of_query[number]))  # noqa: B023
        return rankings

    def _key(self, query: str, documents: list[str]) -> str:
        value = json.dumps([self.model, query, documents], ensure_ascii=False)
        return hashlib.sha256(value.encode()).hexdigest()[:32]

    async def _ask(self, missing: dict[str, tuple[str, list[str]]], save: Callable) -> None:
        client, failures = Client(self.model, self.base_url, key_variable="RERANK_API_KEY"), []

        async def ask(item: tuple[str, tuple[str, list[str]]]) -> None:
            key, (query, documents) = item
            request = {"model": self.model, "query": query, "documents": documents}
            try:
                save(key, await client.post("/rerank", request, lambda reply: parse_scores(reply, len(documents))))
            except CallFailed as error:
                failures.append(str(error))

        try:
            await for_each(missing.items(), ask, self.concurrency)
        finally:
            await client.close()
        if failures:
            raise UserError(
                f"--reranker {self.model}: {len(failures)} of {len(missing)} queries failed (the last, {failures[-1]}); the others are kept, and the same command asks these again"
            )


def parse_scores(reply: dict, number: int) -> list[float]:
    """Of every document, in order. ValueError where some have none."""
    results = reply.get("results")
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise ValueError("the reply has no results")
    found = {item.get("index"): item.get("relevance_score") for item in results}
    if found.keys() != set(range(number)) or not all(isinstance(s, int | float) for s in found.values()):
        raise ValueError(f"{len(found)} scores for {number} documents")
    return [float(found[index]) for index in range(number)]


def recall_and_mrr(ranks: list[int | None]) -> dict[str, float]:
    """Recall at 1, 2, 4, ... and the mean reciprocal rank, from the rank, 1 and up, of the first right
    passage of every query; None where it was not found."""
    found = np.array([rank or np.inf for rank in ranks])
    recalls = {f"recall@{k}": round(float((found <= k).mean()), 4) for k in (1, 2, 4, 8, 16, 128)}
    return recalls | {"mrr": round(float((1 / found).mean()), 4)}
