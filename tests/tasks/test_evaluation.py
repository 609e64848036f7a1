import json
import signal
import time

import pytest

from tasks import multiple_choice
from tasks.documents import load_task
from tests.conftest import error_line, run_script, start_script, succeed
from utils import paths
from utils.errors import UserError

LOGLIK = ("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path")
COT = (
    "evaluation.py",
    "--task",
    "example",
    "--n_samples",
    2,
    "--max_tokens",
    8,
    "--temperature",
    "0.7",
    "--batch_size",
    16,
    "--model_path",
)


@pytest.fixture(scope="module")
def model(tiny_model):
    from inference.local_model import LocalModel

    return LocalModel(str(tiny_model))


def plain_logprob(model, prompt: str, option: str) -> float:
    """The same figure by the plainest way: one text, one forward pass, no batch, no padding."""
    import torch

    start = len(model.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([model.tokenizer(prompt + option)["input_ids"]])
    with torch.no_grad():
        logprobs = model.model(ids).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))


def test_shared_prompts_give_the_plain_likelihoods(model):
    prompts = ["A short prompt:", "A much longer prompt, of many more words than the other one. Answer:"]
    options = [[" yes", " no, and then some more words", " maybe"], [" a", " b b b", " c"]]
    found = model.continuation_logprobs(prompts, options)
    for prompt, group, sums in zip(prompts, options, found, strict=True):
        assert sums == pytest.approx([plain_logprob(model, prompt, option) for option in group], abs=1e-4)


def test_what_prompts_share_changes_nothing(model):
    """Questions about one article, options that begin alike, one that another goes on from, a row that
    is full: every figure is the plain one."""
    prompts = [f'In the context of "The Lamp": {question}\nAnswer:' for question in ("Who?", "Where was it?", "Who?")]
    options = [
        [" the old man", " the old man and his dog", " the"],
        [" here", " there", " here"],
        [" nobody", " the old"],
    ]
    many = 40 * prompts, 40 * options
    found = model.continuation_logprobs(*many)
    for number in (0, 1, 2, 118, 119):
        prompt, group = many[0][number], many[1][number]
        plain = [plain_logprob(model, prompt, option) for option in group]
        assert found[number] == pytest.approx(plain, abs=1e-4)


def test_completions_are_seeded_and_cut(model):
    def complete(seed):
        return model.complete(["One day", "The lamp at the head of"], 3, 0.9, 12, "\n###", seed)

    first = complete(1)
    assert [len(group) for group in first] == [3, 3]
    assert first == complete(1)
    assert first != complete(2)
    greedy = model.complete(["One day"], 1, 0, 20, "\n###", 0)[0][0]
    assert len(greedy) > 4
    assert model.complete(["One day"], 1, 0, 20, greedy[2:4], 0)[0][0] == greedy.split(greedy[2:4])[0]


def test_the_output_file(home, tiny_model):
    out = succeed(*LOGLIK, tiny_model)
    metrics = json.loads(out.splitlines()[-1])
    target = paths.evaluation_file(str(tiny_model))
    result = json.loads(target.read_text())
    assert metrics.pop("file") == str(target)
    assert result["metrics"] == metrics
    assert list(metrics) == [
        "n",
        "accuracy",
        "ci95",
        "attempt_rate",
        "accuracy_attempted",
        "hard",
        "non_hard",
        "val",
        "test",
    ]
    assert metrics["n"] == 84
    assert metrics["attempt_rate"] == 1
    assert 0.05 < metrics["accuracy"] < 0.5  # a model that knows nothing
    documents = load_task("example")
    assert [d["title"] for d in result["documents"]] == [d.title for d in documents]
    question = result["documents"][3]["questions"][2]
    assert question["options"] == list(documents[3].questions[2].options)
    (attempt,) = question["attempts"]
    assert attempt["answer_content"] == question["options"][attempt["answer_index"]]
    assert result["protocol"]["name"] == "loglik"
    assert not list(paths.out_dir().glob("*.partial.jsonl"))
    stamp = paths.evaluation_file(str(tiny_model)).stat().st_mtime_ns
    assert succeed(*LOGLIK, tiny_model) == out  # again: nothing is computed, nothing appended
    assert paths.evaluation_file(str(tiny_model)).stat().st_mtime_ns == stamp


def test_a_killed_evaluation_goes_on_and_ends_alike(home, tiny_model, tmp_path):
    target = paths.evaluation_file(str(tiny_model))
    succeed(*COT, tiny_model)
    whole = target.read_bytes()
    target.unlink()

    def answered() -> int:
        return sum(path.read_bytes().count(b"\n") for path in paths.out_dir().glob("*.partial.jsonl"))

    process = start_script(*COT, tiny_model)
    while answered() <= 20:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 20 < answered() < 84
    succeed(*COT, tiny_model)
    assert target.read_bytes() == whole


