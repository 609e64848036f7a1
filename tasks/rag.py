"""Open book: for every question the passages that a search finds for it, and how good the search is."""

import argparse
import dataclasses
from dataclasses import dataclass

from inference import retrieval
from inference.embeddings import ApiEmbedder, LocalEmbedder
from inference.retrieval import Chunk, Reranker
from tasks.documents import Document, Question, document_reference
from utils import paths
from utils.io import blocking_lock

ORDERS = ("best_last", "best_first")
QUERIES = ("full", "question")


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search; those of the paper but for the models, which need no account."""

    retriever: str = "fusion"
    embedding: str | None = None  # None: the model that installs from a package
    embedding_url: str | None = None  # with it, or with an OpenAI model's name, a server's
    reranker: str | None = None
    rerank_url: str | None = None
    chunk_size: int = 1024  # characters, as in the published code
    chunk_overlap: int = 0
    retrieve: int = 128
    top_k: int = 8
    order: str = "best_last"
    query: str = "full"

    @property
    def name(self) -> str:
        """A part of a file name."""
        return f"chunk{self.chunk_size}-k{self.top_k}-{self.order}"

    def embedder(self) -> LocalEmbedder | ApiEmbedder:
        if self.embedding_url or (self.embedding or "").startswith("text-embedding-"):
            return ApiEmbedder(self.embedding, self.embedding_url)
        return LocalEmbedder(self.embedding)


@dataclass(frozen=True)
class Retrieved:
    """`passages`: of every question the `top_k`, in the order in which they stand before it;
    `stages`: recall and MRR of each stage, the last one's being the passages'; `total` in the index."""

    passages: list[list[Chunk]]
    stages: dict[str, dict[str, float]]
    total: int


def retrieve(documents: list[Document], items: list[tuple[Document, Question]], how: SearchSettings) -> Retrieved:
    """Find the passages of every question. Several processes may search at once: they take turns, and
    the second finds in the caches what the first has paid for."""
    passages = split_documents(documents, how)
    queries = [build_query(*item, how) for item in items]
    with blocking_lock(paths.cache_dir() / "lock", "another search"):
        rankings = rank_chunks(passages, queries, how)
    owners = [document.uid for document, _ in items]
    stages = {
        stage: retrieval.recall_and_mrr(
            [first_hit_rank(row, owner, passages) for row, owner in zip(rows, owners, strict=True)]
        )
        for stage, rows in rankings.items()
    }
    best = [row[: how.top_k] for row in list(rankings.values())[-1]]
    step = -1 if how.order == "best_last" else 1
    return Retrieved([[passages[n] for n in row[::step]] for row in best], stages, len(passages))


def split_documents(documents: list[Document], how: SearchSettings) -> list[Chunk]:
    return [
        Chunk(document.uid, number, document_reference(document), text)
        for document in documents
        for number, text in enumerate(retrieval.split(document.text, how.chunk_size, how.chunk_overlap))
    ]


def build_query(document: Document, question: Question, how: SearchSettings) -> str:
    """`full` is the question as the paper searches for it, with the article's name and the options;
    `question` is its text alone."""
    if how.query == "question":
        return question.text
    return "\n".join([f"In the context of {document_reference(document)}: {question.text}", *question.options])


def rank_chunks(passages: list[Chunk], queries: list[str], how: SearchSettings) -> dict[str, list[list[int]]]:
    """Numbers of passages by stage and query, best first; the last stage is what is used."""
    stages = {}
    if how.retriever != "bm25":
        stages["dense"] = retrieval.dense(passages, queries, how.embedder(), how.retrieve)
    if how.retriever != "dense":
        stages["bm25"] = retrieval.bm25(passages, queries, how.retrieve)
    if how.retriever == "fusion":
        both = zip(stages["dense"], stages["bm25"], strict=True)
        stages["fusion"] = [retrieval.fuse(list(pair), how.retrieve) for pair in both]
    if how.reranker:
        reranker = Reranker(how.reranker, how.rerank_url)
        stages["rerank"] = reranker.rank(passages, queries, list(stages.values())[-1])
    return stages


def first_hit_rank(row: list[int], owner: str, passages: list[Chunk]) -> int | None:
    """The rank, from 1, of the first passage from the question's own article."""
    return next((rank for rank, n in enumerate(row, 1) if passages[n].source == owner), None)


SEARCH = dataclasses.asdict(SearchSettings())  # its options, unless they are given


def search_settings(args: argparse.Namespace) -> SearchSettings:
    return SearchSettings(**{name: getattr(args, name) for name in SEARCH})


def print_stages(found: Retrieved, questions: int) -> None:
    columns = list(next(iter(found.stages.values())))
    print(f"{found.total} passages, {questions} questions; the right article is among the first k:")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for stage, values in found.stages.items():
        print(f"{stage:10}" + "".join(f"{values[column]:12.3f}" for column in columns))
