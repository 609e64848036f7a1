import itertools
import json
import re
import signal
import time
from collections import Counter

import numpy as np
import pytest

from tasks import facts, quiz
from tasks.documents import Document, load_task
from tests.conftest import ROOT, error_line, run_script, start_script, succeed
from tests.fake_openai import FakeOpenAI
from utils import paths
from utils.io import read_jsonl

TEXT = "The keeper is called Ada. Her gull is Bo. It is dark because the keeper has gone to the mainland for oil."
DOCUMENT = Document("lamp-1", "The Lamp", "Doe, Jo", "", TEXT)
KEEPER = ("Who is the keeper in The Lamp?", "Ada", ["Eve", "Ivy", "Una"])
PARTS = 4  # each with one good question in scripted_reply's quiz
LAST_WORDS = "In the end there was a lamp, there was a blue door, there was Eli's hat, and there was Ann."


def question_reply(text: str, right: str, wrong: list[str], fact: str = TEXT) -> str:
    named = {"fact": fact, "question": text, "right": right, "wrong": wrong}
    return f"Here it is:\n```json\n{json.dumps(named)}\n```"


def drafts_of(*questions) -> list[quiz.DraftQuestion]:
    return [quiz.parse(question_reply(*one), DOCUMENT, n, TEXT, True) for n, one in enumerate(questions)]


def test_dropped_questions_and_reasons():
    drafts = drafts_of(
        KEEPER,
        ("Who keeps it?", "Ada", ["Eve", "Ivy", "Una"]),
        ("In The Lamp, what is the gull called?", "Bo", ["Cy", "bo", "Di"]),
        ("In The Lamp, why is it dark?", "Because the keeper has gone to the mainland for oil", ["Fog", "Rain", "Age"]),
        ("In The Lamp, who is the keeper?", "Ada", ["Eve", "Ivy", "Zoe"]),
        ("In The Lamp, who knows the way?", "Zoe", ["Eve", "Ivy", "Una"]),
        ("In The Lamp, is the keeper Ada?", "Ada", ["Eve", "Ivy", "Una"]),
    )
    kept, dropped = quiz.screen_drafts(drafts, DOCUMENT)
    assert [draft.text for draft in kept] == [KEEPER[0]]
    old = {"unnamed": 1, "options alike": 1, "length gives it away": 1, "duplicate": 1}
    assert dropped == old | {"answer not in the text": 1, "answer in the question": 1, quiz.COPIED: 0}
    with pytest.raises(ValueError, match="three wrong options"):
        drafts_of(("In The Lamp, how old is the house?", "A year", ["A week", "A month"]))
    for bad in ("no JSON", '{"questions": 3}', "[]", '{"question": ["Who?"], "right": "Ada"}', '{"question": "Who?"}'):
        with pytest.raises(ValueError, match="JSON|question"):
            quiz.parse(bad, DOCUMENT, 0, TEXT)


@pytest.mark.parametrize(
    ("right", "fact", "reason"),
    [
        ("a stolen key", "A stolen key was the reason.", None),
        ("a key that was stealing", "A stolen key was the reason.", quiz.UNSUPPORTED),  # one word of two
        ("stolen keys", "A stolen key was the reason.", None),  # up to endings
        ("214 people", "She took 214 people off the rocks.", None),
        ("215 people off the rocks", "She took 214 people off the rocks.", quiz.UNSUPPORTED),  # another number
        ("214 people", "A stolen key was the reason.", quiz.UNSUPPORTED),  # in the text, but not in the fact
        ("the tower", "A stolen key was the reason.", quiz.UNSUPPORTED),
    ],
)
def test_right_answers_are_in_the_text_and_in_the_fact(right, fact, reason):
    document = Document("t", "The Lamp", "", "", "A stolen key was the reason. She took 214 people off the rocks.")
    draft = quiz.DraftQuestion("t-0", "In The Lamp, which?", (right, "x", "y", "z"), fact)
    assert quiz.content_fault(draft, document, "choice") == reason


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (("a one-eyed gander", "a tame badger", "a lame donkey"), None),
        (("a one-eyed goose called Al", "a tame badger", "a lame donkey"), quiz.ALIKE),  # right as well
        (("the goose", "a tame badger", "a lame donkey"), quiz.ALIKE),
        ((), quiz.ALIKE),
        (("an owl", "a cat", "a dog"), quiz.LENGTH),
        (("her wedding ring", "a pair of oxen", "her mother's piano"), quiz.COPIED),
    ],
)
def test_options_that_cannot_be_asked(wrong, fault):
    assert quiz.option_fault(quiz.DraftQuestion("t-0", "Which?", ("a one-eyed goose", *wrong))) == fault


