import json

import pytest

from tasks import results, short_answers
from tasks.documents import ShortQuestion, load_documents, load_task
from tasks.short_answers import answer_tokens, best_exact_match, best_f1, normalize_answer
from tests.conftest import ROOT, error_line, succeed
from utils import paths
from utils.errors import UserError

SHORT = ("evaluation.py", "--task", "example", "--kind", "short", "--model_path")


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("Bertil Osgood", ["Bertil Osgood"], 1, 1),
        ("  the  BERTIL\tOsgood. ", ["Bertil Osgood"], 1, 1),  # case, article, white space, punctuation
        ("a one-eyed goose", ["one eyed goose"], 0, 0.4),  # punctuation goes without a space: oneeyed goose
        ("one-eyed goose", ["a one-eyed goose"], 1, 1),
        ("Osgood", ["Bertil Osgood"], 0, 2 / 3),
        ("Bertil Osgood drew the lens", ["Bertil Osgood"], 0, 2 / 3),  # 2 of 4 and 2 of 2
        ("black black pumice", ["black pumice"], 0, 0.8),  # bags: black counts once
        ("pumice", ["black pumice", "pumice"], 1, 1),  # the best of all answers
        ("the Lamp", ["a lamp", "lantern"], 1, 1),
        ("theatre", ["atre"], 0, 0),  # articles are whole words
        ("an", ["the"], 1, 1),  # both are empty once normalised
        ("", ["lamp"], 0, 0),
        ("...", ["lamp"], 0, 0),
        ("“Dark”", ["Dark"], 0, 0),  # only ASCII punctuation, as in SQuAD's script
        ("1,931", ["1931"], 1, 1),
        ("三十九年", ["三十九天"], 0, 0.75),  # characters in scripts without spaces, as in MLQA
    ],
)
def test_squads_rules(answer, references, exact, f1):
    assert best_exact_match(answer, references) == exact
    assert best_f1(answer, references) == pytest.approx(f1)


def test_normal_form():
    assert normalize_answer("The  Keeper's An\na-lamp!") == "keepers alamp"
    assert answer_tokens("The keeper's lamp") == ["keepers", "lamp"]