def test_a_server_of_ones_own(home, server):
    """A server that ignores `n` and fails now and then: every attempt is there all the same."""
    server.faults = [429, 500, "torn", None, "bad_json"]
    out = succeed(
        "evaluation.py", "--task", "example", "--model_path", "served", "--base_url", server.url, "--n_samples", 2
    )
    result = json.loads(paths.evaluation_file("served").read_text())
    metrics = json.loads(out.splitlines()[-1])
    golds = [q.gold for d in load_task("example") for q in d.questions]
    assert metrics["accuracy"] == round(golds.count(1) / 84, 4)  # it always says B
    assert all(len(q["attempts"]) == 2 for d in result["documents"] for q in d["questions"])
    assert sum(server.billed.values()) == 2 * 84 + server.spoiled
    prompt = server.bodies[0]["prompt"]
    assert prompt.count("### Question") == 6
    assert prompt.endswith("### Thought and answer\n")
    assert 'In the context of "An Orchestra of Fog Horns" by Calliope Penrose (1992): ' in prompt
    assert "whale-grey soapstone" not in prompt.split("A. ")[0]


def test_unreadable_answers_are_wrong_and_not_missing(home, server):
    server.answer = "I do not know."
    out = succeed(
        "evaluation.py", "--task", "example", "--model_path", "served", "--base_url", server.url, "--n_samples", 1
    )
    metrics = json.loads(out.splitlines()[-1])
    assert (metrics["n"], metrics["accuracy"], metrics["attempt_rate"]) == (84, 0, 0)
    assert metrics["accuracy_attempted"] is None


def test_what_the_user_can_mend(home, tiny_model, server, tmp_path):
    assert "scripts/download_data.sh" in error_line("evaluation.py", "--model_path", tiny_model)
    assert "--model_path no/such/model" in error_line(*LOGLIK, "no/such/model")
    assert "loglik" in error_line(*LOGLIK, "served", "--base_url", server.url)
    assert "--n_samples 0" in error_line(*COT, tiny_model, "--n_samples", 0)
    (home / "ckpts/weightless").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (home / "ckpts/weightless" / name).write_bytes((tiny_model / name).read_bytes())
    assert "holds no model" in error_line(*LOGLIK, "ckpts/weightless")
    for name in ("config.json", "model.safetensors"):
        (home / "ckpts/weightless" / name).write_bytes((tiny_model / name).read_bytes())
    (home / "ckpts/weightless/tokenizer_config.json").unlink()
    assert "holds no tokenizer" in error_line(*LOGLIK, "ckpts/weightless")


def test_evaluations_of_other_protocols_are_set_aside(home, tiny_model):
    target = paths.evaluation_file(str(tiny_model))
    succeed(*LOGLIK, tiny_model)
    first = target.read_bytes()
    assert "another protocol" in succeed(*LOGLIK, tiny_model, "--batch_size", 84)
    (aside,) = (paths.out_dir() / "earlier").iterdir()
    assert aside.read_bytes() == first
    other = target.read_bytes()
    succeed(*LOGLIK, tiny_model)  # the first comes back, and nothing is computed
    assert target.read_bytes() == first
    (aside,) = (paths.out_dir() / "earlier").iterdir()
    assert aside.read_bytes() == other
    kept = [json.loads(data)["metrics"] for data in (first, target.read_bytes())]
    assert kept[0] == kept[1]


def test_a_question_that_fails_does_not_stop_the_others(home, server):
    command = (
        "evaluation.py",
        "--task",
        "example",
        "--model_path",
        "served",
        "--base_url",
        server.url,
        "--n_samples",
        1,
    )
    server.faults = [None, 400, None, 400]
    assert "2 questions were not answered" in error_line(*command)
    assert sum(server.billed.values()) == 82
    assert json.loads(succeed(*command).splitlines()[-1])["n"] == 84
    assert sum(server.billed.values()) == 84


def test_what_a_server_never_answers_can_count_as_wrong(home, server):
    server.faults = [400, 500]
    server.answer = "Answer: B."
    command = (
        "evaluation.py",
        "--task",
        "example",
        "--model_path",
        "served",
        "--base_url",
        server.url,
        "--n_samples",
        1,
    )
    metrics = json.loads(succeed(*command, "--give_up").splitlines()[-1])
    assert (metrics["n"], metrics["attempt_rate"]) == (84, round(83 / 84, 4))
    result = json.loads(paths.evaluation_file("served").read_text())
    (failed,) = [q for d in result["documents"] for q in d["questions"] if "error" in q["attempts"][0]]
    assert failed["answer"] is None
    assert "400" in failed["attempts"][0]["error"]


def test_a_server_that_hangs_is_asked_again(home, server):
    server.faults = ["hang", None, "hang"]
    command = (
        "evaluation.py",
        "--task",
        "example",
        "--model_path",
        "served",
        "--base_url",
        server.url,
        "--n_samples",
        1,
        "--timeout",
        1,
    )
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "2 calls were repeated" in done.stderr + done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["attempt_rate"] == 1