def test_options_have_the_same_form():
    assert quiz.plain_options("shed", "the church", "A town.", "an ice house") == [
        "shed",
        "church",
        "town",
        "ice house",
    ]
    assert quiz.plain_options("a shed.", "the church", "A town") == ["a shed", "the church", "A town"]
    assert quiz.plain_options("Robina Fenn", "J. R. Hart.") == ["Robina Fenn", "J. R. Hart."]
    assert quiz.option_fault(quiz.DraftQuestion("t-0", "Where?", ("shed", "church", "tower", "chapel"))) is None


def test_sentences():
    text = (
        "# The Tower at Long Reef\n\nMr. Osgood of St. Orm drew it, all 304 prisms of it. It ought to have been done in a "
        'day. "He was wrong on Admiral and ships off the reef," she says. "All the other young pilots were wrong seven times in a month." '
        "At J. R. Hart's it cost 3.5 marks in all!\n这座灯塔有一百六十二级台阶。她已经看守了三十九年。"
    )
    assert facts.sentences_of(text) == [
        "Mr. Osgood of St. Orm drew it, all 304 prisms of it.",
        '"He was wrong on Admiral and ships off the reef," she says.',
        '"All the other young pilots were wrong seven times in a month."',
        "At J. R. Hart's it cost 3.5 marks in all!",
        "这座灯塔有一百六十二级台阶。",
        "她已经看守了三十九年。",
    ]


def test_sentences_are_chosen_all_over_the_document():
    text = " ".join(f"Ship number {n} sailed north with coal." for n in range(40))
    document = Document("long-1", "Long", "", "", text)
    for seed in range(5):
        chosen = [index for index, _ in facts.choose_sentences(document, 40, seed)]
        assert sorted(chosen) == list(range(40))
        assert chosen == [index for index, _ in facts.choose_sentences(document, 60, seed)]
        for number in (4, 8, 20):  # the beginnings are spread too, and a larger number extends a smaller one
            assert chosen[:number] == [index for index, _ in facts.choose_sentences(document, number, seed)]
            gaps = np.diff([-1, *sorted(chosen[:number]), 40])
            assert gaps.max() <= 2.7 * 40 / number
    assert len({tuple(facts.choose_sentences(document, 4, seed)) for seed in range(5)}) == 5


def test_fact_is_in_the_words_of_the_document():
    def fact(said: str) -> str:
        return quiz.parse(question_reply(*KEEPER, said), DOCUMENT, 0, "The keeper is called Ada.").fact

    assert fact("the keeper has gone to the mainland") == "the keeper has gone to the mainland"
    assert fact("The keeper's name is Ada.") == "The keeper is called Ada."  # not said so
    assert fact("Ada") == fact("") == "The keeper is called Ada."


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("In the text, who is the keeper?", 'In "The Lamp", who is the keeper?'),
        ("According to this passage who is the keeper?", 'In "The Lamp", who is the keeper?'),
        ("In the textile mill, who is the keeper?", "In the textile mill, who is the keeper?"),
        ("Who is the keeper?", "Who is the keeper?"),
    ],
)
def test_title_takes_the_place_of_the_text(said, text):
    assert quiz.parse(question_reply(said, *KEEPER[1:]), DOCUMENT, 0, TEXT).text == text


def test_prompts_of_a_document_share_all_but_the_sentence():
    one, other = (quiz.writing_prompt(DOCUMENT, sentence, "quiz") for sentence in ("One is here.", "Two is there."))
    assert one.removesuffix("One is here.\n") == other.removesuffix("Two is there.\n")
    assert one.index(TEXT) < one.index("Write one")


