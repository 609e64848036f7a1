"""Documents and their questions, from QuALITY's official JSONL files or files in the same schema.

A line of such a file is a *set*: an article with the questions of one writer. Sets with the same title and author are
merged. The example corpus and the user's own corpora use the same schema.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.line_structure import keep_structure
from utils import paths
from utils.errors import UserError
from utils.io import read_jsonl, sha256_text

OPTIONS = 4
PARTICLES = {
    "de",
    "del",
    "della",
    "di",
    "da",
    "du",
    "la",
    "le",
    "van",
    "von",
    "der",
    "den",
    "ten",
    "ter",
    "st",
    "al",
    "el",
    "bin",
}
SUFFIXES = {"Jr", "Sr", "II", "III", "IV", "PhD", "MD", "Inc", "Ltd", "LLC"}
# After a task's name and a hyphen in train.py's --task_name: the articles, or the passages of a method of step 1.
VARIANTS = ("raw", "entigraph", "rephrase", "plain", "qa", "strategies")
SHOWN_TITLES = 3  # of a quiz, that are no documents
VALIDATION_FRACTION = 5  # the first fifth of the documents, by title, is the validation split


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    options: tuple[str, ...]
    gold: int  # index into options, 0 to 3
    hard: bool

    @property
    def answer(self) -> str:
        return self.options[self.gold]


@dataclass(frozen=True)
class ShortQuestion:
    """A question that is answered in a few words. Each of `answers` is right; the first is the usual one."""

    id: str
    text: str
    answers: tuple[str, ...]
    hard: bool
    options: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        return self.answers[0]


@dataclass
class Document:
    uid: str  # a safe file name, unique within the corpus
    title: str
    author: str
    year: str
    text: str
    questions: list[Question] | list[ShortQuestion] = field(default_factory=list)
    family_first: bool = True  # the author is written as QuALITY does, `Family, Given`
    article_sha256: str = ""  # of the flattened article: ids of passages do not depend on how its lines are joined
    source_sha256: str = ""  # the same, of the whole document where this is a section of it

    @property
    def byline(self) -> str:
        """The author in reading order: QuALITY's `Harris, Larry M.` is Larry M. Harris."""
        family, comma, given = self.author.partition(", ")
        return f"{given} {family}" if self.family_first and comma and "," not in given else self.author


Item = tuple[Document, Question | ShortQuestion]


def task_files(task: str) -> list[Path]:
    """The JSONL files of a task: QuALITY's train and dev, the shipped example, or the user's own corpus."""
    if task == "quality":
        return [paths.quality_file(split) for split in ("train", "dev")]
    if task == "example":
        return [paths.example_dir() / "articles.jsonl"]
    own = paths.corpus_file(task)
    check_task_name(task, f"--task {task}")
    if not own.is_file():
        raise UserError(f"--task {task}: {own} does not exist; write it, or use --corpus DIR")
    return [own]


def check_task_name(task: str, where: str) -> None:
    """Raise UserError for a name by which train.py would find other files."""
    if re.search(r"_questions(\.|$)", task):  # its file would be that of a quiz, or of its calls
        raise UserError(f"{where}: names with _questions are those of quizzes; rename it, such as {task}_corpus")
    if task == "instruct" or task.rpartition("-")[2] in VARIANTS and "-" in task:
        raise UserError(
            f"{where}: as --task_name of step 4 this means something else; rename it, such as {task}-corpus"
        )


def load_task(task: str, kind: str = "choice") -> list[Document]:
    """The documents of a task with questions of a kind, `choice` or `short`; for the user's own corpus with those of
    make_questions.py. The example's questions can be asked without their options, QuALITY's cannot."""
    if kind == "short" and task == "quality":
        raise UserError("--kind short: QuALITY's questions are about their options; use --task example, or your own")
    as_choice = task == "example"
    made_by = "run: bash scripts/download_data.sh"
    documents = load_documents(task_files(task), made_by, "choice" if as_choice else kind)
    if as_choice and kind == "short":
        for document in documents:
            document.questions = [ShortQuestion(q.id, q.text, (q.answer,), q.hard) for q in document.questions]
    quiz = paths.questions_file(task, kind)
    if task not in ("quality", "example") and quiz.is_file():
        asked = {(d.title, d.author): d.questions for d in load_documents([quiz], "", kind)}
        for document in documents:
            add_questions(document, asked.pop((document.title, document.author), []), str(quiz))
        if left_out := sum(map(len, asked.values())):
            titles = ", ".join(sorted({title for title, _ in asked})[:SHOWN_TITLES])
            print(f"{quiz}: {left_out} questions about no document of {task} ({titles})", file=sys.stderr)
    make_ids_distinct(documents)
    return documents


