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
SAMPLING = "--n_samples 2 --max_tokens 8 --temperature 0.7 --batch_size 16"
COT = ("evaluation.py", "--task", "example", *SAMPLING.split(), "--model_path")


def served(server, n_samples: int) -> tuple:
    """Evaluation command for a model behind the fake server."""
    model = ("--model_path", "served", "--base_url", server.url)
    return ("evaluation.py", "--task", "example", *model, "--n_samples", n_samples)


@pytest.fixture(scope="module")
def model(tiny_model):
    from inference.local_model import LocalModel

    return LocalModel(str(tiny_model))


def plain_logprob(model, prompt: str, option: str) -> float:
    """Log-probability of an option from one forward pass over one text, without batch or padding."""
    import torch

    start = len(model.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([model.tokenizer(prompt + option)["input_ids"]])
    with torch.no_grad():
        logprobs = model.model(ids).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))


def test_batched_logprobs_equal_the_plain_ones(model):
    prompts = ["A short prompt:", "A much longer prompt, of many more words than the other one. Answer:"]
    options = [[" yes", " no, and then some more words", " maybe"], [" a", " b b b", " c"]]
    result = model.continuation_logprobs(prompts, options)
    for prompt, group, sums in zip(prompts, options, result, strict=True):
        assert sums == pytest.approx([plain_logprob(model, prompt, option) for option in group], abs=1e-4)


def test_shared_prefixes_do_not_change_logprobs(model):
    """Questions about one article, options with a common prefix, an option that is a prefix of another, a full row."""
    prompts = [f'In the context of "The Lamp": {question}\nAnswer:' for question in ("Who?", "Where was it?", "Who?")]
    options = [
        [" the old man", " the old man and his dog", " the"],
        [" here", " there", " here"],
        [" nobody", " the old"],
    ]
    many = 40 * prompts, 40 * options
    result = model.continuation_logprobs(*many)
    for number in (0, 1, 2, 118, 119):
        prompt, group = many[0][number], many[1][number]
        plain = [plain_logprob(model, prompt, option) for option in group]
        assert result[number] == pytest.approx(plain, abs=1e-4)


def test_completions_are_seeded_and_end_at_the_stop_string(model):
    def complete(seed):
        return model.complete(["One day", "The lamp at the head of"], 3, 0.9, 12, "\n###", seed)

    first = complete(1)
    assert [len(group) for group in first] == [3, 3]
    assert first == complete(1)
    assert first != complete(2)
    greedy = model.complete(["One day"], 1, 0, 20, "\n###", 0)[0][0]
    assert len(greedy) > 4
    assert model.complete(["One day"], 1, 0, 20, greedy[2:4], 0)[0][0] == greedy.split(greedy[2:4])[0]


def test_output_file(home, tiny_model):
    out = succeed(*LOGLIK, tiny_model)
    metrics = json.loads(out.splitlines()[-1])
    target = paths.evaluation_file(str(tiny_model))
    result = json.loads(target.read_text())
    assert metrics.pop("file") == str(target)
    assert result["metrics"] == metrics
    keys = "n accuracy ci95 attempt_rate accuracy_attempted hard non_hard val test"
    assert list(metrics) == keys.split()
    assert metrics["n"] == 84
    assert metrics["attempt_rate"] == 1
    assert 0.05 < metrics["accuracy"] < 0.5  # an untrained model
    documents = load_task("example")
    assert [d["title"] for d in result["documents"]] == [d.title for d in documents]
    question = result["documents"][3]["questions"][2]
    assert question["options"] == list(documents[3].questions[2].options)
    (attempt,) = question["attempts"]
    assert attempt["answer_content"] == question["options"][attempt["answer_index"]]
    assert result["protocol"]["name"] == "loglik"
    assert not list(paths.out_dir().glob("*.partial.jsonl"))
    stamp = paths.evaluation_file(str(tiny_model)).stat().st_mtime_ns
    assert succeed(*LOGLIK, tiny_model) == out  # the second run computes and appends nothing
    assert paths.evaluation_file(str(tiny_model)).stat().st_mtime_ns == stamp


