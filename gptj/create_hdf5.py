"""Convert text into HDF5 files of training examples, in the layout of the published GptHDF5DataProcessor.

    python gptj/create_hdf5.py --input_dir /tmp/news --metadata_files /tmp/news/train_meta.txt \\
        --output_dir /tmp/hdf5/train --tokenizer ckpts/SmolLM2-135M-Instruct --max_seq_length 128
    python gptj/create_hdf5.py --csv news.csv --text_column story_text --output_dir /tmp/hdf5/news ...

A document is a .txt file, a line of a .jsonl file or a row of --csv. Each is encoded and ends with the end token.
Packed, the documents form one stream, cut into windows of max_seq_length + 1 tokens; neighbouring windows share one
token. The last window is padded and masked, so no token is lost.

Writes OUT/examples_<n>_<process>.h5 with a dataset `data` (examples, 3, max_seq_length) int32, gzip (input ids, loss
mask, labels already shifted) and an attribute `n_examples`, and OUT/data_params.json with settings, counts and the
sha256 of every file.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from gptj.hdf5 import MANIFEST, UNFINISHED
from gptj.text_files import Source, read_documents
from gptj.workers import run_workers
from utils.cli import (
    add_seed_flag,
    fraction,
    int_between,
    make_parser,
    positive_int,
    print_result,
    refuse_without_effect,
    token_id,
)
from utils.errors import UserError, run
from utils.io import atomic_write, lock_folder, read_json, write_json
from utils.progress import progress_bar

CHANGED = "the input files have changed since this run was begun; give --overwrite"
NOT_SETTINGS = ("overwrite", "resume_from_checkpoint", "output_dir")  # they do not change the examples


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_text_arguments(parser)
    add_token_arguments(parser)
    add_example_arguments(parser)
    add_output_arguments(parser)
    args = parser.parse_args()
    validate(args)
    if args.csv:
        refuse_without_effect(parser, args, "jsonl_key", "with --csv")
    else:
        refuse_without_effect(parser, args, "text_column", "without --csv")
    if args.tokenizer:
        refuse_without_effect(parser, args, "vocab_file merges_file", "with --tokenizer")
    if not args.use_ftfy:
        refuse_without_effect(parser, args, "ftfy_normalizer", "without --use_ftfy")
    return args


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("text").add_argument
    add("--input_dir", type=Path, help="folder of .txt and .jsonl files")
    lists_help = "lists of the files to read: names relative to --input_dir, one per line (default: all files)"
    add("--metadata_files", type=Path, nargs="+", help=lists_help)
    add("--csv", type=Path, help="a CSV file with a header, in place of --input_dir")
    add("--text_column", default="text", help="of --csv")
    add("--jsonl_key", default="text", help="of .jsonl files")
    add("--use_ftfy", action="store_true", help="repair wrongly decoded text (pip install ftfy)")
    add("--ftfy_normalizer", choices=["NFC", "NFD", "NFKC", "NFKD", "none"], default="NFC", help="of --use_ftfy")


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tokens").add_argument
    add("--tokenizer", help="hub name or folder of a Hugging Face tokenizer")
    add("--vocab_file", type=Path, help="GPT-2's vocabulary, with --merges_file in place of --tokenizer")
    add("--merges_file", "--encoder_file", type=Path, help="GPT-2's merges")
    add("--eos_id", type=token_id, help="end token (default: the tokenizer's)")
    add("--pad_id", type=token_id, default=0, help="padding token")


def add_example_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("examples")
    add = group.add_argument
    add("--max_seq_length", type=positive_int, default=2048, help="tokens per example")
    pack_help = "one stream of all documents, or windows of each document separately"
    add("--pack_sequences", action=argparse.BooleanOptionalAction, default=True, help=pack_help)
    add("--short_seq_prob", type=fraction, default=0.0, help="probability of a window of random, shorter length")
    add("--min_sequence_len", type=positive_int, default=1, help="documents of fewer tokens are left out, and counted")
    add_seed_flag(group, "of --short_seq_prob")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--output_dir", type=Path, required=True, help="folder of the .h5 files and their manifest")
    add("--files_per_record", type=positive_int, default=50_000, help="examples per file")
    add("--processes", type=int_between(1, 1024), default=1, help="processes that share the documents")
    add("--overwrite", action="store_true", help="remove the .h5 files in --output_dir")
    add("--resume_from_checkpoint", action="store_true", help="resume an interrupted run")


def validate(args: argparse.Namespace) -> None:
    if bool(args.csv) == bool(args.input_dir):
        raise UserError("give either --input_dir or --csv")
    if args.csv and args.metadata_files:
        raise UserError("--metadata_files: lists files of --input_dir; leave it out with --csv")
    for path in (args.csv, *(args.metadata_files or ())):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file; gptj/trc2.py split writes lists and texts")
    if args.input_dir and not args.input_dir.is_dir():
        raise UserError(f"{args.input_dir}: no such folder; gptj/trc2.py split writes one")
    if args.short_seq_prob and args.max_seq_length < 2:
        raise UserError("--short_seq_prob: needs --max_seq_length 2 or more")
    if not args.tokenizer and not (args.vocab_file and args.merges_file):
        raise UserError("give --tokenizer, or --vocab_file with --merges_file")


def main() -> None:
    args = parse_arguments()
    tokenizer = load_tokenizer(args)
    eos = tokenizer.eos_token_id if args.eos_id is None else args.eos_id
    values = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    settings = {name: v if isinstance(v, int | float | None) else str(v) for name, v in values.items()}
    settings |= {"eos_id": eos, "vocab_size": len(tokenizer)}
    with lock_folder(args.output_dir):
        prepare_folder(args, settings)
        write_folder(args, eos, settings)


def write_folder(args: argparse.Namespace, eos: int, settings: dict) -> None:
    """Write all files and the manifest, and print the counts."""
    jobs = [(args, process, eos) for process in range(args.processes)]
    results = run_workers(write_examples, jobs) if len(jobs) > 1 else [write_examples(*jobs[0])]
    files = [file for result in results for file in result["files"]]
    if not files:
        raise UserError("the text has fewer than two tokens")
    counts = {name: sum(r[name] for r in results) for name in ("documents", "documents_left_out", "tokens")}
    counts |= {name: sum(file[name] for file in files) for name in ("examples", "labels")}
    write_json(args.output_dir / MANIFEST, {"settings": settings, "counts": counts, "files": files})
    for path in (*args.output_dir.glob(".progress-*.json"), args.output_dir / UNFINISHED):
        path.unlink()
    print_result(
        counts | {"files": len(files)},
        f"{args.output_dir}: {counts['examples']:,} examples of {args.max_seq_length} tokens in {len(files)} files, "
        f"{counts['tokens']:,} tokens of {counts['documents']:,} documents",
    )


def load_tokenizer(args: argparse.Namespace):
    if args.tokenizer:
        from utils.tokenizer import load_tokenizer

        return load_tokenizer(args.tokenizer)
    from transformers import GPT2TokenizerFast

    for path in (args.vocab_file, args.merges_file):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return GPT2TokenizerFast(vocab=str(args.vocab_file), merges=str(args.merges_file))


def prepare_folder(args: argparse.Namespace, settings: dict) -> None:
    """Leave --output_dir empty, or with the files of the run to resume. Raises UserError for other files."""
    folder = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.h5"))
    unfinished = folder / UNFINISHED
    same = unfinished.is_file() and read_json(unfinished, "give --overwrite") == settings
    if args.resume_from_checkpoint and files and (folder / MANIFEST).is_file() and not unfinished.is_file():
        raise UserError(f"{folder}: finished already; --overwrite creates it again")
    if args.resume_from_checkpoint and files and not same:
        raise UserError(f"{folder}: started with other settings; give --overwrite")
    if files and not args.overwrite and not args.resume_from_checkpoint:
        raise UserError(f"{folder}: contains {len(files)} .h5 files; give --overwrite or --resume_from_checkpoint")
    if args.overwrite or not same:
        for path in (*files, *folder.glob(".progress-*.json")):
            path.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)
    write_json(unfinished, settings)


def write_examples(args: argparse.Namespace, process: int, eos: int) -> dict:
    """Write the examples of every args.processes-th document; returns counts and files. Files that an interrupted
    run completed are computed again, and not written."""
    source = Source(args.input_dir, args.metadata_files, args.csv, args.text_column, args.jsonl_key, process == 0)
    documents = (text for n, text in enumerate(read_documents(source)) if n % args.processes == process)
    if process == 0:
        documents = progress_bar(iterable=documents, desc="encoding", unit="document")
    counts = {"documents": 0, "documents_left_out": 0, "tokens": 0}
    windows = cut_windows(encode(documents, args, eos, counts), args, process)
    examples = (make_example(window, args.max_seq_length, args.pad_id) for window in windows)
    progress = args.output_dir / f".progress-{process}.json"
    files = read_json(progress, "delete it") if progress.is_file() else []
    number = -1
    for number, rows in enumerate(iter(lambda: list(islice(examples, args.files_per_record)), [])):
        path = args.output_dir / f"examples_{number}_{process}.h5"
        if number < len(files) and path.is_file():
            refuse_other_rows(path, np.stack(rows))
            continue
        del files[number:]
        files.append(write_file(path, np.stack(rows)))
        write_json(progress, files)
    if number + 1 < len(files):
        raise UserError(f"{args.output_dir / files[number + 1]['name']}: {CHANGED}")
    return counts | {"files": files}


def refuse_other_rows(path: Path, rows: np.ndarray) -> None:
    """Raise UserError where a file of the interrupted run holds other rows than the input files now give."""
    try:
        with h5py.File(path) as file:
            same = np.array_equal(file["data"][:], rows)
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: damaged; delete it, and it is written again") from error
    if not same:
        raise UserError(f"{path}: {CHANGED}")


def encode(texts: Iterable[str], args: argparse.Namespace, eos: int, counts: dict) -> Iterator[np.ndarray]:
    """Token ids of one document at a time, with the end token; adds to `counts`."""
    from utils.tokenizer import encode_texts

    tokenizer, repair = load_tokenizer(args), make_repair(args)
    for text in texts:
        ids = encode_texts(tokenizer, [repair(text)], leading=False)[0]
        if len(ids) < args.min_sequence_len:
            counts["documents_left_out"] += 1
            continue
        counts["documents"] += 1
        counts["tokens"] += len(ids) + 1
        yield np.array([*ids, eos], np.int32)


def make_repair(args: argparse.Namespace) -> Callable[[str], str]:
    if not args.use_ftfy:
        return str
    try:
        import ftfy
    except ImportError as error:
        raise UserError("--use_ftfy: run pip install ftfy") from error
    form = None if args.ftfy_normalizer == "none" else args.ftfy_normalizer
    return lambda text: ftfy.fix_text(text, normalization=form)


def cut_windows(documents: Iterable[np.ndarray], args: argparse.Namespace, process: int) -> Iterator[np.ndarray]:
    """Windows of at most max_seq_length + 1 tokens, each starting with the last token of the one before. Shorter
    ones, random or at the end, are padded later; every token is in a window."""
    rest, number = np.empty(0, np.int32), 0

    def draw_length() -> int:
        rng = np.random.default_rng([args.seed, process, number])
        short = args.short_seq_prob and rng.random() < args.short_seq_prob
        return int(rng.integers(1, args.max_seq_length)) if short else args.max_seq_length

    length = draw_length()
    for document in documents:
        rest = np.concatenate([rest, document])
        while len(rest) > length or (not args.pack_sequences and len(rest) > 1):
            yield rest[: length + 1]
            rest, number = rest[length:], number + 1
            length = draw_length()
        if not args.pack_sequences:
            rest = rest[:0]
    if len(rest) > 1:
        yield rest


def make_example(window: np.ndarray, max_length: int, pad_id: int) -> np.ndarray:
    """(3, max_length) int32: input ids, loss mask, labels."""
    row = np.full((3, max_length), pad_id, np.int32)
    row[1] = 0
    length = len(window) - 1
    row[0, :length], row[1, :length], row[2, :length] = window[:-1], 1, window[1:]
    return row


def write_file(path: Path, data: np.ndarray) -> dict:
    """Write one .h5 file, complete or not at all; returns its entry in the manifest."""
    # Built in memory: h5py 3.16 crashes the process where a disk fills up while it writes.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as image:
        image.attrs["n_examples"] = len(data)
        image.create_dataset("data", data=data, chunks=(1, *data.shape[1:]), compression="gzip")
        image.flush()
        content = image.id.get_file_image()
    with atomic_write(path) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return {"name": path.name, "examples": len(data), "labels": int(data[:, 1].sum()), "sha256": digest}


if __name__ == "__main__":
    run(main, "with --resume_from_checkpoint resumes after the last complete file")
