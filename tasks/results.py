"""Two evaluations of the same questions, set against each other question by question."""

import argparse
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks import multiple_choice, scoring
from tasks.contamination import measure_contamination
from tasks.documents import Document, Item, split_of
from tasks.intervals import paired_difference
from tasks.rag import Retrieved, search_settings
from utils import paths
from utils.errors import UserError
from utils.io import read_json

# What may differ between two protocols: whose weights, where they are, and what draws the words.
MAY_DIFFER = {"weights", "base_url", "batch_size", "seed"}


def compare(one: Path, other: Path) -> dict:
    """How much more `other` has right than `one`: `difference` of accuracies, its `ci95` and `p`
    (scoring.paired), the two `accuracies`, and of `n` questions those that only one has right.

    Raises UserError where protocol, questions or options are not the same.
    """
    results = [read_json(path, "run evaluation.py first") for path in (one, other)]
    for path, result in zip((one, other), results, strict=True):
        if not isinstance(result, dict) or not {"protocol", "documents"} <= set(result):
            raise UserError(f"{path}: not an output of evaluation.py")
    check_same_protocol(one, other, *(result["protocol"] for result in results))
    asked = [dict(scored_questions(path, result)) for path, result in zip((one, other), results, strict=True)]
    if asked[0].keys() != asked[1].keys():
        only = asked[0].keys() ^ asked[1].keys()
        raise UserError(
            f"{one} and {other}: not the same questions; {len(only)} are in one of them alone, {min(only)[1]} for one"
        )
    keys = list(asked[0])
    first, second = (np.array([found[key] for key in keys], float) for found in asked)
    difference, edges, p = paired_difference(first, second, [document for document, _ in keys])
    return {
        "n": len(keys),
        "accuracies": [round(float(right.mean()), 4) for right in (first, second)],
        "difference": difference,
        "ci95": edges,
        "p": p,
        "only_first": int((first > second).sum()),
        "only_second": int((second > first).sum()),
    }


def check_same_protocol(one: Path, other: Path, first: dict, second: dict) -> None:
    for name in sorted((first.keys() | second.keys()) - MAY_DIFFER):
        if first.get(name) != second.get(name):
            raise UserError(
                f"{one} and {other}: other {name} ({first.get(name)} and {second.get(name)}), so their "
                "difference would be the protocol's too; evaluate both in the same way"
            )


def scored_questions(path: Path, result: dict) -> Iterator[tuple[tuple[str, str], bool]]:
    """((document, question), right) of every question, by the answer that counted."""
    for document in result["documents"]:
        for question in document["questions"]:
            if "answer" not in question:
                raise UserError(
                    f"{path}: of an earlier version, which did not note which answer counted; delete it and run evaluation.py again"
                )
            right = question["answer"] == question["gold"]
            yield (document["uid"], question["id"]), right


def output_file(args: argparse.Namespace) -> Path:
    if not args.rag:
        return paths.evaluation_file(args.model_path)
    way = f"t{args.temperature:g}" if args.protocol == "cot" else args.protocol
    return paths.evaluation_file(args.model_path, f"{search_settings(args).name}-{way}")


def describe_protocol(
    args: argparse.Namespace, items: list[Item], asked: list[multiple_choice.PromptedQuestion]
) -> dict:
    """What the answers depend on; answers of another description are not used again."""
    both = zip(items, asked, strict=True)
    whole = [(one.prompt, question.options, question.gold) for (_, question), one in both]
    protocol = {
        "name": args.protocol,
        "task": args.task,
        "prompts": fingerprint(whole),
        "weights": paths.weights_state(args.model_path),
    }
    if args.protocol == "cot":
        names = ("n_samples", "temperature", "max_tokens", "seed", "base_url")
        protocol |= {name: getattr(args, name) for name in (*names, "select", "few_shot")}
    if not args.base_url:
        # What is computed at once moves the last bits of a sum.
        protocol["batch_size"] = args.batch_size
    if args.rag:
        protocol["search"] = dataclasses.asdict(search_settings(args))
    return protocol


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:12]


def reselect_attempts(target: Path, protocol: dict) -> dict[str, list[dict]] | None:
    """The attempts in the file by question id, where they are this evaluation's but for --select: which
    of them counts can be said again without asking again."""
    if not target.is_file():
        return None
    earlier = read_json(target, "delete it")
    if earlier["protocol"] == protocol or earlier["protocol"] | {"select": None} != protocol | {"select": None}:
        return None
    questions = (q for document in earlier["documents"] for q in document["questions"])
    return {question["id"]: question["attempts"] for question in questions}


def is_finished(target: Path, protocol: dict) -> bool:
    """Whether the file holds this evaluation. Another one of the same checkpoint is set aside, and comes
    back when it is asked for again."""
    earlier = read_json(target, "delete it").get("protocol") if target.is_file() else None
    if earlier == protocol:
        return True
    if earlier:
        aside = superseded_file(target, earlier)
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)
        print(f"{target} was of another protocol; it is now {aside}")
    if superseded_file(target, protocol).is_file():
        superseded_file(target, protocol).rename(target)
        return True
    return False


def superseded_file(target: Path, protocol: dict) -> Path:
    return target.parent / "earlier" / f"{target.stem}.{fingerprint(protocol)}.json"


def build_result(
    documents: list[Document],
    attempts: dict[str, list[dict]],
    protocol: dict,
    found: Retrieved | None,
    args: argparse.Namespace,
) -> dict:
    """The whole output file."""
    judged, shown, number = [], [], 0
    for index, document in enumerate(documents):
        split = split_of(index, len(documents))
        questions = []
        for question in document.questions:
            read = [attempt["answer_index"] for attempt in attempts[question.id]]
            drawn = [protocol.get("seed", 0), zlib.crc32(question.id.encode())]
            answer = scoring.select(read, protocol.get("select", "first"), drawn)
            of_question = {"gold": question.gold, "hard": question.hard, "answer": answer}
            judged.append({"id": question.id, "document": document.uid, "split": split} | of_question)
            entry = {"id": question.id, "question": question.text, "options": list(question.options)}
            if found:  # in the order in which they stood before the question
                entry["passages"] = [[p.source, p.number] for p in found.passages[number]]
            questions.append(entry | of_question | {"attempts": attempts[question.id]})
            number += 1
        head = {name: getattr(document, name) for name in ("uid", "title", "author", "year")}
        shown.append(head | {"split": split, "questions": questions})
    result = {"protocol": protocol, "model": args.model_path, "metrics": scoring.metrics(judged)}
    if found:
        result["retrieval"] = {"passages": found.total} | found.stages
    return result | {"leakage": measure_contamination(documents, judged, args), "documents": shown}


def print_comparison(files: list[Path]) -> None:
    found = compare(*files)
    low, high = found["ci95"]
    first, second = found["accuracies"]
    print(f"{files[0]}: {first:.1%}\n{files[1]}: {second:.1%}, of the same {found['n']:,} questions")
    print(
        f"difference {found['difference']:+.1%} (95%: {low:+.1%} to {high:+.1%}, resampling articles), p = {found['p']:.4f}"
    )
    print(json.dumps(found))