def test_killed_evaluation_resumes_to_the_same_file(home, tiny_model, tmp_path):
    target = paths.evaluation_file(str(tiny_model))
    succeed(*COT, tiny_model)
    expected = target.read_bytes()
    target.unlink()

    def attempt_count() -> int:
        return sum(path.read_bytes().count(b"\n") for path in paths.out_dir().glob("*.partial.jsonl"))

    process = start_script(*COT, tiny_model)
    while attempt_count() <= 20:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 20 < attempt_count() < 84
    succeed(*COT, tiny_model)
    assert target.read_bytes() == expected


def test_evaluation_over_a_server(home, server):
    """A server that ignores `n` and sometimes fails: no attempt is missing."""
    server.faults = [429, 500, "torn", None, "bad_json"]
    out = succeed(*served(server, 2))
    result = json.loads(paths.evaluation_file("served").read_text())
    metrics = json.loads(out.splitlines()[-1])
    golds = [q.gold for d in load_task("example") for q in d.questions]
    assert metrics["accuracy"] == round(golds.count(1) / 84, 4)  # the server always answers B
    assert all(len(q["attempts"]) == 2 for d in result["documents"] for q in d["questions"])
    assert sum(server.billed.values()) == 2 * 84 + server.spoiled
    prompt = server.bodies[0]["prompt"]
    assert prompt.count("### Question") == 6
    assert prompt.endswith("### Thought and answer\n")
    assert 'In the context of "An Orchestra of Fog Horns" by Calliope Penrose (1992): ' in prompt
    assert "whale-grey soapstone" not in prompt.split("A. ")[0]


def test_unreadable_answers_are_wrong_and_not_missing(home, server):
    server.answer = "I do not know."
    out = succeed(*served(server, 1))
    metrics = json.loads(out.splitlines()[-1])
    assert (metrics["n"], metrics["accuracy"], metrics["attempt_rate"]) == (84, 0, 0)
    assert metrics["accuracy_attempted"] is None


def test_user_errors(home, tiny_model, server, tmp_path):
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


def test_results_of_other_protocols_are_moved_aside(home, tiny_model):
    target = paths.evaluation_file(str(tiny_model))
    succeed(*LOGLIK, tiny_model)
    first = target.read_bytes()
    assert "another protocol" in succeed(*LOGLIK, tiny_model, "--batch_size", 84)
    (aside,) = (paths.out_dir() / "earlier").iterdir()
    assert aside.read_bytes() == first
    other = target.read_bytes()
    succeed(*LOGLIK, tiny_model)  # the first file is moved back; nothing is computed
    assert target.read_bytes() == first
    (aside,) = (paths.out_dir() / "earlier").iterdir()
    assert aside.read_bytes() == other
    kept = [json.loads(data)["metrics"] for data in (first, target.read_bytes())]
    assert kept[0] == kept[1]


def test_failed_question_does_not_stop_the_others(home, server):
    command = served(server, 1)
    server.faults = [None, 400, None, 400]
    assert "2 questions were not answered" in error_line(*command)
    assert sum(server.billed.values()) == 82
    assert json.loads(succeed(*command).splitlines()[-1])["n"] == 84
    assert sum(server.billed.values()) == 84


def test_give_up_counts_failed_questions_as_wrong(home, server):
    server.faults = [400, 500]
    server.answer = "Answer: B."
    command = served(server, 1)
    metrics = json.loads(succeed(*command, "--give_up").splitlines()[-1])
    assert (metrics["n"], metrics["attempt_rate"]) == (84, round(83 / 84, 4))
    result = json.loads(paths.evaluation_file("served").read_text())
    (failed,) = [q for d in result["documents"] for q in d["questions"] if "error" in q["attempts"][0]]
    assert failed["answer"] is None
    assert "400" in failed["attempts"][0]["error"]
    billed = sum(server.billed.values())
    assert json.loads(succeed(*command, "--give_up").splitlines()[-1]) == metrics  # finished
    again = json.loads(succeed(*command).splitlines()[-1])  # without it the failed question is asked again
    assert (again["attempt_rate"], sum(server.billed.values())) == (1, billed + 1)
    assert not list(paths.out_dir().glob("*.partial*"))


