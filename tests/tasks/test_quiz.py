import json
import re
import signal
import time
from collections import Counter

import numpy as np
import pytest

from tasks import quiz
from tasks.documents import Document, load_task
from tests.conftest import ROOT, error_line, run_script, start_script, succeed
from utils import paths

DOCUMENT = Document("lamp-1", "The Lamp", "Doe, Jo", "", "The keeper is called Ada. Her gull is Bo.")
KEEPER = ("Who is the keeper in The Lamp?", "Ada", ["Eve", "Ivy", "Una"])


def questions_reply(*questions) -> str:
    named = [{"question": q, "right": right, "wrong": wrong} for q, right, wrong in questions]
    return f"Here it is:\n```json\n{json.dumps({'questions': named})}\n```"


def test_dropped_questions_and_reasons():
    reply = questions_reply(
        KEEPER,
        ("Who keeps it?", "Ada", ["Eve", "Ivy", "Una"]),
        ("In The Lamp, what is the gull called?", "Bo", ["Cy", "bo", "Di"]),
        ("In The Lamp, why is it dark?", "Because the keeper has gone to the mainland for oil", ["Fog", "Rain", "Age"]),
        ("In The Lamp, who is the keeper?", "Ada", ["Eve", "Ivy", "Zoe"]),
        ("In The Lamp, how old is the house?", "A year", ["A week", "A month"]),
    )
    drafts = quiz.parse(reply, DOCUMENT)
    assert len(drafts) == 5
    kept, dropped = quiz.screen_drafts(drafts, DOCUMENT)
    assert [draft.text for draft in kept] == [KEEPER[0]]
    assert dropped == {"unnamed": 1, "options alike": 1, "length gives it away": 1, "duplicate": 1}
    for bad in ("no JSON", '{"questions": 3}', "[]"):
        with pytest.raises(ValueError, match="JSON|questions"):
            quiz.parse(bad, DOCUMENT)


def test_option_orders_are_seeded_and_move_the_right_option():
    (draft,) = quiz.parse(questions_reply(KEEPER), DOCUMENT)
    orders = quiz.option_orders(draft, 4, 0)
    assert sorted(int(np.flatnonzero(order == 0)[0]) for order in orders) == [0, 1, 2, 3]
    assert all(sorted(order.tolist()) == [0, 1, 2, 3] for order in orders)
    again = quiz.option_orders(draft, 4, 0)
    assert all((one == other).all() for one, other in zip(orders, again, strict=True))
    prompt = quiz.open_prompt(DOCUMENT, draft, orders[0])
    assert f"{'ABCD'[list(orders[0]).index(0)]}. Ada" in prompt
    assert "Her gull is Bo" in prompt
    assert "Her gull is Bo" not in quiz.closed_prompt(draft, orders[0])


def test_positions_of_right_options_are_balanced():
    drafts = [quiz.DraftQuestion(f"x-{n}", f"q{n}", ("right", "a", "b", "c")) for n in range(22)]
    records = quiz.build_records([(DOCUMENT, draft) for draft in drafts], 0)
    questions = [question for record in records for question in record["questions"]]
    assert all(q["options"][q["gold_label"] - 1] == "right" for q in questions)
    assert sorted(Counter(q["gold_label"] for q in questions).values()) == [5, 5, 6, 6]
    assert records == quiz.build_records([(DOCUMENT, draft) for draft in drafts], 0)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "islands"
    folder.mkdir()
    for line in (ROOT / "data/example/articles.jsonl").read_text().splitlines()[:6]:
        article = json.loads(line)
        (folder / f"{article['article_id']}.md").write_text(f"# {article['title']}\n\n{article['article']}")
    return folder


def scripted_reply(prompt: str) -> str:
    """Scripted model. Of its four questions per document one is good, one needs no document, one is not answered by the
    document, and one does not name it."""
    shown = dict(re.findall(r"^([ABCD])\. (.*)$", prompt, re.M))
    known = {text: letter for letter, text in shown.items()}
    if "Write 4 multiple-choice" in prompt:
        title = re.search(r'by its title, "(.*)"\.', prompt)[1]
        return questions_reply(
            (f"In {title}, what is lost?", "a lamp", ["a rope", "a boat", "a bell"]),
            (f"Which colour has the sky of {title} by day?", "blue", ["rust", "jade", "pink"]),
            (f"By {title}, whose hat was it that nobody saw?", "Eli's", ["Ian's", "Tom's", "Sam's"]),
            ("Who?", "Ann", ["Bea", "Cat", "Dot"]),
        )
    if "from the text above alone" in prompt:
        return f"Answer: {known.get('a lamp') or known.get('blue') or 'none'}"
    return f"Answer: {known.get('blue') or 'A'}"


