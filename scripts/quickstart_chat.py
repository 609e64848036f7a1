"""Last, optional step of the quickstart: replies of the base model and of the tuned one, side by side.

Prompts are the first messages of the held-out conversations, whose articles occur in no conversation used for tuning.
Called by quickstart.sh --chat; writes out/quickstart_chat.json.
"""

from pathlib import Path

from utils import paths
from utils.cli import make_parser, print_result, silence_transformers
from utils.errors import run
from utils.io import read_json, read_jsonl, write_json
from utils.progress import working

AGAIN = "run: bash scripts/quickstart.sh --chat"
MAX_TOKENS = 200  # the longest reply of the held-out conversations has 120
MAX_CHARACTERS = 500  # of a reply in the table
ROWS = (0, 7, 12)  # conversations in the table: one about a whole article, two about a fact
CHECKPOINTS = ("base", "entigraph", "tuned")


def main() -> None:
    parser = make_parser(__doc__)
    for name in CHECKPOINTS:
        parser.add_argument(f"--{name}", required=True, help="checkpoint folder")
    args = parser.parse_args()
    folder = paths.example_dir() / "conversations"
    train, test = (read_jsonl(folder / f"{split}.jsonl", AGAIN) for split in ("train", "test"))
    replies = {name: generate_replies(getattr(args, name), test) for name in CHECKPOINTS}
    print_replies(test, replies)
    tuned_titles = {record["article"] for record in train}
    record = read_json(Path(paths.resolve_checkpoint(args.tuned)) / "run.json", AGAIN)
    result = {
        "ended": {name: sum(ended for _, ended in pairs) for name, pairs in replies.items()},
        "prompts": len(test),
        "held_out_loss": [record["held_out_loss_before"], record["held_out_loss_after"]],
        "accuracy": [accuracy(args.entigraph), accuracy(args.tuned)],
        "accuracy_untold": [accuracy(args.entigraph, tuned_titles), accuracy(args.tuned, tuned_titles)],
    }
    write_json(paths.out_dir() / "quickstart_chat.json", result)
    print_result(result, summary(result))


def generate_replies(checkpoint: str, conversations: list[dict]) -> list[tuple[str, bool]]:
    """The greedy reply to each conversation's first message, and whether it ended before MAX_TOKENS.

    One batch: 20 replies take little longer than one.
    """
    with working("starting torch"):  # heavy imports, after parsing
        from inference.local_model import LocalModel
        from utils import chat_template

    silence_transformers()
    model = LocalModel(checkpoint)
    prompts = [chat_template.encode(model.tokenizer, record["messages"][:1], True) for record in conversations]
    stop_ids = chat_template.stop_token_ids(model.tokenizer)
    with working(f"{Path(checkpoint).name}: replies to {len(conversations)} prompts"):
        replies = model.generate(prompts, do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=stop_ids)
    texts = model.tokenizer.batch_decode(replies, skip_special_tokens=True)
    ended = [not set(stop_ids).isdisjoint(ids) for ids in replies]
    return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def print_replies(conversations: list[dict], replies: dict[str, list[tuple[str, bool]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True, title="Questions about articles that occur in no conversation used for tuning")
    for column in ("question", "base model", "EntiGraph, tuned", "reference, from the article"):
        table.add_column(column, ratio=1)
    for row in ROWS:
        question, reference = (message["content"] for message in conversations[row]["messages"][:2])
        table.add_row(question, *(shorten(*replies[name][row]) for name in ("base", "tuned")), reference)
    Console(width=150).print(table, markup=False)


def shorten(text: str, ended: bool) -> str:
    return text if ended and len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"


def accuracy(checkpoint: str, excluded: frozenset | set = frozenset()) -> float:
    """Closed-book accuracy on the articles whose titles are not `excluded`."""
    documents = read_json(paths.evaluation_file(checkpoint), AGAIN)["documents"]
    correct = [
        question["attempts"][0]["answer_index"] == question["gold"]
        for document in documents
        if document["title"] not in excluded
        for question in document["questions"]
    ]
    return round(sum(correct) / len(correct), 4)


def summary(result: dict) -> str:
    """A table of base model, EntiGraph checkpoint and tuned checkpoint."""
    ended = [f"{result['ended'][name]}/{result['prompts']}" for name in CHECKPOINTS]
    rows = [
        ("", "base", "EntiGraph", "tuned"),
        (f"replies that end within {MAX_TOKENS} tokens", *ended),
        ("loss on held-out conversations", "", *(f"{loss:.3f}" for loss in result["held_out_loss"])),
        ("closed-book accuracy", "", *(f"{share:.1%}" for share in result["accuracy"])),
        ("the same, articles not used for tuning", "", *(f"{share:.1%}" for share in result["accuracy_untold"])),
    ]
    return "\n".join(f"{label:44}{base:>8}{entigraph:>11}{tuned:>8}" for label, base, entigraph, tuned in rows)


if __name__ == "__main__":
    run(main)