def test_calls_that_time_out_are_repeated(home, server):
    server.faults = ["hang", None, "hang"]
    done = run_script(*served(server, 1), "--timeout", 1)
    assert done.returncode == 0, done.stderr
    assert "2 calls were repeated" in done.stderr + done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["attempt_rate"] == 1


def test_select_applies_to_existing_attempts(home, server):
    """Changing --select sends no requests."""
    server.answer = "Answer: A."
    command = served(server, 3)
    succeed(*command)
    requests = server.requests
    path = paths.evaluation_file("served")
    result = json.loads(path.read_text())
    question = result["documents"][0]["questions"][0]
    for attempt, index in zip(question["attempts"], (None, 1, 1), strict=True):
        attempt["answer_index"] = index
    question["attempts"].insert(1, question["attempts"][0] | {"answer_index": 2})
    path.write_text(json.dumps(result))

    def counted(select):
        succeed(*command, "--select", select)
        selected = json.loads(path.read_text())
        assert selected["protocol"]["select"] == select
        return selected["documents"][0]["questions"][0]["answer"]

    assert counted("majority") == 1
    assert counted("first") == 2
    assert counted("random") in (1, 2)
    assert server.requests == requests


def test_letter_protocol(home, tiny_model, model):
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


def test_few_shot_examples_by_number_and_file(home, tmp_path):
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


def evaluation_pair(home, tiny_model) -> tuple:
    """Two evaluations: one unchanged, one with all answers right in every second article."""
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
    one, other = evaluation_pair(home, tiny_model)
    out = succeed("evaluation.py", "--compare", one, other)
    result = json.loads(out.splitlines()[-1])
    first, second = result["accuracies"]
    assert result["difference"] == pytest.approx(second - first, abs=2e-4)
    assert result["n"] == 84
    assert result["only_first"] == 0
    assert result["only_second"] == round(84 * (second - first))
    low, high = result["ci95"]
    assert 0 < low < result["difference"] < high
    assert result["p"] < 0.1  # six of twelve articles changed in the same direction: 2/64 by chance
    assert "p = " in out
    assert json.loads(succeed("evaluation.py", "--compare", one, one).splitlines()[-1])["p"] == 1


def test_incomparable_evaluations_are_rejected(home, tiny_model):
    one, other = evaluation_pair(home, tiny_model)
    original = json.loads(other.read_text())

    def error_for(change):
        result = json.loads(json.dumps(original))
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


def test_incompatible_options(home, tiny_model):
    assert "--model_path" in error_line("evaluation.py")
    assert "--few_shot: for --protocol cot" in error_line(*LOGLIK, tiny_model, "--few_shot", 2)
    assert "--select: for --protocol cot" in error_line(*LOGLIK, tiny_model, "--select", "random")
    assert "--few_shot 9" in error_line(
        "evaluation.py", "--task", "example", "--few_shot", 9, "--model_path", tiny_model
    )


def test_interval_of_an_earlier_version_is_replaced(home, tiny_model):
    """Nothing is asked again, and a second time nothing is written."""
    command = ("evaluation.py", "--model_path", tiny_model, "--task", "example", "--protocol", "loglik")
    succeed(*command)
    target = paths.evaluation_file(tiny_model)
    content = target.read_bytes()
    result = json.loads(content)
    result["metrics"]["ci95"] = [0.2, 0.3]
    target.write_text(json.dumps(result))
    assert json.loads(succeed(*command).splitlines()[-1])["ci95"] == json.loads(content)["metrics"]["ci95"]
    assert target.read_bytes() == content
    stamp = target.stat().st_mtime_ns
    succeed(*command)
    assert target.stat().st_mtime_ns == stamp