def test_scores_and_metrics():
    question = ShortQuestion("q", "Who?", ("Bertil Osgood", "Osgood"), False)
    assert short_answers.score(question, [short_answers.short_attempt(question, " Osgood \n### Question")]) == {
        "hard": False,
        "answer": "Osgood",
        "exact_match": 1,
        "f1": 1,
    }
    failed = short_answers.score(question, [{"error": "500"}])
    assert (failed["answer"], failed["exact_match"], failed["f1"]) == ("", 0, 0)
    rows = [
        {"document": n // 5, "answer": "x" * (n > 0), "exact_match": n % 2, "f1": 0.5 + n % 2 / 2} for n in range(20)
    ]
    metrics = short_answers.metrics(rows)
    assert (metrics["n"], metrics["exact_match"], metrics["f1"], metrics["attempt_rate"]) == (20, 0.5, 0.75, 0.95)
    low, high = metrics["ci95"]
    assert 0.3 < low < 0.5 < high < 0.7
    low, high = metrics["f1_ci95"]
    assert 0.63 < low < 0.75 < high < 0.85  # of half the spread


def write_task(home, **changed):
    item = {"question_unique_id": "q1", "question": "Who drew it?", "answer": "Bertil Osgood", "aliases": ["Osgood"]}
    path = paths.corpus_file("lamp")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": "The Lamp", "article": "Text.", "questions": [item | changed]}) + "\n")
    return path


def test_short_questions_of_a_file(home):
    path = write_task(home)
    (document,) = load_task("lamp", "short")
    assert document.questions == [ShortQuestion("q1", "Who drew it?", ("Bertil Osgood", "Osgood"), False)]
    assert not load_documents([path], "")[0].questions  # none has options
    write_task(home, aliases=None, fact="Bertil Osgood drew it.")
    assert load_task("lamp", "short")[0].questions[0].answers == ("Bertil Osgood",)
    for changed in (
        {"answer": " "},
        {"answer": 3},
        {"aliases": "Osgood"},
        {"aliases": ["Osgood", ""]},
        {"question": ""},
    ):
        write_task(home, **changed)
        with pytest.raises(UserError, match="question q1: the question, answer or an alias is blank"):
            load_task("lamp", "short")
    with pytest.raises(UserError, match="--kind short: QuALITY"):
        load_task("quality", "short")


def served(server, *flags):
    return (*SHORT, "served", "--base_url", server.url, *flags)


def test_evaluation_over_a_server(home, server):
    server.answer = " Bertil Osgood\n### Question\nIn the context of"
    server.faults = [500, None, "torn"]
    out = succeed(*served(server))
    metrics = json.loads(out.splitlines()[-1])
    target = paths.evaluation_file("served", kind="short")
    assert metrics.pop("file") == str(target)
    assert target.name == "shortqa-served.json"
    keys = "n exact_match ci95 f1 f1_ci95 attempt_rate"
    assert list(metrics) == keys.split()
    golds = [question.answer for document in load_task("example") for question in document.questions]
    assert (metrics["n"], metrics["exact_match"]) == (84, round(golds.count("Bertil Osgood") / 84, 4))
    assert metrics["ci95"][0] <= metrics["exact_match"] <= metrics["ci95"][1]
    body = server.bodies[0]
    assert body["prompt"].count("### Question") == 6
    assert body["prompt"].endswith("\nAnswer:")
    assert (body["stop"], body["temperature"], body["max_tokens"]) == (["\n"], 0.0, 32)
    shown = body["prompt"].split("### Question")[-1]
    assert "A. " not in shown
    assert not [gold for gold in golds if gold in shown and gold not in shown.split("\nAnswer:")[0].partition(": ")[2]]
    asked = server.requests
    assert succeed(*served(server)).splitlines()[-1] == out.splitlines()[-1]
    assert server.requests == asked  # finished before
    (record,) = [q for d in json.loads(target.read_text())["documents"] for q in d["questions"] if q["exact_match"]]
    assert record["answers"] == ["Bertil Osgood"]
    assert "options" not in record


def test_unanswered_questions_are_wrong(home, server):
    server.answer = "\n"
    metrics = json.loads(succeed(*served(server, "--few_shot", 0)).splitlines()[-1])
    assert (metrics["exact_match"], metrics["f1"], metrics["attempt_rate"]) == (0, 0, 0)
    server.faults = [400]
    assert "1 questions were not answered" in error_line(*served(server, "--few_shot", 1))
    server.faults = [400]
    again = json.loads(succeed(*served(server, "--few_shot", 1, "--give_up")).splitlines()[-1])
    assert again["n"] == 84


def test_local_model_open_book_and_comparison(home, server, tiny_model):
    first = json.loads(succeed(*SHORT, tiny_model, "--max_tokens", 4, "--few_shot", 1).splitlines()[-1])
    rag = ("--rag", "--retriever", "bm25", "--top_k", 1, "--max_tokens", 4, "--few_shot", 1)
    opened = json.loads(succeed(*SHORT, tiny_model, *rag).splitlines()[-1])
    assert opened["file"].endswith("out/rag/shortqa-tiny-chunk1024-k1-best_last.json")
    result = json.loads(paths.evaluation_file(str(tiny_model), kind="short").read_text())
    assert {len(q["attempts"]) for d in result["documents"] for q in d["questions"]} == {1}
    server.answer = " black pumice"
    succeed(*served(server, "--max_tokens", 4, "--few_shot", 1))
    files = [first["file"], paths.evaluation_file("served", kind="short")]
    compared = json.loads(succeed("evaluation.py", "--compare", *files).splitlines()[-1])
    assert compared["n"] == 84
    assert compared["accuracies"] == [first["exact_match"], round(1 / 84, 4)]
    assert compared["f1"]["accuracies"][0] == pytest.approx(first["f1"], abs=1e-4)
    assert compared["f1"]["ci95"][0] <= compared["f1"]["difference"] <= compared["f1"]["ci95"][1]
    succeed("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", tiny_model)
    files[1] = paths.evaluation_file(str(tiny_model))
    assert "other name (short and loglik)" in error_line("evaluation.py", "--compare", *files)


def test_user_errors(home, tmp_path):
    assert "--protocol: for --kind choice" in error_line(*SHORT, "m", "--protocol", "letter")
    assert "--select: for --kind choice" in error_line(*SHORT, "m", "--select", "first")
    write_task(home, answer=None)
    command = ("evaluation.py", "--task", "lamp", "--kind", "short", "--model_path", "m")
    assert "data/make_questions.py --kind short" in error_line(*command)
    examples = tmp_path / "mine.md"
    examples.write_text("### Question\nWho?\nAnswer: I\n")
    assert "--few_shot 2" in error_line(*SHORT, "m", "--few_shot", 2, "--examples", examples)


def test_shipped_examples_are_in_the_prompts_format():
    text = (ROOT / "tasks/prompts/short_examples.md").read_text()
    examples = text.split("### Question\n")[1:]
    assert len(examples) == 5
    assert all(len(one.split("\n")) == 4 and one.split("\n")[1].startswith("Answer: ") for one in examples)


def test_described_metrics():
    metrics = {"n": 84, "exact_match": 0.1, "ci95": [0.05, 0.15], "f1": 0.2, "f1_ci95": [0.1, 0.3]}
    text = "exact match 10.0% (5.0% to 15.0%), F1 20.0% (10.0% to 30.0%) of 84 questions"
    assert results.describe_metrics(metrics) == text
