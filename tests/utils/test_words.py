import re

import pytest

from tests.conftest import ROOT
from utils.words import has_unspaced_script, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The keeper's B-17.", ["the", "keeper", "s", "b", "17"]),
        ("灯塔 Orr 人", ["灯", "塔", "orr", "人"]),
        ("灯台の町", ["灯", "台", "の", "町"]),
        ("ไม่กลับ", ["ไ", "ม่", "ก", "ลั", "บ"]),
        ("हिन्दी स्तंभ", ["हिन्दी", "स्तंभ"]),
        ("كِتَابٌ جديد", ["كِتَابٌ", "جديد"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("서울 사람", ["서울", "사람"]),
        ("Cafe\u0301", ["café"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_words_of_english_are_those_of_the_regular_expressions_before():
    text = (ROOT / "data/example/articles.jsonl").read_text() + " “Café” l’été naïve – x² 3.5% ½"
    assert words_of(text) == re.findall(r"\w+", text.lower())
    assert words_of(text, "'’-") == re.findall(r"[\w'’-]+", text.lower())


def test_scripts_without_spaces():
    assert [has_unspaced_script(text) for text in ("Orr", "서울", "灯", "Café ไ")] == [False, False, True, True]
