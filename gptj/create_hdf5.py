"""Text -> HDF5 files of training examples, in the layout that gptj/run.py (and the published
GptHDF5DataProcessor) reads.

    python gptj/create_hdf5.py --input_dir /tmp/news --metadata_files /tmp/news/train_meta.txt \\
        --output_dir /tmp/hdf5/train --tokenizer ckpts/SmolLM2-135M-Instruct --max_seq_length 128
    python gptj/create_hdf5.py --csv news.csv --text_column story_text --output_dir /tmp/hdf5/news ...

Documents are the files of --input_dir (.txt whole; .jsonl a document a line, its --jsonl_key), or the
rows of --csv. Each is encoded and ends with the end token; packed, they are one stream, cut into
windows of max_seq_length + 1 tokens of which neighbours share one. The last window is padded and
masked, so no token is lost. OUT/examples_<n>_<process>.h5 has a dataset `data` (examples, 3,
max_seq_length) int32, gzip: input_ids, loss mask, labels (already shifted), and the attribute
`n_examples`; data_params.json has the settings, counts and the hash of every file.
"""

import argparse
import hashlib
import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gptj.text_files import Document, read_documents
from utils.errors import UserError, run
from utils.io import read_json, write_json

MANIFEST = "data_params.json"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("the text").add_argument
    source("--input_dir", type=Path, help="folder of .txt and .jsonl files")
    source(
        "--metadata_files",
        type=Path,
        nargs="+",
        help="lists of files to take, names relative to --input_dir, one a line",
    )
    source("--csv", type=Path, help="a CSV file with a header, in place of --input_dir")
    source("--text_column", default="text", help="of --csv (default text)")
    source("--jsonl_key", default="text", help="of .jsonl files (default text)")
    source("--use_ftfy", action="store_true", help="mend wrongly decoded text (pip install ftfy)")
    source("--ftfy_normalizer", choices=["NFC", "NFD", "NFKC", "NFKD", "none"], default="NFC", help="default NFC")
    tokens = parser.add_argument_group("tokens").add_argument
    tokens("--tokenizer", help="folder or hub name of a Hugging Face tokenizer")
    tokens("--vocab_file", type=Path, help="GPT-2's vocab, with --merges_file in place of --tokenizer")
    tokens("--merges_file", "--encoder_file", type=Path, help="GPT-2's merges")
    tokens("--eos_id", type=int, help="default: the tokenizer's end token")
    tokens("--pad_id", type=int, default=0, help="default 0")
    examples = parser.add_argument_group("examples").add_argument
    examples("--max_seq_length", type=int, default=2048, help="default 2048")
    examples(
        "--pack_sequences",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one stream of all documents, or each for itself",
    )
    examples(
        "--short_seq_prob", type=float, default=0.0, help="chance of a window of random, shorter length (default 0)"
    )
    examples(
        "--min_sequence_len",
        type=int,
        default=1,
        help="documents of fewer tokens are left out, and counted (default 1)",
    )
    examples("--seed", type=int, default=0, help="of --short_seq_prob")
    out = parser.add_argument_group("files").add_argument
    out("--output_dir", type=Path, required=True)
    out("--files_per_record", type=int, default=50_000, help="examples a file (default 50000)")
    out("--processes", type=int, default=1, help="documents are dealt out to them (default 1)")
    out("--overwrite", action="store_true", help="remove the .h5 files that are there")
    out("--resume_from_checkpoint", action="store_true", help="go on where a stopped run was")
    args = parser.parse_args()
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    if bool(args.csv) == bool(args.input_dir):
        raise UserError("name the text by --input_dir or by --csv, one of them")
    if args.csv and args.metadata_files:
        raise UserError("--metadata_files: lists files of --input_dir, and goes not with --csv")
    for path in (args.csv, *(args.metadata_files or ())):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file; gptj/trc2.py split makes lists and texts")
    if args.input_dir and not args.input_dir.is_dir():
        raise UserError(f"{args.input_dir}: no such folder; gptj/trc2.py split makes one")
    if args.short_seq_prob and args.max_seq_length < 2:
        raise UserError("--short_seq_prob: needs --max_seq_length 2 or more")
    if not args.tokenizer and not (args.vocab_file and args.merges_file):
        raise UserError("--tokenizer NAME_OR_FOLDER, or --vocab_file with --merges_file")
    for name in ("max_seq_length", "files_per_record", "processes", "min_sequence_len"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be above 0")
    if not 0 <= args.short_seq_prob < 1:
        raise UserError(f"--short_seq_prob {args.short_seq_prob}: from 0 to below 1")


def load_tokenizer(args: argparse.Namespace):
    if args.tokenizer:
        from utils.tokenizer import load_tokenizer

        return load_tokenizer(args.tokenizer)
    from transformers import GPT2TokenizerFast

    for path in (args.vocab_file, args.merges_file):
        if not path.is_file():
            raise UserError(f"{path}: not there")
    return GPT2TokenizerFast(vocab=str(args.vocab_file), merges=str(args.merges_file))


def encode(documents: Iterable[Document], args: argparse.Namespace, eos: int, counts: dict):
    """Token ids of a document at a time, its end token last."""
    tokenizer, mend = load_tokenizer(args), mender(args)
    for document in documents:
        ids = tokenizer(mend(document.text), add_special_tokens=False)["input_ids"]
        if len(ids) < args.min_sequence_len:
            counts["documents_left_out"] += 1
            continue
        counts["documents"] += 1
        counts["tokens"] += len(ids) + 1
        yield np.array([*ids, eos], np.int32)


def mender(args: argparse.Namespace):
    if not args.use_ftfy:
        return str
    try:
        import ftfy
    except ImportError as error:
        raise UserError("--use_ftfy: run: pip install ftfy") from error
    form = None if args.ftfy_normalizer == "none" else args.ftfy_normalizer
    return lambda text: ftfy.fix_text(text, normalization=form)


def windows(documents: Iterable[np.ndarray], args: argparse.Namespace, process: int):
    """Windows of at most max_seq_length + 1 tokens; each begins with the last token of the one before
    it. A shorter one, by chance or at the end, is padded later: every token is in one."""
    rest, made = np.empty(0, np.int32), 0

    def length() -> int:
        rng = np.random.default_rng([args.seed, process, made])
        short = args.short_seq_prob and rng.random() < args.short_seq_prob
        return int(rng.integers(1, args.max_seq_length)) if short else args.max_seq_length

    wanted = length()
    for document in documents:
        rest = np.concatenate([rest, document])
        while len(rest) > wanted or (not args.pack_sequences and len(rest) > 1):
            yield rest[: wanted + 1]
            rest, made = rest[wanted:], made + 1
            wanted = length()
        if not args.pack_sequences:
            rest = rest[:0]
    if len(rest) > 1:
        yield rest


def example(window: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """(3, max_seq_length): input ids, loss mask, labels."""
    row = np.full((3, args.max_seq_length), args.pad_id, np.int32)
    row[1] = 0
    known = len(window) - 1
    row[0, :known], row[1, :known], row[2, :known] = window[:-1], 1, window[1:]
    return row


def write_file(path: Path, rows: list[np.ndarray]) -> dict:
    """One .h5 file, whole or not there. Returns what the manifest says of it."""
    import h5py

    data = np.stack(rows)
    temporary = path.with_name(f".{path.name}.tmp")
    with h5py.File(temporary, "w") as file:
        file.attrs["n_examples"] = len(data)
        file.create_dataset("data", data=data, chunks=(1, *data.shape[1:]), compression="gzip")
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    temporary.replace(path)
    return {"name": path.name, "examples": len(data), "labels": int(data[:, 1].sum()), "sha256": digest}


def work(args: argparse.Namespace, process: int, eos: int) -> dict:
    """What one process makes: every args.processes-th document. Files that an earlier run completed
    are made again in memory alone, and not written."""
    done = args.output_dir / f".progress-{process}.json"
    files = read_json(done, "delete it") if done.is_file() else []
    counts = {"documents": 0, "documents_left_out": 0, "tokens": 0}
    mine = (d for n, d in enumerate(read_documents(args)) if n % args.processes == process)
    if process == 0:
        mine = tqdm(mine, desc="documents", unit="", disable=None)
    rows, number = [], 0

    def flush() -> None:
        nonlocal rows, number
        path = args.output_dir / f"examples_{number}_{process}.h5"
        if number >= len(files) or not path.is_file():
            del files[number:]
            files.append(write_file(path, rows))
            write_json(done, files)
        rows, number = [], number + 1

    for window in windows(encode(mine, args, eos, counts), args, process):
        rows.append(example(window, args))
        if len(rows) == args.files_per_record:
            flush()
    if rows:
        flush()
    return counts | {"files": files}


def guarded(job: tuple) -> dict | str:
    """`work` in a process of its own; what the user can mend comes back as words."""
    try:
        return work(*job)
    except UserError as error:
        return str(error)


def prepare(args: argparse.Namespace, settings: dict) -> None:
    """An output folder that is empty, or holds this very work unfinished."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    there = sorted(args.output_dir.glob("*.h5"))
    started = args.output_dir / ".settings.json"
    same = started.is_file() and read_json(started, "give --overwrite") == settings
    if args.resume_from_checkpoint and there and (args.output_dir / MANIFEST).is_file():
        raise UserError(f"{args.output_dir}: finished already; give --overwrite to make it again")
    if args.resume_from_checkpoint and there and not same:
        raise UserError(f"{args.output_dir}: begun with other settings; give --overwrite")
    if there and not args.overwrite and not args.resume_from_checkpoint:
        raise UserError(
            f"{args.output_dir}: holds {len(there)} .h5 files; give --overwrite, or --resume_from_checkpoint"
        )
    if args.overwrite or not same:
        for path in (*there, *args.output_dir.glob(".progress-*.json")):
            path.unlink()
        (args.output_dir / MANIFEST).unlink(missing_ok=True)
    write_json(started, settings)


def main() -> None:
    args = parse_arguments()
    tokenizer = load_tokenizer(args)
    eos = tokenizer.eos_token_id if args.eos_id is None else args.eos_id
    free = ("overwrite", "resume_from_checkpoint", "output_dir")
    settings = {k: v if isinstance(v, int | float | None) else str(v) for k, v in vars(args).items() if k not in free}
    settings |= {"eos_id": eos, "vocab_size": len(tokenizer)}
    prepare(args, settings)
    jobs = [(args, process, eos) for process in range(args.processes)]
    if args.processes == 1:
        results = [work(*jobs[0])]
    else:
        # Not fork: the tokenizer's threads would not survive it.
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            results = pool.map(guarded, jobs, chunksize=1)
    for result in results:
        if isinstance(result, str):
            raise UserError(result)
    files = [file for result in results for file in result["files"]]
    if not files:
        raise UserError("the text holds fewer than two tokens")
    counts = {name: sum(r[name] for r in results) for name in ("documents", "documents_left_out", "tokens")}
    counts |= {name: sum(file[name] for file in files) for name in ("examples", "labels")}
    write_json(args.output_dir / MANIFEST, {"settings": settings, "counts": counts, "files": files})
    for leftover in (*args.output_dir.glob(".progress-*.json"), args.output_dir / ".settings.json"):
        leftover.unlink()
    print(
        f"{args.output_dir}: {counts['examples']:,} examples of {args.max_seq_length} in {len(files)} files, "
        f"{counts['tokens']:,} tokens of {counts['documents']:,} documents"
    )


if __name__ == "__main__":
    run(main)