def load_documents(files: list[Path], made_by: str, kind: str = "choice") -> list[Document]:
    """The documents of the files, merged by title and author, sorted by title, then author, with their questions of a
    kind: those with a `gold_label`, or with an `answer`."""
    documents: dict[tuple[str, str], Document] = {}
    for file in files:
        for number, line in enumerate(read_jsonl(file, made_by), 1):
            _add_set(documents, line, f"{file}, record {number}", kind)
    ordered = make_uids_distinct([documents[key] for key in sorted(documents)])
    make_ids_distinct(ordered)
    return ordered


def add_questions(document: Document, questions: list, where: str) -> None:
    """Add questions to a document. One that it has is left out; another one with the same id is refused."""
    known = {question.id: question for question in document.questions}
    for question in questions:
        if question.id not in known:
            document.questions.append(question)
        elif known[question.id] != question:
            raise UserError(f"{where}: two questions about {document.title!r} have the id {question.id}; rename one")
        known[question.id] = question


def make_uids_distinct(documents: list[Document]) -> list[Document]:
    """Documents by title and author, of which those with the uid of an earlier one have a longer one: of 65,000 titles
    without Latin letters, of which a uid is a hash of 32 bits alone, two are the same in 39% of the cases."""
    seen: set[str] = set()
    for document in documents:
        if document.uid in seen:
            document.uid += sha256_text(json.dumps([document.title, document.author]), 16)
        seen.add(document.uid)
    return documents


def make_ids_distinct(documents: list[Document]) -> None:
    """Put the document's uid before the ids of questions that several documents have: attempts are kept by id."""
    counts = Counter(question.id for document in documents for question in document.questions)
    for document in documents:
        document.questions = [
            replace(question, id=f"{document.uid}/{question.id}") if counts[question.id] > 1 else question
            for question in document.questions
        ]


def split_of(index: int, count: int) -> str:
    """`val` for the first fifth of `count` documents in order, `test` for the others."""
    return "val" if index < count // VALIDATION_FRACTION else "test"


def _add_set(documents: dict[tuple[str, str], Document], line: dict, where: str, kind: str) -> None:
    try:
        title, author, article = line["title"], line.get("author") or "", line["article"]
        if not all(isinstance(value, str) for value in (title, author, article)):
            raise UserError(f"{where}: title, author and article must be strings")
        key = (title.strip(), author.strip())
        of_quality = "set_unique_id" in line
        text = flatten(article) if of_quality else keep_structure(article)
        uid, family_first = uid_of(*key), of_quality or _is_family_first(line, key[1])
        sha256 = sha256_text(flatten(article))
        document = Document(uid, *key, _year(line.get("year")), text, [], family_first, sha256, sha256)
        document = documents.setdefault(key, document)
        if document.article_sha256 != sha256 and not of_quality:
            raise UserError(f"{where}: another article has its title and author, {key[0]!r}; give it another title")
        label = "answer" if kind == "short" else "gold_label"
        items = line.get("questions") or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{where}: questions must be a list of objects")
        asked = [item for item in items if item.get(label) is not None]
        try:
            questions = [_short_question(item) if kind == "short" else _question(item, of_quality) for item in asked]
        except UserError as error:
            raise UserError(f"{where}, {error}") from error
    except KeyError as error:
        raise UserError(f"{where}: has no {error}; is this a QuALITY file?") from error
    add_questions(document, questions, where)


