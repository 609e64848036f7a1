"""Two models side by side: one message, two replies, and the passages of the corpus that a search finds for it.

Knows engines and a search function, nothing of terminals and web pages.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat.conversation import (
    Conversation,
    Engine,
    ReplyStatus,
    Sampling,
    load_records,
    make_message,
    reply_budget,
    save_records,
    stream_reply,
)
from inference.retrieval import Chunk
from utils import paths
from utils.errors import UserError, name_damage
from utils.io import read_json

OPEN_BOOK = "open_book"
INSTRUCT = "instruct"  # the --task_name of tuning, which is on no corpus
NO_CORPUS = "no passages: start with --task NAME or --corpus DIR to see what a search of the corpus finds"
NOTHING_FOUND = "no passage of {task} has a word of the message"
OPEN_BOOK_PROMPT = """\
These passages were found in the corpus:

{passages}

Answer the following with their help, as far as they are to the point:

{message}"""


@dataclass(frozen=True)
class Corpus:
    """The corpus that is searched for every message."""

    task: str
    search: Callable[[str], list[Chunk]]  # a message -> the best passages, best first


@dataclass
class Side:
    """A model and its conversation. Open book, the passages found stand in the prompt of the last message."""

    engine: Engine
    label: str
    conversation: Conversation
    open_book: bool = False

    def stream(
        self, passages: list[Chunk], sampling: Sampling, status: ReplyStatus, notice: Callable[[str], None]
    ) -> Iterator[str]:
        """Yield the reply to the conversation's last message in pieces, as stream_reply does."""
        messages = self.conversation.messages()
        if self.open_book:
            messages = add_passages(self.engine, messages, passages, sampling.max_tokens)
        return stream_reply(self.engine, messages, sampling, status, notice)


@dataclass(frozen=True)
class Comparer:
    """Opens the second model of a comparison."""

    open_engine: Callable[[str, str], Engine]  # a model's name, and the flag that gave it
    find_corpus: Callable[[], Corpus | None]

    def second_side(self, first: Side, name: str, flag: str) -> Side:
        """The model `name`, or the first one open book, with a copy of the conversation so far.

        Raises UserError, which names the `flag`, for an unknown model, the first model again, models of different
        corpora, and an open book without a corpus.
        """
        corpus = self.find_corpus()
        if name == OPEN_BOOK:
            if corpus is None:
                raise UserError(f"{flag} {name}: no corpus to search; start with --task NAME or --corpus DIR")
            check_corpora(flag, {"": corpus.task, first.engine.name: trained_task(first.engine.name)})
            engine = first.engine.with_own_cache()
        else:
            if folder_of(name) == folder_of(first.engine.name):
                raise UserError(f"{flag} {name}: the same model on both sides; name another, or {OPEN_BOOK}")
            tasks = {checkpoint: trained_task(checkpoint) for checkpoint in (first.engine.name, name)}
            check_corpora(flag, ({"": corpus.task} if corpus else {}) | tasks)
            engine = self.open_engine(name, flag)
        conversation = Conversation("" if engine.is_base_model else first.conversation.system)
        conversation.turns = list(first.conversation.turns)
        return Side(engine, engine.name, conversation, open_book=name == OPEN_BOOK)


def label_sides(sides: Sequence[Side]) -> None:
    """Label models by the last part of their names; by the whole name if that part is the same."""
    short = [Path(side.engine.name).name for side in sides]
    names = [side.engine.name for side in sides]
    is_book = any(side.open_book for side in sides)
    for side, label in zip(sides, short if is_book or len(set(short)) == len(short) else names, strict=True):
        book = f", {'open' if side.open_book else 'closed'} book" if is_book else ""
        side.label = label + book


def folder_of(checkpoint: str) -> Path:
    """The folder of a checkpoint, without links; of a name on a server or the Hub something unique to it."""
    return Path(paths.resolve_checkpoint(checkpoint)).resolve()


