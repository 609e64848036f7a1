import textwrap

import pytest

from tasks.documents import load_documents
from tasks.line_structure import keep_structure
from tests.conftest import ROOT

ARTICLES = [document.text for document in load_documents([ROOT / "data/example/articles.jsonl"], "")]
VERSE = "The lamp is lit,\nthe fog is near,\nwe wait for it."
CODE = "def wind(turns):\n    if turns > 2:\n        raise ValueError('too many')\n    key.turn()"


def wrap(text: str, width: int) -> str:
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_wrapped_paragraphs_are_joined(width):
    for text in ARTICLES:
        assert keep_structure(wrap(text, width)) == text
        assert keep_structure(text) == text


@pytest.mark.parametrize(
    "kept",
    [
        VERSE,
        CODE,
        "- open the case\n- turn the key\n    - never three times\n\n1. one\n2. two",
        "six     2\nnine    3\ntwelve  4",
        "| hour | oil |\n|------|-----|\n| six  | 2   |",
        "> Lit at six,\n> out at nine.",
        "Harbour Office\n12 Long Street\nVell",
        f"~~~\n\n{CODE}\n\n\n# not a heading\n~~~",
    ],
)
def test_lines_that_are_kept_between_wrapped_paragraphs(kept):
    wrapped = wrap(ARTICLES[0], 72)
    assert keep_structure(f"{wrapped}\n\n{kept}\n\n\n{wrapped}\n") == f"{ARTICLES[0]}\n\n{kept}\n\n{ARTICLES[0]}"
    assert keep_structure(f"{kept}\n\nA paragraph in one line.") == f"{kept}\n\nA paragraph in one line."


def test_wrapped_list_items_and_indented_paragraphs():
    item = textwrap.fill("- " + ARTICLES[0].split("\n\n")[0], 72, subsequent_indent="  ")
    assert keep_structure(f"{wrap(ARTICLES[0], 72)}\n\n{item}").endswith("- " + ARTICLES[0].split("\n\n")[0])
    paragraphs = ARTICLES[0].split("\n\n")
    novel = "\n".join(textwrap.fill("    " + paragraph, 72) for paragraph in paragraphs)
    assert keep_structure(novel).split("\n") == paragraphs


def test_wrapped_chinese_is_joined_without_spaces():
    text = "灯塔的看守人每天晚上点灯雾来的时候他敲钟" * 8
    assert keep_structure("\n".join(textwrap.wrap(text, 36))) == text