def _is_family_first(line: dict, author: str) -> bool:
    """True if an author of the user's own file is written `Family, Given`: a family name of one word (`de Camp` has
    a particle), and no suffix. `Ada Stone, Ben Reed` are two authors, and --corpus marks its authors as written."""
    family, _, given = author.partition(", ")
    *particles, _ = family.split() or [""]
    is_family = all(word.lower().rstrip(".") in PARTICLES for word in particles)
    return is_family and given.rstrip(".") not in SUFFIXES and not line.get("author_as_written")


def _year(value: object) -> str:
    """A year as text: 1999.0, which a table with missing years has, is 1999; an unknown one, and what is no number or
    text, is empty."""
    if not isinstance(value, int | float | str) or value != value:  # None, a list, or NaN
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _question(item: dict, may_repeat: bool) -> Question:
    """The question of a record. Raises UserError, which names it, for a blank text or option and, without
    `may_repeat`, for a second option with the text of the correct one."""
    where, options, text = f"question {item['question_unique_id']}", item["options"], item["question"]
    if not isinstance(options, list) or len(options) != OPTIONS or not (gold := _gold(item["gold_label"])):
        raise UserError(f"{where}: must have four options, one of them correct")
    if not all(isinstance(value, str) and value.strip() for value in (text, *options)):
        raise UserError(f"{where}: the question or an option is blank, or not a text; fix or delete the question")
    options = tuple(option.strip() for option in options)
    if options.count(options[gold - 1]) > 1 and not may_repeat:
        raise UserError(f"{where}: its correct option {options[gold - 1]!r} stands there twice; fix or delete it")
    return Question(str(item["question_unique_id"]), text.strip(), options, gold - 1, hard=_flag(item["difficult"]))


def _short_question(item: dict) -> ShortQuestion:
    """The question of a record with an `answer` and, if it has any, a list of `aliases`. Raises UserError, which names
    it, for a blank text or answer."""
    where, text, aliases = f"question {item['question_unique_id']}", item["question"], item.get("aliases") or []
    answers = [item["answer"], *aliases] if isinstance(aliases, list) else [None]
    if not all(isinstance(value, str) and value.strip() for value in (text, *answers)):
        raise UserError(
            f"{where}: the question, answer or an alias is blank, or not a text; fix or delete the question"
        )
    answers = tuple(dict.fromkeys(answer.strip() for answer in answers))
    return ShortQuestion(str(item["question_unique_id"]), text.strip(), answers, hard=_flag(item.get("difficult")))


def _gold(value: object) -> int | None:
    """The number of the correct option, 1 to 4; None if it is none. `"2"` and 2.0 are 2."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number in range(1, OPTIONS + 1) and not isinstance(value, bool) else None


def _flag(value: object) -> bool:
    """True if the value is 1, True, or a text like "1"."""
    return value not in (None, "", "0", "0.0", "false", "False") and bool(value)


def flatten(text: str) -> str:
    """Collapse runs of white space, left by QuALITY's HTML stripping, and keep paragraphs."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()


def uid_of(title: str, author: str = "") -> str:
    """A safe file name that differs for documents of different title or author."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
    return f"{slug}-{sha256_text(f'{title}|{author}', 8)}"


def parse_indices(text: str, total: int) -> list[int]:
    """Indices below `total` from `7`, `0-9`, `0,3,7`, combinations of these, or `all`."""
    if text == "all":
        return list(range(total))
    indices: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise UserError(f"article {part!r}: write a number, a range like 0-9, a list like 0,3,7, or all")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= total:
            raise UserError(f"article {part}: out of range, this task has articles 0 to {total - 1}")
        indices |= set(range(first, last + 1))
    return sorted(indices)


def article_text(document: Document) -> str:
    """The article as the raw baseline trains on it: title, author and year, then the text."""
    known = [f"by {document.byline}"] if document.author else []
    known += [f"({document.year})"] if document.year else []
    head = f"{document.title}\n{' '.join(known)}" if known else document.title
    return f"{head}\n\n{document.text}"


def document_reference(document: Document) -> str:
    """`"Title" by Author (year)`, without what is unknown."""
    author = f" by {document.byline}" if document.author else ""
    return f'"{document.title}"{author}' + (f" ({document.year})" if document.year else "")