def trained_task(checkpoint: str) -> str | None:
    """The --task_name that a checkpoint was trained with; of a tuned one, that of the model it was tuned from. None for
    models without a run.json of train.py."""
    for _ in range(10):  # tunings of tunings; a record may name its own folder
        record = folder_of(checkpoint) / "run.json"
        if not record.is_file():
            return None
        with name_damage(record, "train it again"):
            arguments = read_json(record, "train it again").get("arguments", {})
            if arguments.get("task_name") != INSTRUCT:
                return arguments.get("task_name")
            checkpoint = str(arguments["model_name"])
    return None


def check_corpora(flag: str, tasks: dict[str, str | None]) -> None:
    """Raise UserError if two of `tasks` are of different corpora. Keys are checkpoints, "" for the corpus searched; a
    task may have a method's suffix: `quality-raw` is of `quality`."""
    known = [(name, task) for name, task in tasks.items() if task]
    for name, task in known[1:]:
        if not corpus_names(task) & corpus_names(known[0][1]):
            first = f"{known[0][0]} on {known[0][1]}" if known[0][0] else f"--task is {known[0][1]}"
            raise UserError(f"{flag}: {name} was trained on {task}, {first}; compare models of one corpus")


def corpus_names(task: str) -> set[str]:
    return {task, task.rpartition("-")[0]} - {""}


def add_passages(engine: Engine, messages: list[dict], passages: list[Chunk], max_tokens: int) -> list[dict]:
    """The messages with passages before the last one: the best ones, as many as fit into the context window."""
    *earlier, last = messages
    system = [message for message in earlier[:1] if message["role"] == "system"]
    for number in range(len(passages), 0, -1):
        template = "{passages}\n\n{message}" if engine.is_base_model else OPEN_BOOK_PROMPT
        shown = format_passages(passages[:number])
        prompt = make_message("user", template.format(passages=shown, message=last["content"]))
        if engine.count_tokens([*system, prompt]) <= reply_budget(engine, max_tokens):
            return [*earlier, prompt]
    return messages


def format_passages(passages: list[Chunk]) -> str:
    return "\n\n".join("\n".join(filter(None, pair)) for pair in with_titles(passages))


def with_titles(passages: list[Chunk]) -> list[tuple[str, str]]:
    """(title, text) of each passage; the title is empty where the passage before has the same."""
    titles = ["", *(passage.name for passage in passages)]
    return [("" if p.name == before else p.name, p.text) for before, p in zip(titles, passages, strict=False)]


def no_passages(corpus: Corpus | None) -> str:
    """The sentence that stands in the place of passages."""
    return NOTHING_FOUND.format(task=corpus.task) if corpus else NO_CORPUS


def side_by_side(streams: Sequence[Iterator]) -> Iterator[list]:
    """Take one item of every stream in turn; yield the latest item of each, None before the first."""
    latest: list = [None] * len(streams)
    running = dict(enumerate(streams))
    while running:
        for index, stream in list(running.items()):
            try:
                latest[index] = next(stream)
            except StopIteration:
                del running[index]
            else:
                yield list(latest)


def save_sides(path: Path, sides: Sequence[Side]) -> None:
    """Write the conversation, or both of a comparison with the key `model`, as lines of JSONL that
    data/tokenize_instruct.py reads. Raises UserError if the file exists."""
    records = [{"messages": side.conversation.messages()} for side in sides]
    named = [record | {"model": side.label} for record, side in zip(records, sides, strict=True)]
    save_records(path, named if len(sides) > 1 else records)


def load_sides(path: Path, sides: Sequence[Side]) -> None:
    """Continue what save_sides wrote of a comparison; both sides continue the first conversation of any other file."""
    records = load_records(path)
    is_comparison = len(records) == 2 and all("model" in record for record in records)
    loaded = [Conversation() for _ in sides]
    for number, conversation in enumerate(loaded):
        record = records[number if is_comparison else 0] if records else {}
        conversation.load_messages(path, record.get("messages"))
    for side, conversation in zip(sides, loaded, strict=True):
        side.conversation = conversation
