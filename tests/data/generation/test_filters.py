import json

import pytest

from data.generation import filters
from data.generation.filters import words_of
from tests.conftest import ROOT, error_line, succeed
from utils import paths

SOURCE = "The keeper of the northern light counted eleven ships before the storm took the jetty away."
GRAMS = set(filters.ngrams(words_of(SOURCE), filters.COPIED_N))


def test_copies_loops_and_refusals():
    assert filters.copied_share(words_of(SOURCE), GRAMS) == 1
    assert filters.copied_share(words_of("Eleven ships were counted that night."), GRAMS) == 0
    assert filters.passage_score(words_of(SOURCE), SOURCE, GRAMS) == 0
    loop = "and the light " * 50
    assert filters.passage_score(words_of(loop), loop, GRAMS) == pytest.approx(3 / 148)
    own = "Before the weather broke, the man at the lamp had seen eleven vessels go by."
    assert filters.passage_score(words_of(own), own, GRAMS) == 1


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("**I cannot** discuss this text.", True),
        ("# As an AI language model, I …", True),
        ("I can see why the keeper stayed.", False),
        ("The keeper said: I'm sorry.", False),
        ("", False),
    ],
)
def test_refusals(text, refuses):
    assert filters.is_refusal(text) == refuses


def test_duplicates():
    found = filters.Duplicates()
    text = " ".join(f"word{n}" for n in range(200))
    assert found.add("a", words_of(text)) == ""
    assert found.add("b", words_of(text.upper() + " .")) == "exact"
    assert found.add("c", words_of(text.replace("word7 ", "other "))) == "near"
    assert found.add("d", words_of(" ".join(f"thing{n}" for n in range(200)))) == ""


def test_entities_not_in_the_document():
    names = ["the northern light", "Captain Ahab", "eleven ships", "jetties", "UN"]
    assert filters.entities_not_in(names, SOURCE) == ["Captain Ahab", "UN"]
    names = ["Jones", "Jon", "Williams", "the strikers’ banner", "灯塔", "灯台"]
    assert filters.entities_not_in(names, "Jon and William saw the strikers' flag at 灯塔.") == [
        "Jones",
        "Williams",
        "灯台",
    ]


THAI = "ผู้ดูแลประภาคารนับเรือได้สิบเอ็ดลำก่อนพายุจะมาถึง"
CHINESE = "北灯塔的看守人在暴风雨卷走码头之前数到了十一艘船。"
HINDI = "उत्तरी प्रकाश स्तंभ के रखवाले ने तूफ़ान से पहले ग्यारह जहाज़ गिने थे"


@pytest.mark.parametrize("text", [THAI, CHINESE, HINDI])
def test_copies_loops_and_duplicates_in_other_scripts(text):
    """Copies, loops and near duplicates are found in scripts without spaces, and in one with combining marks."""
    import unicodedata

    source = set(filters.ngrams(words_of(text), filters.COPIED_N))
    copy = words_of(unicodedata.normalize("NFD", text))
    assert filters.copied_share(copy, source) == 1
    assert filters.passage_score(copy, text, source) == 0
    other = "。".join(chr(0x4E00 + 7 * n) + chr(0x0E01 + n % 40) for n in range(40))
    assert filters.passage_score(words_of(other), other, source) > 0.9
    assert filters.distinct_share(words_of(f"{text} " * 20)) < 0.1
    found, long = filters.Duplicates(), f"{text} {other} " * 2
    assert found.add("a", words_of(long)) == ""
    assert found.add("b", words_of(long[:-8])) == "near"


def test_the_example_corpus_and_min_quality(home, tiny_model):
    folder = ROOT / "data/example/passages"
    out = succeed("data/inspect_entigraph.py", "--task", "example", "--input", folder)
    figures = json.loads(out.splitlines()[-1])
    assert (figures["documents"], figures["passages"]) == (12, 144)
    for name in ("truncated", "refusals", "exact_duplicates", "near_duplicates", "unknown_files"):
        assert figures[name] == 0, name
    assert figures["copied_8grams"] < 0.05
    saved = json.loads((paths.out_dir() / "inspection-passages.json").read_text())
    assert saved["figures"] == figures
    assert len(saved["passages"]["words"]) == 144
    assert saved["documents"][0]["pairs"]
    tokenize = ("data/tokenize_entigraph.py", "--task", "example", "--tokenizer", tiny_model)
    tokenize += ("--input", folder, "--min_quality")
    out = succeed(*tokenize, 0.95)
    kept = int(out.split(" of 144 passages")[0].split()[-1])
    assert 0 < kept < 144
    assert f"{kept} documents" in out
    assert "no passage is left" in error_line(*tokenize, 1.1)


def test_an_empty_folder_names_the_step(home):
    assert "data/entigraph.py" in error_line("data/inspect_entigraph.py", "--task", "example")
