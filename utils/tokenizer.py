"""Text -> token ids and token files: by gigatoken where its ids are verified, else by the Hugging Face tokenizer.

A text is encoded with the tokens that its tokenizer puts before it (BOS, if any) and none after it. Special tokens
that are written in a text, such as <|endoftext|>, are encoded as text. A document is a text followed by EOS.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from utils import paths
from utils.errors import UserError, first_line
from utils.hub import use_cache_without_network
from utils.io import json_digest
from utils.progress import counted, working
from utils.special_tokens import special_tokens
from utils.token_file import write_tokens

BATCH_CHARACTERS = 1 << 22  # in memory at a time: about a million tokens
# Characters encoded by both tokenizers for verification, in the first batch and in later ones. Checking whole
# documents took 5.5 of 7 s for 20 MB.
CHECKED_AT_FIRST = 1 << 17
CHECKED_LATER = 1 << 12


def load_tokenizer(name: str, flag: str = "--tokenizer"):
    """The tokenizer of a checkpoint folder or Hub name. Raises UserError, which names the command-line `flag`,
    where none is found or it has no EOS token."""
    found = paths.resolve_checkpoint(name)
    if Path(found).is_dir() and not (Path(found) / "tokenizer_config.json").is_file():
        raise UserError(f"{found}: holds no tokenizer (tokenizer_config.json); save the base model's tokenizer into it")
    if not Path(found).is_dir() and not paths.looks_like_hub_name(name):
        raise UserError(f"{flag} {name}: no such folder")
    use_cache_without_network()
    try:
        with working(f"loading the tokenizer of {paths.short_name(name)}"):
            from transformers import AutoTokenizer  # heavy

            tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} {name}: not a folder, and could not be loaded from the Hub "
            f"({first_line(error)}); name a checkpoint folder, or log in with: hf auth login"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{flag} {name}: its tokenizer.json is damaged; download it again") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {name}: has no EOS token to separate documents")
    return tokenizer


def encode_texts(tokenizer, texts: list[str], leading: bool = True) -> list[list[int]]:
    """Token ids of each text, after the tokenizer's leading tokens unless `leading` is False. Special tokens in a
    text are encoded as text, and the tokenizer adds none at the end."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    first = leading_ids(tokenizer) if leading else []
    special = set(special_tokens(tokenizer).values()) - {tokenizer.unk_token_id}
    rows = []
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        # A vocabulary that has its special tokens among its pieces too (Unigram) finds them in the text.
        rows.append(first + (ids if special.isdisjoint(ids) else _encode_split(tokenizer, text)))
    return rows


def leading_ids(tokenizer) -> list[int]:
    """The ids that the tokenizer puts before a text: Llama 3's BOS, or none."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(plain)] == plain), [])


def _encode_split(tokenizer, text: str) -> list[int]:
    """Ids of a text whose special tokens are each cut in two after their first character."""
    cuts = (f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in special_tokens(tokenizer))
    parts = re.split("|".join(cuts), text)
    encoded = tokenizer(parts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [id for ids in encoded for id in ids]


def vocabulary_sha256(tokenizer) -> str:
    """sha256 of the vocabulary: equal if and only if the same ids mean the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return json_digest(vocabulary, 64)


def write_documents(
    path: Path,
    build: Callable[[], Iterable[str]],
    tokenizer,
    made: dict,
    enough: int | None = None,
    leave_rest: bool = False,
    documents: int | None = None,
    pair: ExitStack | None = None,
) -> dict:
    """Encode the documents that `build` yields into `path`, or, with `pair`, when that is closed (write_tokens), and
    print a summary; returns the sidecar.

    Stops after the document that reaches `enough` tokens, if given. Raises UserError, leaving earlier files
    unchanged, where there is no text, or, with `leave_rest`, where no document would remain.

    gigatoken is used first (about 100 times as fast as the Hugging Face tokenizer) and its ids are compared on a
    sample of the input; on a difference everything is encoded again by the Hugging Face tokenizer. `build` is then
    called a second time and must yield the same texts. The progress bar counts up to `enough` tokens or the number of
    `documents`, if known.
    """

    def written(batches: Iterator[list[np.ndarray]], encoder: str) -> dict:
        size = (lambda batch: sum(map(len, batch))) if enough else len
        settings = {"total": enough or documents, "unit": "token" if enough else "document"}
        shown = counted(_until(batches, enough, leave_rest), "encoding", size, **settings)
        sidecar = write_tokens(path, shown, about | {"encoder": encoder}, pair=pair)
        print(f"{path}: {sidecar['tokens']:,} tokens in {sidecar['documents']:,} documents")
        return sidecar

    about = made | describe_tokenizer(tokenizer)
    fast = _gigatoken(tokenizer)
    if fast:
        try:
            return written(_encoded(build(), tokenizer, fast), "gigatoken")
        except _DifferentIds as error:
            print(f"gigatoken encodes {error} differently: encoding with transformers")
    return written(_encoded(build(), tokenizer, None), "transformers")


