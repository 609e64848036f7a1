"""Open-book evaluation: options of the search, the chunks retrieved for every question, and their recall."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass

from inference import retrieval
from inference.embeddings import ApiEmbedder, LocalEmbedder
from inference.retrieval import RETRIEVERS, Chunk, Reranker
from tasks.documents import Document, Item, Question, document_reference
from utils import paths
from utils.cli import non_negative_int, positive_int, print_result
from utils.errors import UserError
from utils.io import blocking_lock

ORDERS = ("best_last", "best_first")
QUERIES = ("full", "question")
SHOWN, SHOWN_CHARACTERS = 3, 512  # passages shown with a message of a chat, and their length


@dataclass(frozen=True)
class SearchSettings:
    """The paper's settings, except for the models, which need no account."""

    retriever: str = "fusion"
    embedding: str | None = None  # None: the model that installs from a package
    embedding_url: str | None = None
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
        """Part of the output's file name."""
        return f"chunk{self.chunk_size}-k{self.top_k}-{self.order}"

    def embedder(self) -> LocalEmbedder | ApiEmbedder:
        if self.embedding_url or (self.embedding or "").startswith("text-embedding-"):
            return ApiEmbedder(self.embedding, self.embedding_url)
        return LocalEmbedder(self.embedding)


SEARCH_DEFAULTS = asdict(SearchSettings())


@dataclass(frozen=True)
class Retrieved:
    """`chunks`: the `top_k` of every question, in prompt order; `stages`: recall and MRR by retrieval stage, the last
    being that of `chunks`; `total`: chunks in the index."""

    chunks: list[list[Chunk]]
    stages: dict[str, dict[str, float]]
    total: int


def add_search_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("open book").add_argument
    add("--rag", action="store_true", help="put retrieved chunks of the articles before the question")
    add("--retrieval_only", action="store_true", help="measure the search, without a model")
    add("--retriever", choices=RETRIEVERS, help="by vectors (dense), by words (bm25), or both")
    embedding_help = (
        "sentence-transformers folder or hub name, or a server's model such as text-embedding-3-large "
        "(default: the installed all-MiniLM-L6-v2)"
    )
    add("--embedding", metavar="MODEL", help=embedding_help)
    add("--embedding_url", help="an OpenAI-compatible server for --embedding")
    add("--reranker", metavar="MODEL", help="a server's model that ranks the retrieved chunks: rerank-english-v3.0")
    rerank_help = "its address without /rerank, such as https://api.cohere.com/v2; the key is $RERANK_API_KEY"
    add("--rerank_url", help=rerank_help)
    add("--chunk_size", type=positive_int, help="characters per chunk (the paper: 256, 512, 1024)")
    add("--chunk_overlap", type=non_negative_int, help="characters shared by neighbouring chunks")
    add("--retrieve", type=positive_int, help="chunks retrieved, and ranked by the reranker")
    add("--top_k", type=positive_int, help="chunks before the question (the paper: 1 to 16)")
    add("--order", choices=ORDERS, help="of the chunks in the prompt")
    query_help = "search for the question with the article's name and the options (full), or for the question alone"
    add("--query", choices=QUERIES, help=query_help)
    parser.set_defaults(**SEARCH_DEFAULTS)


def validate_search(args: Namespace) -> None:
    if not (args.rag or args.retrieval_only):
        given = [name for name, default in SEARCH_DEFAULTS.items() if getattr(args, name) != default]
        if given:
            raise UserError(f"--{given[0]}: for --rag")
    if args.chunk_overlap >= args.chunk_size:
        raise UserError(f"--chunk_overlap {args.chunk_overlap}: must be below --chunk_size")
    if args.retriever == "bm25" and args.embedding:
        raise UserError("--embedding: BM25 has no vectors")
    if args.top_k > args.retrieve:
        raise UserError(f"--top_k {args.top_k}: more than --retrieve {args.retrieve}")
    if bool(args.reranker) != bool(args.rerank_url):
        raise UserError("--reranker and --rerank_url: one needs the other")
    if args.embedding_url and not args.embedding:
        raise UserError("--embedding_url: name the server's model with --embedding")


def retrieve(documents: list[Document], items: list[Item], settings: SearchSettings) -> Retrieved:
    """Retrieve the chunks of every question. Concurrent processes take turns, and share the caches."""
    chunks = split_documents(documents, settings)
    queries = [build_query(*item, settings) for item in items]
    with blocking_lock(paths.cache_dir() / "lock", "another search"):
        rankings = rank_chunks(chunks, queries, settings)
    sources = [document.uid for document, _ in items]
    stages = {}
    for stage, rows in rankings.items():
        ranks = [  # of the first chunk of the question's own article
            next((rank for rank, n in enumerate(row, 1) if chunks[n].source == source), None)
            for row, source in zip(rows, sources, strict=True)
        ]
        stages[stage] = retrieval.recall_and_mrr(ranks)
    best = [row[: settings.top_k] for row in list(rankings.values())[-1]]
    step = -1 if settings.order == "best_last" else 1
    return Retrieved([[chunks[n] for n in row[::step]] for row in best], stages, len(chunks))


def message_search(documents: list[Document]) -> Callable[[str], list[Chunk]]:
    """A search for the passages to show with a message of a chat, best first: by BM25, which finds the right article
    as often as vectors do (LOG.md, 2026-11-24), without a model and within milliseconds."""
    chunks = split_documents(documents, SearchSettings(chunk_size=SHOWN_CHARACTERS))
    index = retrieval.Bm25(chunks)
    return lambda message: [chunks[number] for number in index.search([message], SHOWN)[0]]


def split_documents(documents: list[Document], settings: SearchSettings) -> list[Chunk]:
    return [
        Chunk(document.uid, number, document_reference(document), text)
        for document in documents
        for number, text in enumerate(retrieval.split(document.text, settings.chunk_size, settings.chunk_overlap))
    ]


def build_query(document: Document, question: Question, settings: SearchSettings) -> str:
    """`full` is the paper's query: the question with the article's name and the options."""
    if settings.query == "question":
        return question.text
    return "\n".join([f"In the context of {document_reference(document)}: {question.text}", *question.options])


def rank_chunks(chunks: list[Chunk], queries: list[str], settings: SearchSettings) -> dict[str, list[list[int]]]:
    """Chunk numbers by stage and query, best first; the last stage is used."""
    stages = {}
    if settings.retriever != "bm25":
        stages["dense"] = retrieval.dense(chunks, queries, settings.embedder(), settings.retrieve)
    if settings.retriever != "dense":
        stages["bm25"] = retrieval.bm25(chunks, queries, settings.retrieve)
    if settings.retriever == "fusion":
        both = zip(stages["dense"], stages["bm25"], strict=True)
        stages["fusion"] = [retrieval.fuse(list(pair), settings.retrieve) for pair in both]
    if settings.reranker:
        reranker = Reranker(settings.reranker, settings.rerank_url)
        stages["rerank"] = reranker.rank(chunks, queries, list(stages.values())[-1])
    return stages


def print_recall(retrieved: Retrieved, questions: int, is_result: bool) -> None:
    """Print a table of recall; if it `is_result`, the last line too."""
    columns = list(next(iter(retrieved.stages.values())))
    print(f"{retrieved.total} chunks, {questions} questions; recall of the question's own article:")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for stage, values in retrieved.stages.items():
        print(f"{stage:10}" + "".join(f"{values[column]:12.3f}" for column in columns))
    if is_result:
        print_result({"passages": retrieved.total} | retrieved.stages, f"{stage}: recall@8 {values['recall@8']:.3f}")
