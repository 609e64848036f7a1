"""How good passages are, as far as counting can tell: copies, repetition, refusals, strangers.

It knows texts, nothing of where they come from.
"""

import hashlib
import re
from collections.abc import Iterable

COPIED_N = 8  # words in a row: as long as the source and shorter than a quotation
DISTINCT_N = 3
NEAR = 0.8  # Jaccard similarity of the sets of 5-word shingles
SHINGLE_N = 5
PERMUTATIONS = 128  # of MinHash: a standard error of 0.035 at a similarity of 0.8
REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry|i can['’]?t|i cannot|i am unable|i['’]m unable"
    r"|as an ai|as a language model|unfortunately, i)\b",
    re.IGNORECASE,
)


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


def ngrams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def copied_share(words: list[str], source: set[tuple[str, ...]]) -> float:
    """Share of the COPIED_N-grams of a passage that stand in `source`, the set of its document's."""
    found = [gram in source for gram in ngrams(words, COPIED_N)]
    return sum(found) / len(found) if found else 0.0


def distinct_share(words: list[str], n: int = DISTINCT_N) -> float:
    """Different n-grams among all (Li et al., 2016, distinct-n); 1 for no repetition."""
    grams = list(ngrams(words, n))
    return len(set(grams)) / len(grams) if grams else 1.0


def is_refusal(text: str) -> bool:
    """A model that declines does so in its first words."""
    return bool(REFUSAL.match(text.lstrip(" \n*#>\"'")))


def passage_score(words: list[str], text: str, source: set[tuple[str, ...]]) -> float:
    """0 for nothing and for a refusal; else the share of different 3-grams (a loop has few) times the
    share of 8-grams that are not the source's (a copy has few). From 0 to 1."""
    if not words or is_refusal(text):
        return 0.0
    return distinct_share(words) * (1 - copied_share(words, source))


def text_digest(words: list[str]) -> bytes:
    """Equal for texts that differ in case, spacing and punctuation alone."""
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


class Duplicates:
    """Tells of each passage whether an earlier one was the same, or nearly."""

    def __init__(self):
        from datasketch import MinHashLSH

        self._exact: set[bytes] = set()
        self._index = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
        self._sketches: dict = {}

    def add(self, name: str, words: list[str]) -> str:
        """`exact`, `near` or `` (neither); `name` is any that was not used before."""
        from datasketch import LeanMinHash, MinHash

        mark = text_digest(words)
        if mark in self._exact:
            return "exact"
        self._exact.add(mark)
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([" ".join(gram).encode() for gram in ngrams(words, SHINGLE_N)])
        near = any(self._sketches[other].jaccard(sketch) >= NEAR for other in self._index.query(sketch))
        self._index.insert(name, sketch)
        self._sketches[name] = LeanMinHash(sketch)
        return "near" if near else ""


def entities_not_in(entities: list[str], text: str) -> list[str]:
    """The entities of which no word longer than three letters occurs in the document."""
    known = {_singular(word) for word in words_of(text)}
    return [entity for entity in entities if not known & set(map(_singular, _content(entity)))]


def _content(entity: str) -> list[str]:
    words = words_of(entity)
    return [word for word in words if len(word) > 3] or words


def _singular(word: str) -> str:
    return word[:-3] + "y" if word.endswith("ies") else word.removesuffix("s")
