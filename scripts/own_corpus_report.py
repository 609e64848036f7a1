"""Report of own_corpus.sh: out/NAME/report.html and report.png. Called by own_corpus.sh."""

import argparse
import time
from itertools import zip_longest
from pathlib import Path

import numpy as np

from data.generation.coverage import Statements, stems
from data.generation.passages import is_stale, read_records, training_text
from data.generation.sections import document_uid
from reports import page
from reports.figures import draw_accuracies, draw_losses
from reports.tables import format_accuracy, print_table
from tasks.comparison import compare
from tasks.documents import Document, Question, load_task
from utils import paths
from utils.cli import make_parser, non_negative_int, print_result
from utils.errors import name_damage, run
from utils.io import atomic_write, read_json, read_jsonl, write_json

MADE_BY = "run: bash scripts/own_corpus.sh"
LABELS = {"base": "base model", "raw": "documents alone", "synthetic": "passages", "open": "base model, open book"}
ACCURACY_HEADER = ("model", "accuracy (95% interval)", "questions")
SHOWN_DOCUMENTS, SHOWN_PASSAGES, SHOWN_QUESTIONS = 30, 3, 3
BINS = (0, 1, 2, 3)  # tellings; the last is "and more"
MIN_QUESTIONS = 5  # for a share of them in a sentence


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    for name, help in (("task", "the corpus"), ("model", "generator of the passages"), ("method", "generation method")):
        parser.add_argument(f"--{name}", required=True, help=help)
    for name in ("base", "raw", "synthetic"):
        parser.add_argument(f"--{name}", required=True, help="an evaluated checkpoint")
    parser.add_argument("--open_book", type=Path, required=True, help="output of the base model's open-book evaluation")
    parser.add_argument("--begun", type=non_negative_int, required=True, help="start of the run, Unix time in s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with name_damage(paths.report_dir(args.task), "or an output beside it; delete what it names, and " + MADE_BY):
        write_report(args)


def labels_of(args: argparse.Namespace) -> dict[str, str]:
    """Names of the models, after what they were trained on."""
    tokens = paths.passages_bin(args.task, args.model, args.method).with_suffix(".json")
    copies = read_json(tokens, MADE_BY)["copies_of_articles"]
    return LABELS | {"synthetic": "passages and documents"} if copies else LABELS


def write_report(args: argparse.Namespace) -> None:
    folder, documents = paths.report_dir(args.task), load_task(args.task)
    files = {name: paths.evaluation_file(getattr(args, name)) for name in ("base", "raw", "synthetic")}
    files["open"] = args.open_book
    results = {name: read_json(file, MADE_BY) for name, file in files.items()}
    metrics, labels = {name: result["metrics"] for name, result in results.items()}, labels_of(args)
    passages = read_passages(args, documents)
    tellings = tellings_of_questions(documents, passages)
    gain = compare(files["raw"], files["synthetic"])
    difference = format_accuracy(gain["difference"], gain["ci95"], "+")
    finding = f"{labels['synthetic']} minus documents alone: {difference}"
    rows = [(labels[name], format_accuracy(one["accuracy"], one["ci95"]), one["n"]) for name, one in metrics.items()]
    draw_accuracies(
        folder / "report.png", [""], {name: [values] for name, values in metrics.items()}, labels, args.task
    )
    losses = {name: losses_of(getattr(args, name)) for name in ("raw", "synthetic")}
    draw_losses(folder / "losses.png", losses, labels)
    inspection = read_json(paths.out_dir() / f"inspection-{passages_folder(args).name}.json", MADE_BY)
    by_tellings = accuracy_by_tellings(results["synthetic"], tellings)
    sections = [
        ("What it learnt", accuracy_section(rows, f"{finding}, p = {gain['p']:.3f}", folder)),
        ("What to do next", page.bullets(advice(metrics, gain, inspection["figures"], by_tellings))),
        ("Three questions", questions_section(results, labels)),
        ("What was told", coverage_section(inspection, by_tellings)),
        ("Passages beside their source", passages_section(documents, passages)),
        ("What was read, and what it cost", cost_section(args, documents)),
        ("The entities of a document", graph_section(inspection)),
        ("Training", training_section(args, folder)),
    ]
    with atomic_write(folder / "report.html") as file:
        file.write(page.page(f"What a model learnt from {args.task}", sections).encode())
    print_table([ACCURACY_HEADER, *rows])
    report(args, metrics, gain, inspection["figures"], finding)


def report(args: argparse.Namespace, metrics: dict, gain: dict, figures: dict, finding: str) -> None:
    """Write report.json and print it."""
    folder = paths.report_dir(args.task)
    result = {name: {key: one[key] for key in ("accuracy", "ci95", "n")} for name, one in metrics.items()}
    result |= {"gain": {key: gain[key] for key in ("difference", "ci95", "p")}, "told_once": figures["told_once"]}
    result |= {"tellings_median": figures["tellings_median"], "passages": figures["passages"]}
    write_json(folder / "report.json", result)
    result |= {"seconds": round(time.time() - args.begun), "report": str(folder / "report.html")}
    print_result(result, f"{finding} -> {folder / 'report.html'}")


def passages_folder(args: argparse.Namespace) -> Path:
    return paths.passages_dir(args.task, args.model, args.method)


def read_passages(args: argparse.Namespace, documents: list[Document]) -> dict[str, list[dict]]:
    """The records of passages by document, in the order of their ids."""
    sources = {document.uid: document.source_sha256 for document in documents}
    records: dict[str, list[dict]] = {}
    for file in sorted(passages_folder(args).glob("*.jsonl")):
        uid = document_uid(file.stem)
        current = (record for record in read_records(file) if not is_stale(record, sources.get(uid)))
        kept = [record | {"text": text} for record in current if (text := training_text(record))]
        records.setdefault(uid, []).extend(sorted(kept, key=lambda record: record["id"]))
    return records


def tellings_of_questions(documents: list[Document], passages: dict[str, list[dict]]) -> dict[tuple[str, str], int]:
    """Number of passages that tell the statement that a question asks about, by document and question."""
    counts = {}
    for document in documents:
        statements = Statements(document.title, document.text)
        tellings = statements.tellings(record["text"] for record in passages.get(document.uid, []))
        for question in document.questions if len(statements.texts) else []:
            counts[document.uid, question.id] = int(tellings[statement_of(question, statements)])
    return counts


def statement_of(question: Question, statements: Statements) -> int:
    """Index of the statement with the most words of the right option, then of the question."""
    answer, asked = stems(question.options[question.gold]), stems(question.text)
    return max(
        range(len(statements.texts)),
        key=lambda n: (len(answer & statements.stems[n]), len(asked & statements.stems[n])),
    )


def accuracy_by_tellings(result: dict, tellings: dict[tuple[str, str], int]) -> dict[int, tuple[int, int]]:
    """Right answers and questions by tellings, one of BINS."""
    bins: dict[int, list[bool]] = {number: [] for number in BINS}
    for document in result["documents"]:
        for question in document["questions"]:
            if (document["uid"], question["id"]) in tellings:
                count = min(tellings[document["uid"], question["id"]], BINS[-1])
                bins[count].append(question["answer"] == question["gold"])
    return {number: (sum(right), len(right)) for number, right in bins.items()}


def losses_of(checkpoint: str) -> list[float]:
    lines = read_jsonl(Path(paths.resolve_checkpoint(checkpoint)) / "metrics.jsonl", MADE_BY)
    return [line["loss"] for line in lines if "loss" in line]


def accuracy_section(rows: list[tuple], finding: str, folder: Path) -> str:
    return (
        page.image((folder / "report.png").read_bytes(), "accuracies with 95% intervals")
        + page.table(ACCURACY_HEADER, rows)
        + page.paragraph(f"{finding[0].upper()}{finding[1:]}. By chance 25% are right.")
        + page.paragraph(
            "Both were trained on equally many tokens; differences between training runs are not included."
        )
    )


def advice(metrics: dict, gain: dict, figures: dict, by_tellings: dict[int, tuple[int, int]]) -> list[str]:
    """Sentences about what the figures suggest."""
    told, lines = figures["told_once"], []
    if told < 0.9:
        lines.append(f"{told:.0%} of the statements are told by a passage: more --tokens tell more of them.")
    if gain["difference"] <= 0:
        lines.append("The passages did not beat the documents alone: a stronger generator, or more --tokens, may.")
    elif gain["ci95"][0] <= 0:
        lines.append(
            "The passages were better than the documents alone, but chance alone could do that: ask more questions (--per_document)."
        )
    else:
        lines.append("The passages beat the documents alone by more than chance: more --tokens may add to it.")
    if metrics["open"]["accuracy"] > metrics["synthetic"]["accuracy"]:
        lines.append(
            "Looking the answers up (open book) is still better: combine both, see docs/evaluation.md, step 6."
        )
    if metrics["base"]["accuracy"] > 0.4:
        lines.append("The base model knows many answers already: questions that it cannot answer say more.")
    if min(by_tellings[0][1], by_tellings[3][1]) >= MIN_QUESTIONS:
        never, often = (by_tellings[n][0] / by_tellings[n][1] for n in (0, 3))
        lines.append(
            f"Facts that were never told are answered in {never:.0%} of the cases, those told three times and more in {often:.0%}."
        )
    return lines


def questions_section(results: dict, labels: dict[str, str]) -> str:
    """A question that only the passages teach, one that only the documents teach, and one that neither does; where one
    kind is missing, further ones of the others."""
    rows = {}
    for name, result in results.items():
        for document in result["documents"]:
            for question in document["questions"]:
                rows.setdefault((document["title"], question["id"]), {})[name] = question
    kinds = {(True, False): [], (False, True): [], (False, False): [], (True, True): []}
    for row in rows.values():
        if row.keys() == results.keys():
            kinds[is_right(row["synthetic"]), is_right(row["raw"])].append(row)
    in_turns = [row for turn in zip_longest(*kinds.values()) for row in turn if row]
    parts = []
    for row in in_turns[:SHOWN_QUESTIONS]:
        options = row["base"]["options"]
        right = f"right answer: {options[row['base']['gold']]}"
        answers = [
            (labels[name], chosen_option(question), "yes" if is_right(question) else "no")
            for name, question in row.items()
        ]
        parts.append(
            page.paragraph(row["base"]["question"], "big")
            + page.paragraph(right)
            + page.table(("model", "answer", "right"), answers)
        )
    return "".join(parts)


def is_right(question: dict) -> bool:
    return question["answer"] == question["gold"]


def chosen_option(question: dict) -> str:
    return "no answer" if question["answer"] is None else question["options"][question["answer"]]


def coverage_section(inspection: dict, by_tellings: dict[int, tuple[int, int]]) -> str:
    figures = inspection["figures"]
    sentence = (
        f"{figures['passages']:,} passages tell {figures['told_once']:.0%} of {figures['statements']:,} statements at "
        f"least once; the median is {figures['tellings_median']:g} passages. {figures['supported_sentences']:.0%} of their "
        "sentences are supported by the document, as far as names, numbers and words tell."
    )
    rows = [
        (f"{number} and more" if number == BINS[-1] else str(number), asked, f"{right / asked:.0%}" if asked else "–")
        for number, (right, asked) in by_tellings.items()
    ]
    least = [(count, f"{title}: {statement}") for title, statement, count in inspection["least_told"]]
    return (
        page.paragraph(sentence)
        + page.table(("passages that tell the fact asked about", "questions", "answered rightly"), rows)
        + page.paragraph("The least told statements:")
        + page.table(("passages", "statement"), least)
    )


def passages_section(documents: list[Document], passages: dict[str, list[dict]]) -> str:
    """Passages of different documents, each beside the statements that it tells."""
    parts = []
    for document in [document for document in documents if passages.get(document.uid)][:SHOWN_PASSAGES]:
        statements = Statements(document.title, document.text)
        told = [statements.told_by(record["text"]) for record in passages[document.uid]]
        best = int(np.argmax([one.sum() for one in told]))
        source = [text for text, is_told in zip(statements.texts, told[best], strict=True) if is_told]
        left = page.paragraph(f"Passage about {document.title}") + page.paragraphs(passages[document.uid][best]["text"])
        parts.append(page.side_by_side(left, page.paragraph("It tells, of the source:") + page.bullets(source)))
    return "".join(parts)


def cost_section(args: argparse.Namespace, documents: list[Document]) -> str:
    summary = read_json(passages_folder(args) / "summary.json", MADE_BY)
    plan = read_json(paths.report_dir(args.task) / "plan.json", MADE_BY)
    usd = "no price is known" if summary["usd"] is None else f"${summary['usd']:,.2f}"
    rows = [
        ("calls for entities and passages", f"{summary['calls']:,}"),
        ("prompt tokens, of them from a cache", f"{summary['prompt_tokens']:,}, {summary['cached_tokens']:,}"),
        ("reply tokens", f"{summary['completion_tokens']:,}"),
        ("dollars", usd),
        (
            "hours, planned (with the quiz) and measured (without)",
            f"{plan['seconds'] / 3600:.2f}, {summary['seconds'] / 3600:.2f}",
        ),
    ]
    sizes = [(document.title, len(document.text.split())) for document in documents]
    shown = page.table(("document", "words"), [(title, f"{words:,}") for title, words in sizes[:SHOWN_DOCUMENTS]])
    more = len(sizes) - SHOWN_DOCUMENTS
    shown += page.paragraph(f"and {more:,} more documents") if more > 0 else ""
    left_out = read_json(paths.report_dir(args.task) / "left_out.json", MADE_BY)
    reasons = page.paragraph("Left out:") + page.bullets(left_out) if left_out else ""
    return page.table(("figure", "value"), rows) + shown + reasons


def training_section(args: argparse.Namespace, folder: Path) -> str:
    forgetting = read_json(paths.out_dir() / f"forgetting-{paths.short_name(args.synthetic)}.json", MADE_BY)
    before, after = (forgetting[name]["perplexity"] for name in ("before", "after"))
    sentence = f"Perplexity on general text: {before:.1f} before training on the passages, {after:.1f} after."
    return page.image((folder / "losses.png").read_bytes(), "training loss by step") + page.paragraph(sentence)


def graph_section(inspection: dict) -> str:
    listed = [document for document in inspection["documents"] if document["entities"]]
    if not listed:
        return page.paragraph("No entities were asked for.")
    document = max(listed, key=lambda document: len(document["pairs"]))
    note = f"{document['title']}: lines are pairs that a passage is about; red names do not occur in the document."
    return page.paragraph(note) + page.graph(document["entities"], document["pairs"], document["strangers"])


if __name__ == "__main__":
    run(main)
