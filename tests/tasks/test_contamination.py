import json
import unicodedata
from pathlib import Path

import pytest

from tasks import contamination
from tests.conftest import ROOT, succeed
from utils import paths
from utils.io import sha256_file

LONG = "In which of the three harbours did the keeper of the lamp first learn about the wreck?"


def test_thirteen_consecutive_words():
    def leaked(text, *training):
        return bool(contamination.find_contaminated({"q": [text]}, training))

    assert leaked(LONG, f"before. {LONG.upper()} after")
    words = LONG.split()
    assert leaked(LONG, " ".join(words[2:15]).replace(" ", ",\n"))  # punctuation does not matter
    assert not leaked(LONG, " ".join(words[2:14]))  # twelve
    assert not leaked(LONG, " ".join(words[:8]), " ".join(words[8:]))  # not across documents
    assert leaked(" ".join(words[:9]), LONG)  # a text of nine words must match in full
    assert not leaked(" ".join(words[:7]), LONG)  # seven words are too few
    assert not leaked("", LONG)
    assert not leaked(LONG, "")


@pytest.mark.parametrize(
    "question",
    [
        "北灯塔的看守人在暴风雨之前数到了几艘船？",
        "เหตุใดผู้ดูแลประภาคารจึงไม่กลับบ้านในคืนนั้น",
        "उत्तरी प्रकाश स्तंभ के रखवाले ने तूफ़ान से पहले कितने जहाज़ गिने थे और क्यों",
        "Tại sao người gác hải đăng không trở về nhà vào đêm bão hôm ấy vậy",
    ],
)
def test_other_scripts(question):
    """A question is found within a sentence without spaces, and in both normal forms of Unicode."""
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, question)
        assert contamination.find_contaminated({"q": [question]}, [f"以前{text}以后"]) == {"q"}
    changed = "".join(question[n] if n % 7 else "灯" for n in range(len(question)))
    assert not contamination.find_contaminated({"q": [question]}, [changed])


def test_one_text_of_several_is_enough():
    texts = {"a": ["Who?", LONG], "b": ["What?", "Nothing"], "c": [LONG]}
    assert contamination.find_contaminated(texts, [LONG]) == {"a", "c"}


def test_evaluation_reports_contamination(home, tiny_model, tmp_path):
    """A checkpoint trained on articles, one of which contains the text of a question."""
    articles = [json.loads(line) for line in (ROOT / "data/example/articles.jsonl").read_text().splitlines()]
    questions = [q for article in articles for q in article["questions"]]
    question = next(q for q in questions if len(q["question"].split()) >= 8)
    articles[0]["article"] += "\n\n" + question["question"]
    raw = home / "data/dataset/raw/mine.jsonl"
    raw.parent.mkdir(parents=True)
    raw.write_text("".join(json.dumps(article) + "\n" for article in articles))
    succeed("data/tokenize_entigraph.py", "--task", "mine", "--raw", "--tokenizer", tiny_model)
    run = {
        "arguments": {"model_name": "base"},
        "data": {"train": {"file": str(paths.articles_bin("mine")), "sha256": sha256_file(paths.articles_bin("mine"))}},
    }
    checkpoint = home / "ckpts/trained"
    checkpoint.mkdir(parents=True)
    for path in Path(tiny_model).iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    (checkpoint / "run.json").write_text(json.dumps(run))
    command = ("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", checkpoint)
    out = succeed(*command)
    result = json.loads(paths.evaluation_file("trained").read_text())
    assert question["question_unique_id"] in result["leakage"]["leaked"]
    n = len(result["leakage"]["leaked"])
    assert f"contamination: {n} of 84 questions" in out
    assert result["leakage"]["n_without"] == 84 - n
    assert result["leakage"]["training"] == ["mine_all-raw.bin"]
    run["data"]["train"]["sha256"] = "another"
    (checkpoint / "run.json").write_text(json.dumps(run))
    paths.evaluation_file("trained").unlink()
    assert "was replaced after training" in succeed(*command)
    paths.articles_bin("mine").unlink()
    paths.evaluation_file("trained").unlink()
    assert "contamination: unknown (" in succeed(*command)
