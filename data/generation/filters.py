"""Quality measures of passages: copied text, repetition, refusals, duplicates, absent entities.

Knows texts, nothing of where they come from.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from utils.words import has_unspaced_script
from utils.words import words_of as split_words

COPIED_N = 8  # consecutive words of the source; shorter than most quotations
DISTINCT_N = 3
NEAR = 0.8  # Jaccard similarity of the sets of 5-word shingles
SHINGLE_N = 5
LOOPING = 0.5  # distinct-3 below it; 0.86 and more in the shipped passages, 0.15 and 0.30 in loops of a 1.5B model
PROMPT_N = 5
COPIED_PROMPT = (
    10  # 5-grams of the prompt; none in the shipped passages, 19 to 48 where a 1.5B model repeats an outline
)
PERMUTATIONS = 128  # of MinHash: a standard error of 0.035 at a similarity of 0.8
REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry|i can['’]?t|i cannot|i am unable|i['’]m unable"
    r"|as an ai|as a language model|unfortunately, i)\b",
    re.IGNORECASE,
)


def words_of(text: str) -> list[str]:
    return split_words(text, inside="'’-")


def ngrams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def copied_share(words: list[str], source: set[tuple[str, ...]]) -> float:
    """Fraction of a passage's COPIED_N-grams that are in `source`, the set of its document's."""
    copied = [gram in source for gram in ngrams(words, COPIED_N)]
    return sum(copied) / len(copied) if copied else 0.0


def distinct_share(words: list[str], n: int = DISTINCT_N) -> float:
    """Fraction of distinct n-grams (distinct-n, Li et al., 2016); 1 without repetition."""
    grams = list(ngrams(words, n))
    return len(set(grams)) / len(grams) if grams else 1.0


def is_refusal(text: str) -> bool:
    """True if `text` begins like a refusal."""
    return bool(REFUSAL.match(text.lstrip(" \n*#>\"'")))


def is_looping(words: list[str]) -> bool:
    """True if the passage repeats itself: most of its 3-grams occur more than once."""
    return distinct_share(words) < LOOPING


def repeats_prompt(words: list[str], prompt: set[tuple[str, ...]]) -> bool:
    """True if a passage contains COPIED_PROMPT or more of `prompt`, the set of its prompt template's PROMPT_N-grams."""
    return sum(gram in prompt for gram in ngrams(words, PROMPT_N)) >= COPIED_PROMPT


def fault(words: list[str], text: str) -> str:
    """The reason why a passage is of no use for training: `refusal` or `looping`; empty if there is none."""
    if not words or is_refusal(text):
        return "refusal"
    return "looping" if is_looping(words) else ""


def passage_score(words: list[str], text: str, source: set[tuple[str, ...]]) -> float:
    """Score of a passage from 0 to 1, the measure of --min_quality.

    0 for an empty text and a refusal; else distinct-3 (low for loops) times the fraction of 8-grams not
    copied from the source.
    """
    if not words or is_refusal(text):
        return 0.0
    return distinct_share(words) * (1 - copied_share(words, source))


def text_digest(words: list[str]) -> bytes:
    """A digest that ignores case, spacing and punctuation."""
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


class Duplicates:
    """Exact and near duplicates (MinHash LSH) of passages seen before; `originals` has the earlier one by name."""

    def __init__(self):
        from datasketch import MinHashLSH

        self.originals: dict[str, str] = {}
        self._digests: dict[bytes, str] = {}
        self._index = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
        self._sketches: dict = {}

    def add(self, name: str, words: list[str]) -> str:
        """Add a passage under a `name`; returns `exact`, `near` or `` (no duplicate)."""
        from datasketch import LeanMinHash, MinHash

        if name in self._sketches:  # two records of another program with one id
            name = f"{name} ({len(self._sketches)})"
        digest = text_digest(words)
        if digest in self._digests:
            self.originals[name] = self._digests[digest]
            return "exact"
        self._digests[digest] = name
        if len(words) < SHINGLE_N:  # nothing to compare
            return ""
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([" ".join(gram).encode() for gram in ngrams(words, SHINGLE_N)])
        alike = (other for other in self._index.query(sketch) if self._sketches[other].jaccard(sketch) >= NEAR)
        near = min(alike, default=None)
        self._index.insert(name, sketch)
        self._sketches[name] = LeanMinHash(sketch)
        if near is None:
            return ""
        self.originals[name] = near
        return "near"


def entities_not_in(entities: list[str], text: str) -> list[str]:
    """Entities without a single word of more than three letters in `text`, up to plural endings, but not of proper
    names: Jones is not Jon. In scripts without spaces the whole name must occur."""
    text = unicodedata.normalize("NFC", text).lower()
    exact = {_without_possessive(word) for word in words_of(text)}
    known = exact | {_singular(word) for word in exact}
    return [entity for entity in entities if not _occurs(entity, text, exact, known)]


def _occurs(entity: str, text: str, exact: set[str], known: set[str]) -> bool:
    entity = unicodedata.normalize("NFC", entity)
    if has_unspaced_script(entity):
        return all(part in text for part in entity.lower().split())
    words = [(word, part != part.lower()) for part in entity.split() for word in words_of(part)]
    words = [(word, proper) for word, proper in words if len(word) > 3] or words
    bare = [(_without_possessive(word), proper) for word, proper in words]
    return any(word in exact if proper else _singular(word) in known for word, proper in bare)


def _without_possessive(word: str) -> str:
    return re.sub("['’]s?$", "", word)


def _singular(word: str) -> str:
    return word[:-3] + "y" if word.endswith("ies") else word.removesuffix("s")