def test_option_orders_are_seeded_and_move_the_right_option():
    (draft,) = drafts_of(KEEPER)
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
    return write_corpus(tmp_path / "islands", 6)


def write_corpus(folder, number: int):
    """Articles of the example that are not about a lamp. Each ends with the answers of `scripted_reply`."""
    folder.mkdir()
    for line in (ROOT / "data/example/articles.jsonl").read_text().splitlines()[1 : number + 1]:
        article = json.loads(line)
        text = f"# {article['title']}\n\n{article['article']}\n\n{LAST_WORDS}"
        (folder / f"{article['article_id']}.md").write_text(text)
    return folder


SENTENCES: dict[str, list[str]] = {}  # that were asked about, by title


def scripted_reply(prompt: str) -> str:
    """Scripted model. Of its four questions per document one is good, one needs no document, one is not answered by the
    document, and one does not name it."""
    shown = dict(re.findall(r"^([ABCD])\. (.*)$", prompt, re.M))
    known = {text: letter for letter, text in shown.items()}
    if "Write one" in prompt:
        title = re.search(r'Now the sentence of "(.*)":', prompt)[1]
        asked = SENTENCES.setdefault(title, [])
        sentence = prompt.rstrip().split("\n")[-1]
        if sentence not in asked:
            asked.append(sentence)
        return question_reply(*scripted_questions(title)[asked.index(sentence) % PARTS], LAST_WORDS)
    if "from the text above alone" in prompt:
        short = "a lamp" if "what is lost" in prompt else "blue" if "colour" in prompt else "none"
        return f"Answer: {known.get('a lamp') or known.get('blue') or 'none'}" if shown else short
    return f"Answer: {known.get('blue') or 'A'}" if shown else "It is blue." if "colour" in prompt else "A rope."


def scripted_questions(title: str) -> list[tuple]:
    return [
        (f"In {title}, what is lost?", "a lamp", ["a rope", "a boat", "a bell"]),
        (f"Which colour has the sky of {title} by day?", "blue", ["rust", "jade", "pink"]),
        (f"By {title}, whose hat was it that nobody saw?", "Eli's", ["Ian's", "Tom's", "Sam's"]),
        ("Who?", "Ann", ["Bea", "Cat", "Dot"]),
    ]


