"""Sentences of a text, and the part of a cut text that ends with a whole sentence."""

import re

import sentencex

LANGUAGE = "en"  # of the abbreviations; marks that end a sentence are known in all scripts
END = re.compile(r"""[.!?…。．！？｡؟۔।॥።]["'”’»」』)\]*_]*$""")
NEXT = " The"  # begins another sentence, which shows whether the one before has ended


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without surrounding white space. Items of lists and headings are sentences as well."""
    return [piece for sentence in sentencex.segment(LANGUAGE, text) if (piece := sentence.strip())]


def complete_part(text: str) -> str:
    """A text up to the end of its last complete sentence; empty if it has none. A heading or a list item without a full
    stop at the end is left out with the sentence that was cut."""
    text = text.rstrip()
    end = 0
    for boundary in sentencex.get_sentence_boundaries(LANGUAGE, text + NEXT):
        piece = text[boundary["start_index"] : boundary["end_index"]].rstrip()
        is_cut_number = boundary["end_index"] > len(text) and re.search(r"\d\.$", piece)
        if boundary["end_index"] <= len(text) + 1 and END.search(piece) and not is_cut_number:
            end = boundary["start_index"] + len(piece)
    return text[:end]
