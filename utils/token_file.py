"""Token files: writer and reader.

`NAME.bin`   token ids, int32 little-endian, consecutive documents
`NAME.idx`   uint64 little-endian, the end offset (in tokens) of every document
`NAME.mask`  for conversations, uint8: 1 where the token is trained on
`NAME.json`  sidecar: tokenizer and its sha256, vocabulary size, bos/eos policy, counts, seed, sources, and the sha256
             of the .bin, the .idx and the .mask
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.io import atomic_write, read_json, sha256_file

ID_TYPE = np.dtype("<i4")
OFFSET_TYPE = np.dtype("<u8")
MASK_TYPE = np.dtype("u1")
HASHES = {".bin": "sha256", ".idx": "idx_sha256", ".mask": "mask_sha256"}  # keys of the sidecar
HELD_OUT_KEY = "held_out_sha256"  # in the sidecar of training text: the sha256 of the held-out .bin of the same run
DOCUMENTS = 0  # number of the random stream that chooses documents
HASH_CHUNK_TOKENS = 1 << 20


def write_tokens(
    path: Path, batches: Iterable[list[np.ndarray]], made: dict, masked: bool = False, pair: ExitStack | None = None
) -> dict:
    """Write documents to `path` (a .bin), its .idx and its .json; returns the sidecar.

    `batches` yields lists of documents: (tokens,) integer arrays, or with `masked` (2, tokens) arrays of ids and mask,
    whose mask goes into a .mask. Batches are consumed one at a time, so memory does not grow with the number of
    tokens. `made` is copied into the sidecar at the end, so the producer of the batches may count in it. On an error,
    a full disk included, the files of an earlier run are left unchanged. With `pair` the files replace earlier ones
    when it is closed, so that two token files do so together.
    """
    tokens = documents = 0
    types = {".mask": MASK_TYPE, ".idx": OFFSET_TYPE, ".bin": ID_TYPE}
    with ExitStack() as stack:
        # Renamed in the reverse order of opening: the sidecar, opened first, is renamed last, and holds counts and
        # hashes of the others.
        sidecar_file = stack.enter_context(atomic_write(path.with_suffix(".json")))
        files = {
            suffix: stack.enter_context(atomic_write(path.with_suffix(suffix)))
            for suffix in types
            if masked or suffix != ".mask"
        }
        digests = {suffix: hashlib.sha256() for suffix in files}
        for batch in batches:
            if not batch:
                continue
            ends = tokens + np.cumsum([document.shape[-1] for document in batch])
            rows = np.concatenate(batch, axis=-1).reshape(1 + masked, -1)
            for suffix, values in ((".bin", rows[0]), (".idx", ends), (".mask", rows[-1])):
                if suffix in files:
                    content = values.astype(types[suffix]).tobytes()
                    files[suffix].write(content)
                    digests[suffix].update(content)
            tokens, documents = tokens + rows.shape[1], documents + len(batch)
        hashes = {HASHES[suffix]: digest.hexdigest() for suffix, digest in digests.items()}
        sidecar = made | {"documents": documents, "tokens": tokens} | hashes
        sidecar_file.write((json.dumps(sidecar, indent=2) + "\n").encode())
        if pair:
            pair.enter_context(stack.pop_all())
    return sidecar


def refuse_other_kind(path: Path, name: str, masked: bool) -> None:
    """Raise UserError where `path` holds conversations and would be replaced by text, or the other way round."""
    sidecar = path.with_suffix(".json")
    meta = read_json(sidecar, "") if sidecar.is_file() else {}
    if isinstance(meta, dict) and meta and ("mask_sha256" in meta) != masked:
        kind = "replay text (tokenize_redpj.py)" if masked else "conversations (tokenize_instruct.py)"
        raise UserError(f"--name {name}: {path} holds {kind}; choose another name")


class TokenFile:
    """A memory-mapped .bin with its .idx and .json.

    `ids`: (tokens,) int32; `ends`: (documents,) uint64; `mask`: (tokens,) uint8 for conversations, else None; `meta`:
    the sidecar. Raises UserError where a file is missing, truncated, or not the one that its sidecar describes;
    `made_by` is the step to name in that error.
    """

    def __init__(self, path: Path, made_by: str):
        self.path = path
        self.meta = read_json(path.with_suffix(".json"), made_by)
        self.ids = _map(path, ID_TYPE, made_by)
        self.ends = _map(path.with_suffix(".idx"), OFFSET_TYPE, made_by)
        described = (self._described("tokens"), self._described("documents"))
        if (len(self.ids), len(self.ends)) != described:
            counts = f"{len(self.ids)} tokens in {len(self.ends)} documents"
            raise UserError(f"{path}: {counts}, but its .json says {described[0]} in {described[1]}; {made_by}")
        self.mask = None
        if "mask_sha256" in self.meta:
            self.mask = _map(path.with_suffix(".mask"), MASK_TYPE, made_by)
            if len(self.mask) != len(self.ids):
                raise UserError(
                    f"{path.with_suffix('.mask')}: {len(self.mask)} marks for {len(self.ids)} tokens; {made_by}"
                )
        if len(self.ends) and (self.ends[-1] != len(self.ids) or (np.diff(self.ends.astype(np.int64)) < 0).any()):
            raise UserError(f"{path.with_suffix('.idx')}: its offsets do not match the .bin; {made_by}")
        self.made_by = made_by

    def _described(self, key: str) -> int:
        value = self.meta.get(key) if isinstance(self.meta, dict) else None
        if not isinstance(value, int):
            raise UserError(f"{self.path.with_suffix('.json')}: it has no number {key!r}")
        return value

    def verify(self) -> None:
        """Compare the sha256 of every file with the sidecar's."""
        for suffix, name in HASHES.items():
            path = self.path.with_suffix(suffix)
            if suffix == ".mask" and self.mask is None:
                continue
            if sha256_file(path) != self.meta.get(name):
                raise UserError(f"{path}: its sha256 is not the one in its .json; {self.made_by}")

    def check_vocabulary(self, tokenizer_sha256: str, vocab_size: int, model: str) -> None:
        """Raises UserError unless the ids were made with the vocabulary of `model`, and are within it."""
        if self.meta.get("tokenizer_sha256") != tokenizer_sha256:
            other = self.meta.get("tokenizer")
            raise UserError(f"{self.path}: the vocabulary is {other}'s; tokenise again with --tokenizer {model}")
        if (largest := self._largest_id()) >= vocab_size:
            raise UserError(f"{self.path}: token id {largest}, but {model} has a vocabulary of {vocab_size}")

    def _largest_id(self) -> int:
        chunks = range(0, len(self.ids), HASH_CHUNK_TOKENS)
        return max((int(self.ids[i : i + HASH_CHUNK_TOKENS].max()) for i in chunks), default=-1)

    def documents(self) -> Iterator[np.ndarray]:
        start = 0
        for end in self.ends:
            yield self.ids[start : int(end)]
            start = int(end)


def choose_documents(number: int, ratio: float, seed: int) -> np.ndarray:
    """(number,) bool: a random fraction of the documents. Nested: the documents of 0.1 are among those of 0.2."""
    if not 0 < ratio <= 1:
        raise UserError(f"--subsample_ratio {ratio}: must be above 0, at most 1")
    order = np.random.default_rng([seed, DOCUMENTS]).permutation(number)
    chosen = np.zeros(number, bool)
    chosen[order[: max(1, round(ratio * number))]] = True
    return chosen


def _map(path: Path, dtype: np.dtype, made_by: str) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {made_by}")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise UserError(f"{path}: {size} bytes is not a multiple of {dtype.name}; {made_by}")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)


IGNORE_INDEX = -100  # a label that counts for nothing, as torch and transformers have it