def describe_tokenizer(tokenizer) -> dict:
    """Entries of a sidecar: the tokenizer, and the special tokens around a document."""
    return {
        "tokenizer": tokenizer.name_or_path,
        "tokenizer_sha256": vocabulary_sha256(tokenizer),
        "vocab_size": len(tokenizer),
        "bos": bool(leading_ids(tokenizer)),
        "eos": "after every document",
    }


def _until(batches: Iterator[list[np.ndarray]], enough: int | None, leave_rest: bool) -> Iterator[list[np.ndarray]]:
    """Batches up to the document that reaches `enough` tokens."""
    total = documents = 0
    for batch in batches:
        ends = total + np.cumsum([len(document) for document in batch])
        taken = len(batch) if enough is None else int(np.searchsorted(ends, enough)) + 1
        last = enough is not None and ends[-1] >= enough
        if leave_rest and last and taken == len(batch) and next(batches, None) is None:
            break
        yield batch[:taken]
        if last:
            return
        total, documents = int(ends[-1]), documents + len(batch)
    if leave_rest:
        raise UserError(
            "the whole text would be held out; give more text, in several lines or records, or a smaller --test_tokens"
        )
    if not documents:
        raise UserError("there is no text to tokenise")


class _DifferentIds(Exception):
    """gigatoken and the Hugging Face tokenizer return different ids."""


def _encoded(texts: Iterable[str], tokenizer, fast) -> Iterator[list[np.ndarray]]:
    checked = CHECKED_AT_FIRST
    for batch in _batches(texts):
        if fast:
            documents = _encode_fast(batch, tokenizer, fast)
            _check(batch, documents, tokenizer, fast, checked)
            checked = CHECKED_LATER
        else:
            documents = _encode_slow(batch, tokenizer)
        yield documents


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_slow(batch: list[str], tokenizer) -> list[np.ndarray]:
    return [np.array([*ids, tokenizer.eos_token_id], np.int32) for ids in encode_texts(tokenizer, batch)]


def _encode_fast(batch: list[str], tokenizer, fast) -> list[np.ndarray]:
    import awkward

    rows = fast.encode_batch(batch)
    ends = np.cumsum(awkward.to_numpy(awkward.num(rows)))
    ids = awkward.to_numpy(awkward.flatten(rows)).astype(np.int32)
    first, last = leading_ids(tokenizer), [tokenizer.eos_token_id]
    documents = [np.concatenate([first, document, last]).astype(np.int32) for document in np.split(ids, ends[:-1])]
    special = list(special_tokens(tokenizer))
    with_special = [i for i, text in enumerate(batch) if any(token in text for token in special)]
    for i, document in zip(with_special, _encode_slow([batch[i] for i in with_special], tokenizer), strict=True):
        documents[i] = document
    return documents


def _check(batch: list[str], documents: list[np.ndarray], tokenizer, fast, characters: int) -> None:
    """Compare both tokenizers on whole documents, longest first, of up to `characters`, or on the first's beginning."""
    longest_first = sorted(range(len(batch)), key=lambda i: -len(batch[i]))
    left, sample = characters, []
    for index in longest_first:
        if len(batch[index]) <= left // 2:
            sample.append(index)
            left -= len(batch[index])
    texts, found = [batch[i] for i in sample], [documents[i] for i in sample]
    if not sample:
        texts = [batch[0][:characters]]
        found = _encode_fast(texts, tokenizer, fast)
    for text, ids, expected in zip(texts, found, _encode_slow(texts, tokenizer), strict=True):
        if not np.array_equal(ids, expected):
            raise _DifferentIds(repr(text[:60]))


def _gigatoken(tokenizer):
    """gigatoken's version of a tokenizer, or None for kinds that it does not support."""
    import gigatoken

    if any(has_conditions(token) for token in tokenizer.added_tokens_decoder.values()):
        _say_slow(tokenizer.name_or_path)
        return None
    try:
        return gigatoken.Tokenizer(tokenizer)
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        _say_slow(tokenizer.name_or_path)
        return None


def has_conditions(token) -> bool:
    """True for an added token that stands in a text only as a whole word, or takes the spaces beside it: gigatoken finds
    it everywhere. Special tokens are not looked for in texts."""
    return not token.special and (token.single_word or token.lstrip or token.rstrip)


@functools.cache  # once in a process, which may write several files
def _say_slow(name: str) -> None:
    print(f"{Path(name).name}: encoded by transformers, since gigatoken does not support this tokenizer")
