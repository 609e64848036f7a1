"""The quickstart's last, optional step: what the base model and the tuned one answer, side by side.

Asks both the first question of every held-out conversation, of articles that no conversation of the tuning
is about. Called by quickstart.sh --chat; writes out/quickstart_chat.json.
"""

import argparse
from pathlib import Path

from utils import paths
from utils.errors import run
from utils.io import read_json, read_jsonl, write_json

AGAIN = "run: bash scripts/quickstart.sh --chat"
LONGEST = 200  # tokens: the longest reply of the held-out conversations has 120
MOST_SHOWN = 500  # characters of an answer
SHOWN = (0, 7, 12)  # one about an article as a whole, two about a fact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "entigraph", "tuned"):
        parser.add_argument(f"--{name}", required=True, help="checkpoint folder")
    args = parser.parse_args()
    train, test = (
        read_jsonl(paths.example_dir() / "conversations" / f"{split}.jsonl", AGAIN) for split in ("train", "test")
    )
    answers = {name: ask(getattr(args, name), test) for name in ("base", "entigraph", "tuned")}
    show(test, answers)
    told = {record["article"] for record in train}
    record = read_json(Path(paths.resolve_checkpoint(args.tuned)) / "run.json", AGAIN)
    result = {
        "ended": {name: sum(ended for _, ended in given) for name, given in answers.items()},
        "prompts": len(test),
        "held_out_loss": [record["held_out_loss_before"], record["held_out_loss_after"]],
        "accuracy": [accuracy(args.entigraph), accuracy(args.tuned)],
        "accuracy_untold": [accuracy(args.entigraph, told), accuracy(args.tuned, told)],
    }
    write_json(paths.out_dir() / "quickstart_chat.json", result)
    print_result(result)


def ask(checkpoint: str, conversations: list[dict]) -> list[tuple[str, bool]]:
    """The likeliest answer to the first question of each, and whether it ended by itself. All at once:
    20 answers take little more time than one."""
    import torch
    from transformers.utils import logging

    from inference.local_model import LocalModel
    from utils import chat_template

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(f"asking {Path(checkpoint).name} {len(conversations)} questions ...", flush=True)
    model = LocalModel(checkpoint)
    tokenizer = model.tokenizer
    questions = [chat_template.render(tokenizer, talk["messages"][:1], True) for talk in conversations]
    batch = tokenizer(questions, add_special_tokens=False, padding=True, return_tensors="pt")
    ends = chat_template.stop_token_ids(tokenizer)
    with torch.inference_mode():
        output = model.model.generate(
            **batch.to(model.device),
            do_sample=False,
            max_new_tokens=LONGEST,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = output[:, batch["input_ids"].shape[1] :]
    ended = torch.isin(new, torch.tensor(ends, device=new.device)).any(1).tolist()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def accuracy(checkpoint: str, without: frozenset | set = frozenset()) -> float:
    """Closed-book accuracy, of questions about articles other than those of the given titles."""
    documents = read_json(paths.evaluation_file(checkpoint), AGAIN)["documents"]
    right = [
        question["attempts"][0]["answer_index"] == question["gold"]
        for document in documents
        if document["title"] not in without
        for question in document["questions"]
    ]
    return round(sum(right) / len(right), 4)


def show(conversations: list[dict], answers: dict[str, list[tuple[str, bool]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True, title="Questions about articles that no conversation of the tuning is about")
    for column in ("question", "base model", "EntiGraph, tuned", "written, from the article"):
        table.add_column(column, ratio=1)
    for number in SHOWN:
        question, written = (m["content"] for m in conversations[number]["messages"][:2])
        base, tuned = (answers[name][number] for name in ("base", "tuned"))
        texts = [shorten(*answer) for answer in (base, tuned)]
        table.add_row(question, *texts, written)
    Console(width=150).print(table, markup=False)


def shorten(text: str, ended: bool) -> str:
    """An answer for the table; … where it goes on."""
    return text if ended and len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"


def print_result(result: dict) -> None:
    print(f"{'':44}{'base':>8}{'EntiGraph':>11}{'tuned':>8}")
    ended = [f"{result['ended'][name]}/{result['prompts']}" for name in ("base", "entigraph", "tuned")]
    print(f"{'replies that end by themselves':44}{ended[0]:>8}{ended[1]:>11}{ended[2]:>8}")
    before, after = result["held_out_loss"]
    print(f"{'loss on held-out conversations':44}{'':8}{before:>11.3f}{after:>8.3f}")
    for name, words in (
        ("accuracy", "closed-book accuracy"),
        ("accuracy_untold", "of it, articles outside the tuning"),
    ):
        before, after = result[name]
        print(f"{words:44}{'':8}{before:>11.1%}{after:>8.1%}")


if __name__ == "__main__":
    run(main)