def options(corpus, server) -> tuple:
    settings = f"--per_document {PARTS} --model m --concurrency 2"
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
        "answer not in the text": 0,
        "answer in the question": 0,
        "options of the prompt's example": 0,
        "with the model's wrong options": 18,
        "with wrong options from other documents": 0,
        "too few wrong options": 0,
        "kept": 6,
    }
    formats = [body.get("response_format") for body in server.bodies if "Write one" in body["messages"][0]["content"]]
    assert {one["type"] for one in formats} == {"json_schema"}
    schema = formats[0]["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["fact", "right", "question", "wrong"]
    assert not any("response_format" in body for body in server.bodies if "Write one" not in json.dumps(body))
    facts = [q["fact"] for d in read_jsonl(paths.questions_file("islands"), "") for q in d["questions"]]
    assert facts == [LAST_WORDS] * 6
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
    assert "72 replies that could not be read" in done.stdout  # 18 for each of four sentences
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


def writing_bodies(server) -> list[dict]:
    return [body for body in server.bodies if "Write one" in json.dumps(body)]


def test_calls_of_a_document_follow_one_another(home, server, corpus):
    """All that is asked with a document comes in one go per phase, so that its prefix stays in a cache."""
    server.replies = scripted_reply
    succeed(*options(corpus, server)[:-4], "--concurrency", 1, "--corpus", corpus, "--base_url", server.url)
    titles = {}
    for body in server.bodies:
        text = body["messages"][0]["content"]
        part = "write" if "Write one" in text else "open" if "from the text above alone" in text else "closed"
        titles.setdefault(part, []).append(text.split("# Text\n\n")[-1].split("\n")[0])
    for part in ("write", "open"):
        assert len(list(itertools.groupby(titles[part]))) == 6


def test_server_that_refuses_a_schema(home, server, corpus):
    server.replies, server.habits.refuses = scripted_reply, ("response_format",)
    done = run_script(*options(corpus, server))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the server refuses `response_format`") == 1
    assert "the form of a reply is asked for by the prompt alone" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kept"] == 6


def test_unreadable_and_empty_replies_are_asked_again(home, server, corpus):
    seen = Counter()

    def reply(prompt: str) -> str:
        seen[prompt] += 1
        bad = {1: "", 2: "Let me think."}
        return bad[seen[prompt]] if "Write one" in prompt and seen[prompt] < 3 else scripted_reply(prompt)

    server.replies = reply
    counts = json.loads(succeed(*options(corpus, server)).splitlines()[-1])
    assert (counts["empty replies"], counts["replies that could not be read"]) == (24, 24)
    assert (counts["written"], counts["kept"]) == (24, 6)
    seeds = {}
    for body in writing_bodies(server):
        seeds.setdefault(body["messages"][0]["content"], []).append((body["seed"], body["temperature"]))
    assert set(map(tuple, seeds.values())) == {((0, 0.0), (1_000_003, 1.0), (2_000_006, 1.0))}
    assert json.loads(succeed(*options(corpus, server)).splitlines()[-1]) == counts
    assert sum(seen.values()) == server.requests  # the second run asked nothing


def test_model_without_a_readable_reply_is_given_up(home, server, corpus):
    server.replies = lambda prompt: "I would rather not."
    line = error_line(*options(corpus, server), "--per_document", 40)
    assert "none of its first 100 replies is a question in JSON (the last: I would rather not.)" in line
    assert len(writing_bodies(server)) <= 102  # and those in flight


def test_larger_quiz_uses_the_replies_of_a_smaller_one(home, server, corpus):
    server.replies = scripted_reply
    succeed(*options(corpus, server), "--per_document", 2)
    assert len(writing_bodies(server)) == 12
    succeed(*options(corpus, server))
    assert len(writing_bodies(server)) == 24


def test_wrong_options_from_other_documents(home, server, corpus):
    """A model without good wrong options: in auto they are replaced, with documents not even asked for."""
    words = iter(("tin", "oak", "wax", "ivy", "rye", "elm"))
    answer_of: dict[str, str] = {}

    def reply(prompt: str) -> str:
        title = re.search(r'Now the sentence of "(.*)":', prompt)
        if title:
            word = answer_of.setdefault(title[1], next(words, ""))
            wrong = 3 * ["the rope"] if '"wrong"' in prompt else []
            return question_reply(
                f"In {title[1]}, what is lost?", f"the {word} lamp", wrong, f"So the {word} lamp went."
            )
        shown = {text: letter for letter, text in re.findall(r"^([ABCD])\. (.*)$", prompt, re.M)}
        mine = [word for name, word in answer_of.items() if f"In {name}," in prompt]
        return f"Answer: {shown.get(f'the {mine[0]} lamp', 'none')}" if "above alone" in prompt else "Answer: none"

    for number, path in enumerate(sorted(corpus.iterdir())):
        word = ("tin", "oak", "wax", "ivy", "rye", "elm")[number]
        path.write_text(f"# Paper {number}\n\nAll of us in Orm knew it. So the {word} lamp went to the men of Orm.")
        answer_of[f"Paper {number}"] = word
    server.replies = reply
    counts = json.loads(succeed(*options(corpus, server)).splitlines()[-1])
    assert (counts["with wrong options from other documents"], counts["kept"]) == (6, 6)
    quiz_file = paths.questions_file("islands")
    questions = [q for d in read_jsonl(quiz_file, "") for q in d["questions"]]
    assert all(len(set(q["options"])) == 4 for q in questions)
    assert {option for q in questions for option in q["options"]} <= {f"the {w} lamp" for w in answer_of.values()}
    whole = quiz_file.read_bytes()
    quiz_file.unlink()
    succeed(*options(corpus, server))
    assert quiz_file.read_bytes() == whole
    asked = len(writing_bodies(server))
    counts = json.loads(succeed(*options(corpus, server), "--wrong_options", "documents").splitlines()[-1])
    assert counts["kept"] == 6
    schema = writing_bodies(server)[asked]["response_format"]["json_schema"]["schema"]
    assert "wrong" not in schema["properties"]
    done = run_script(*options(corpus, server), "--wrong_options", "model")
    assert "6 options alike" in done.stdout
    assert "no question was kept" in done.stderr
    assert quiz_file.read_bytes() == whole  # the finished quiz is not lost


def test_short_answers(home, server, corpus):
    def reply(prompt: str) -> str:
        answer = scripted_reply(prompt)
        return answer.replace('"wrong": ["a rope"', '"aliases": ["one old lamp", "a rope", "3 lamps"], "x": [""')

    server.replies = reply
    command = (*options(corpus, server), "--kind", "short")
    counts = json.loads(succeed(*command).splitlines()[-1])
    assert counts["file"] == str(paths.questions_file("islands", "short"))
    names = ("unnamed", "answer too long", "not answered with the document", "answered without the document", "kept")
    assert [counts[name] for name in names] == [6, 0, 6, 6, 6]
    (record, *_) = read_jsonl(paths.questions_file("islands", "short"), "")
    (question,) = record["questions"]
    assert (question["answer"], question["aliases"]) == ("a lamp", ["one old lamp"])  # a rope is not the same
    assert question["fact"] == LAST_WORDS
    documents = load_task("islands", "short")
    assert {q.answers for d in documents for q in d.questions} == {("a lamp", "one old lamp")}
    assert not any(document.questions for document in load_task("islands"))
    server.answer = " A lamp!\n"
    evaluated = succeed(
        "evaluation.py", "--task", "islands", "--kind", "short", "--model_path", "m", "--base_url", server.url
    )
    assert json.loads(evaluated.splitlines()[-1])["exact_match"] == 1
    assert "--wrong_options: for --kind choice" in error_line(*command, "--wrong_options", "model")


def test_base_model_answers_in_a_line(home, server, corpus):
    server.replies, server.answer = scripted_reply, " blue\nQuestion: and what is lost?"
    command = (*options(corpus, server), "--kind", "short", "--base_model", "base")
    counts = json.loads(succeed(*command).splitlines()[-1])
    assert (counts["answered without the document"], counts["kept"]) == (6, 6)
    body = next(body for body in server.bodies if "prompt" in body)
    assert (body["max_tokens"], body["stop"]) == (32, ["\n"])
    assert body["prompt"].endswith("?\nAnswer:")


def test_another_quiz_is_kept_beside_the_new_one(home, server, corpus):
    server.replies = scripted_reply
    succeed(*options(corpus, server))
    target = paths.questions_file("islands")
    first = target.read_bytes()
    assert "moved to" not in succeed(*options(corpus, server))
    server.replies = lambda prompt: scripted_reply(prompt).replace("what is lost", "what is gone")
    target.with_suffix(".calls.jsonl").unlink()
    out = succeed(*options(corpus, server))
    (kept,) = (target.parent / "earlier").iterdir()
    assert f"{target} had other questions; moved to {kept}" in out
    assert kept.read_bytes() == first
    assert target.read_bytes() != first


def test_replies_of_a_server_at_another_port(home, server, corpus):
    server.replies = scripted_reply
    counts = json.loads(succeed(*options(corpus, server)).splitlines()[-1])
    with FakeOpenAI(replies=scripted_reply) as elsewhere:
        assert json.loads(succeed(*options(corpus, elsewhere)).splitlines()[-1]) == counts
        assert elsewhere.requests == 0
        elsewhere.habits.model = "b"
        succeed(*options(corpus, elsewhere))
        assert elsewhere.requests  # another model: nothing of the first is used


def test_replies_of_earlier_versions_are_named(home, server, corpus):
    """They were lists of questions; none is lost, and they are not asked for anew without a word."""
    server.replies = scripted_reply
    journal = paths.quiz_journal("islands")
    journal.parent.mkdir(parents=True)
    text = json.dumps({"questions": [{"question": "Who?"}]})
    old = "".join(json.dumps({"key": digit * 32, "text": text}) + "\n" for digit in "01")
    journal.write_text(old)
    done = run_script(*options(corpus, server))
    assert f"{journal}: 2 replies by an earlier version, each a list of all questions about a document" in done.stderr
    assert journal.read_text().startswith(old)
    assert "earlier version" not in run_script(*options(corpus, server)).stderr  # nothing is asked for