def options(corpus, server) -> tuple:
    settings = "--per_document 4 --model m --concurrency 2"
    return ("data/make_questions.py", *settings.split(), "--corpus", corpus, "--base_url", server.url)


def test_quiz_is_written_filtered_and_evaluated(home, server, corpus, tiny_model):
    server.replies = scripted_reply
    server.faults = [500, None, "torn", "hang"]
    out = succeed(*options(corpus, server), "--timeout", 2)
    counts = json.loads(out.splitlines()[-1])
    assert counts.pop("file") == str(paths.questions_file("islands"))
    assert counts == {
        "written": 24,
        "unnamed": 6,
        "options alike": 0,
        "length gives it away": 0,
        "duplicate": 0,
        "not answered with the document": 6,
        "answered without the document": 6,
        "kept": 6,
    }
    documents = load_task("islands")
    assert [len(document.questions) for document in documents] == [1] * 6
    assert all(q.options[q.gold] == "a lamp" for d in documents for q in d.questions)
    whole, asked = paths.questions_file("islands").read_bytes(), server.requests
    again = json.loads(succeed(*options(corpus, server)).splitlines()[-1])
    assert again == counts | {"file": str(paths.questions_file("islands"))}
    assert server.requests == asked
    assert paths.questions_file("islands").read_bytes() == whole
    succeed("evaluation.py", "--task", "islands", "--protocol", "loglik", "--model_path", tiny_model)
    # Step 1 does not read the questions.
    assert "what is lost" not in paths.corpus_file("islands").read_text()


def test_killed_quiz_resumes_to_the_same_questions(home, server, corpus):
    server.replies, server.latency = scripted_reply, 0.05
    journal = paths.questions_file("islands").with_suffix(".calls.jsonl")
    process = start_script(*options(corpus, server))
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    succeed(*options(corpus, server))
    twice = sum(number > 1 for number in server.billed.values())
    assert twice <= 2  # the calls in flight at --concurrency 2
    killed = paths.questions_file("islands").read_bytes()
    paths.questions_file("islands").unlink()
    journal.unlink()
    succeed(*options(corpus, server))
    assert paths.questions_file("islands").read_bytes() == killed


def test_user_errors(home, server, corpus):
    assert "--corpus DIR or --task NAME" in error_line("data/make_questions.py")
    assert "has its questions already" in error_line("data/make_questions.py", "--task", "example")
    assert "nowhere.jsonl" in error_line("data/make_questions.py", "--task", "nowhere", "--base_url", server.url)
    server.replies = lambda prompt: "I would rather not."
    done = run_script(*options(corpus, server))
    assert done.returncode == 2
    assert "18 replies that could not be read" in done.stdout
    assert "no question was kept" in done.stderr
    assert "--base_model_url: name" in error_line(*options(corpus, server), "--base_model_url", server.url)


def test_failed_document_does_not_stop_the_others(home, server, corpus):
    server.replies = scripted_reply
    server.faults = [400]
    line = error_line(*options(corpus, server))
    assert "1 documents failed" in line
    assert len(paths.questions_file("islands").read_text().splitlines()) == 5
    assert json.loads(succeed(*options(corpus, server)).splitlines()[-1])["kept"] == 6


def test_base_model_completes_the_question(home, server, corpus):
    server.replies, server.answer = scripted_reply, " C"
    succeed(*options(corpus, server), "--base_model", "base", "--base_model_url", server.url)
    prompts = [body["prompt"] for body in server.bodies if "prompt" in body]
    assert {body["model"] for body in server.bodies if "prompt" in body} == {"base"}
    assert len(prompts) == 24
    assert all(prompt.endswith("\nAnswer:") for prompt in prompts)
    assert len(load_task("islands")[0].questions) == 2  # C is not right for every order of the options


def test_quiz_does_not_restore_a_deleted_document(home, server, corpus):
    server.replies = scripted_reply
    succeed(*options(corpus, server))
    gone = sorted(corpus.iterdir())[0]
    gone.unlink()
    succeed("data/entigraph.py", "all", "--corpus", corpus, "--dry_run")
    assert len(load_task("islands")) == 5
    assert "What is lost" not in " ".join(d.text for d in load_task("islands"))
