"""Documents longer than the generator's context are split; nothing is lost, and no sentence is cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.generation import sections as sections_module
from data.generation.sections import BYTES_PER_TOKEN, document_uid, size, split_document, split_for_server, split_long
from tasks.documents import Document, article_text

SENTENCE = "Sentence {} of chapter {} tells of the lamp and its keeper."


def make(text: str) -> Document:
    return Document("a-book-1234", "A book", "Ann Hay", "1950", text, family_first=False)


def book(chapters: int = 6, paragraphs: int = 5, sentences: int = 8) -> str:
    return "\n\n".join(
        f"## Chapter {c}\n\n"
        + "\n\n".join(" ".join(SENTENCE.format(f"{p}.{n}", c) for n in range(sentences)) for p in range(paragraphs))
        for c in range(chapters)
    )


def body(section: Document) -> str:
    return re.sub(r"^\(Section \d+ of \d+\)\n\n", "", section.text)


def test_short_documents_stay_as_they_are():
    document = make("A short text.")
    assert split_document(document, 100) == [document]
    assert split_document(document, 100)[0] is document


def test_sections_carry_the_title_and_begin_at_headings():
    document = make(book())
    sections = split_document(document, 1600)
    assert len(sections) > 2
    for number, section in enumerate(sections, 1):
        assert article_text(section).startswith("A book\nby Ann Hay (1950)\n\n")
        assert section.uid == f"a-book-1234.section{number}of{len(sections)}"
        assert document_uid(section.uid) == document.uid
        assert size(body(section)) <= 1600 * BYTES_PER_TOKEN
        assert body(section).startswith("## Chapter")
    assert len({section.uid for section in sections}) == len(sections)
    assert "".join(map(body, sections)).split() != [] and " ".join(map(body, sections)).split() == book().split()


def test_no_sentence_is_cut_in_a_long_paragraph():
    text = " ".join(SENTENCE.format(n, 1) for n in range(300))
    sections = split_document(make(text), 500)
    assert all(body(section).startswith("Sentence") and body(section).endswith("keeper.") for section in sections)
    assert " ".join(map(body, sections)).split() == text.split()


def test_lengths_are_balanced():
    sections = split_document(make(book(chapters=1, paragraphs=21)), 1000)
    lengths = [size(body(section)) for section in sections]
    assert min(lengths) > 0.5 * max(lengths)


@pytest.mark.parametrize("text", ["x" * 5000, "word " * 2000, "a | b | c\n" * 900, "字" * 3000])
def test_texts_without_sentences_are_split_too(text):
    sections = split_document(make(text), 300)
    assert all(size(body(section)) <= 300 * BYTES_PER_TOKEN for section in sections)
    assert "".join("".join(map(body, sections)).split()) == "".join(text.split())


@given(
    text=st.lists(
        st.sampled_from(
            ["A sentence.", "Another one is here!", "\n\n", "## H\n\n", "x" * 700, "No end", " ", "第一句。"]
        ),
        max_size=80,
    ).map(" ".join),
    max_tokens=st.integers(60, 400),
)
def test_nothing_is_lost(text, max_tokens):
    sections = split_document(make(text), max_tokens)
    assert "".join("".join(map(body, sections)).split()) == "".join(text.split())
    if len(sections) > 1:
        assert all(size(body(section)) <= max_tokens * BYTES_PER_TOKEN for section in sections)


def test_documents_keep_their_order():
    documents = [make("Short."), make(book()), make("Also short.")]
    sections = split_long(documents, 1000)
    assert [sections[0], sections[-1]] == [documents[0], documents[2]]


@pytest.mark.parametrize(("bytes_per_token", "parts"), [(4, 1), (2, 2), (None, 2)])
def test_llama_cpp_counts_what_the_estimate_would_split(home, server, bytes_per_token, parts):
    """A document of 7,000 bytes, in a context that leaves 2,000 tokens."""
    server.slots, server.slot_context = 1, 2000 + 100 + sections_module.PROMPT_TOKENS
    server.habits.count = lambda text: len(text) // (bytes_per_token or 4)
    if not bytes_per_token:
        server.slots, server.max_model_len = 0, server.slot_context  # another server
    document = make((SENTENCE.format(1, 1) + " ") * 120)
    assert 3 * 2000 < size(document.text) < 4 * 2000
    assert len(split_for_server([document], "fake", server.url, 100)) == parts