def test_which_attempt_counts_can_be_said_again(home, server):
    """--select works on the attempts that are there: nothing is asked again."""
    server.answer = "Answer: A."
    command = (
        "evaluation.py",
        "--task",
        "example",
        "--model_path",
        "served",
        "--base_url",
        server.url,
        "--n_samples",
        3,
    )
    succeed(*command)
    asked = server.requests
    path = paths.evaluation_file("served")
    result = json.loads(path.read_text())
    question = result["documents"][0]["questions"][0]
    for attempt, index in zip(question["attempts"], (None, 1, 1), strict=True):
        attempt["answer_index"] = index
    question["attempts"].insert(1, question["attempts"][0] | {"answer_index": 2})
    path.write_text(json.dumps(result))

    def counted(select):
        succeed(*command, "--select", select)
        found = json.loads(path.read_text())
        assert found["protocol"]["select"] == select
        return found["documents"][0]["questions"][0]["answer"]

    assert counted("majority") == 1
    assert counted("first") == 2
    assert counted("random") in (1, 2)
    assert server.requests == asked


def test_letters(home, tiny_model, model):
    out = succeed("evaluation.py", "--task", "example", "--protocol", "letter", "--model_path", tiny_model)
    assert json.loads(out.splitlines()[-1])["n"] == 84
    result = json.loads(paths.evaluation_file(str(tiny_model)).read_text())
    document = load_task("example")[3]
    question = document.questions[2]
    prompt = multiple_choice.build_prompt(document, question, "letter")
    assert prompt.endswith(f"D. {question.options[3]}\nAnswer:")
    shown = result["documents"][3]["questions"][2]
    expected = [plain_logprob(model, prompt, f" {letter}") for letter in "ABCD"]
    assert shown["attempts"][0]["scores"] == pytest.approx(expected, abs=1e-3)
    assert shown["answer"] == expected.index(max(expected))


def test_worked_examples_by_number_and_by_file(home, tmp_path):
    document = load_task("example")[0]

    def prompt(few_shot, examples=None):
        return multiple_choice.build_prompt(document, document.questions[0], "cot", few_shot, examples=examples)

    assert prompt(0).count("### Question") == 1
    assert prompt(5).count("### Question") == 6
    assert prompt(2).startswith(prompt(1)[:200])
    (tmp_path / "mine.md").write_text("### Question\nWho?\n### Thought and answer\nMe. Answer: A.\n\n")
    assert prompt(1, tmp_path / "mine.md").startswith("### Question\nWho?")
    with pytest.raises(UserError, match="1 examples"):
        prompt(2, tmp_path / "mine.md")


def outputs(home, tiny_model) -> tuple:
    """Two evaluations: one as it is, one in which of every second article all are right."""
    succeed(*LOGLIK, tiny_model)
    one = paths.evaluation_file(str(tiny_model))
    result = json.loads(one.read_text())
    for document in result["documents"][::2]:
        for question in document["questions"]:
            question["answer"] = question["gold"]
    other = one.with_name("other.json")
    other.write_text(json.dumps(result))
    return one, other


def test_comparing_two_evaluations(home, tiny_model):
    one, other = outputs(home, tiny_model)
    out = succeed("evaluation.py", "--compare", one, other)
    found = json.loads(out.splitlines()[-1])
    first, second = found["accuracies"]
    assert found["difference"] == pytest.approx(second - first, abs=2e-4)
    assert found["n"] == 84
    assert found["only_first"] == 0
    assert found["only_second"] == round(84 * (second - first))
    low, high = found["ci95"]
    assert 0 < low < found["difference"] < high
    assert found["p"] < 0.1  # six articles of twelve moved, all the same way: 2 in 64 by chance
    assert "p = " in out
    assert json.loads(succeed("evaluation.py", "--compare", one, one).splitlines()[-1])["p"] == 1


def test_what_cannot_be_compared_is_refused(home, tiny_model):
    one, other = outputs(home, tiny_model)
    whole = json.loads(other.read_text())

    def error_for(change):
        result = json.loads(json.dumps(whole))
        change(result)
        other.write_text(json.dumps(result))
        return error_line("evaluation.py", "--compare", one, other)

    assert "other name (loglik and letter)" in error_for(lambda r: r["protocol"].update(name="letter"))
    assert "other task" in error_for(lambda r: r["protocol"].update(task="quality"))
    assert "other select" in error_for(lambda r: r["protocol"].update(select="random"))
    assert "not the same questions" in error_for(lambda r: r["documents"].pop())
    assert "earlier version" in error_for(lambda r: r["documents"][0]["questions"][0].pop("answer"))
    other.write_text("[]")
    assert "not an output" in error_line("evaluation.py", "--compare", one, other)
    assert "nowhere.json" in error_line("evaluation.py", "--compare", one, home / "nowhere.json")


def test_options_that_do_not_go_together(home, tiny_model):
    assert "--model_path" in error_line("evaluation.py")
    assert "--few_shot: for --protocol cot" in error_line(*LOGLIK, tiny_model, "--few_shot", 2)
    assert "--select: for --protocol cot" in error_line(*LOGLIK, tiny_model, "--select", "random")
    assert "--few_shot 9" in error_line(
        "evaluation.py", "--task", "example", "--few_shot", 9, "--model_path", tiny_model
    )
