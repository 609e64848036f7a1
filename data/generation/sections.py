"""Documents longer than the generator's context: split into sections that carry the document's title.

A border is before a heading if there is one in the second half of a section, else between paragraphs, else between
sentences. A single sentence that is too long (a table, a text without full stops) is split between lines or words.
"""

import asyncio
import re
from collections.abc import Iterator, Set
from dataclasses import replace

from inference.client import Client
from inference.server_facts import count_tokens, read_facts
from tasks.documents import Document
from utils.sentences import split_sentences

BYTES_PER_TOKEN = 3.0  # a cautious estimate, since the tokenizer is unknown: English has 4 to 5
MAX_BYTES_PER_TOKEN = 16.0  # beyond it nothing is counted
PROMPT_TOKENS = 600  # of a prompt besides the document: the task, names or sentences, and the style
MARK = ".section"  # in the uid of a section, and so in the name of its journal
HEADING = re.compile(
    r"#{1,6}\s|(?:chapter|part|section|book)\b.{0,60}$|[IVXLC]+\.?$|\d+(?:\.\d+)*\.?\s+\S.{0,60}$", re.I
)


def split_for_server(documents: list[Document], model: str, base_url: str | None, max_tokens: int) -> list[Document]:
    """Documents of which each leaves room for the prompt and `max_tokens` of reply in the server's context, and half
    the context at least; as they are if the server does not say how long that is. llama.cpp's server counts the tokens
    of documents that would be split by the estimate alone."""

    async def ask() -> tuple[int | None, set[str]]:
        client = Client(model, base_url)
        try:
            facts = await read_facts(client)
            if not facts.context_tokens:
                return None, set()
            limit = max(facts.context_tokens - max_tokens - PROMPT_TOKENS, facts.context_tokens // 2)
            return limit, await _uids_within(limit, documents, client) if facts.slots else set()
        finally:
            await client.close()

    limit, whole = asyncio.run(ask())
    return split_long(documents, limit, whole)


async def _uids_within(limit: int, documents: list[Document], client: Client) -> set[str]:
    """The documents that have at most `limit` tokens by the server's count, though not by the estimate."""
    uids = set()
    for document in documents:
        if BYTES_PER_TOKEN < size(document.text) / limit <= MAX_BYTES_PER_TOKEN:
            tokens = await count_tokens(client, document.text)
            uids |= {document.uid} if tokens and tokens <= limit else set()
    return uids


def split_long(documents: list[Document], max_tokens: int | None, whole: Set[str] = frozenset()) -> list[Document]:
    """Documents of which none is longer than `max_tokens`, by BYTES_PER_TOKEN; the short ones, and those with a uid in
    `whole`, as they are. Prints how many are split. None: no limit."""
    if not max_tokens:
        return documents
    parts = [[document] if document.uid in whole else split_document(document, max_tokens) for document in documents]
    if long := [sections for sections in parts if len(sections) > 1]:
        count = f"{sum(map(len, long))} sections"
        print(f"{len(long)} of {len(documents)} documents are longer than {max_tokens:,} tokens: split into {count}")
    return [section for sections in parts for section in sections]


def split_document(document: Document, max_tokens: int) -> list[Document]:
    """The sections of a document. Their uids name them, so journals of other sections stay valid."""
    max_bytes = int(max_tokens * BYTES_PER_TOKEN)
    if size(document.text) <= max_bytes:
        return [document]
    texts = join_pieces(list(pieces_of(document.text, max_bytes)), max_bytes)
    return [
        replace(
            document,
            uid=f"{document.uid}{MARK}{number}of{len(texts)}",
            text=f"(Section {number} of {len(texts)})\n\n{text}",
            questions=[],
            article_sha256="",
        )
        for number, text in enumerate(texts, 1)
    ]


def document_uid(name: str) -> str:
    """The uid of the document whose journal, or the journal of whose section, has this name without its suffix."""
    return name.split(MARK)[0]


def join_pieces(pieces: list[str], max_bytes: int) -> list[str]:
    """Consecutive pieces joined to sections of about equal length, none longer than `max_bytes`."""
    total = sum(map(size, pieces))
    wanted = total / -(-total // max_bytes)  # bytes of a section
    sections, current, before, length = [], [], 0, 0  # bytes in all sections before, and in the current one
    for piece in pieces:
        due = before + length + size(piece) / 2 >= wanted * (len(sections) + 1)
        due |= length >= wanted / 2 and bool(HEADING.match(piece.strip()))
        if current and (due or length + size(piece) > max_bytes):
            current = _end_section(current, sections, max_bytes - size(piece))
            carried = sum(map(size, current))
            before, length = before + length - carried, carried
        current.append(piece)
        length += size(piece)
    sections.append("".join(current).strip())
    return [section for section in sections if section]


def _end_section(current: list[str], sections: list[str], room: int) -> list[str]:
    """End a section; returns headings at its end, which belong to the next one if that has room."""
    last = len(current)
    while last > 1 and HEADING.match(current[last - 1].strip()) and sum(map(size, current[last - 1 :])) <= room:
        last -= 1
    sections.append("".join(current[:last]).strip())
    return current[last:]


def pieces_of(text: str, max_bytes: int) -> Iterator[str]:
    """The paragraphs of a text with the empty lines after them; sentences, lines or words of longer ones."""
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, re.S):
        if size(paragraph) <= max_bytes:
            yield paragraph
            continue
        end = paragraph[len(paragraph.rstrip()) :]
        for sentence in split_sentences(paragraph):
            if size(sentence) <= max_bytes:
                yield f"{sentence} "
            else:
                yield from _words_of(sentence, max_bytes)
        yield end


def _words_of(sentence: str, max_bytes: int) -> Iterator[str]:
    """Lines or words of a sentence, joined up to `max_bytes`; a longer word is cut."""
    current = ""
    for word in re.findall(r"\S+\s*", sentence):
        for start in range(0, len(word), max(1, max_bytes // 4)):
            part = word[start : start + max(1, max_bytes // 4)]  # four bytes a character at most
            if current and size(current + part) > max_bytes:
                yield current
                current = ""
            current += part
    yield current


def size(text: str) -> int:
    return len(text.encode())
