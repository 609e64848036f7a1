"""File, folder and run names; no other module builds a path.

Files that the steps write (`data/dataset/`, `ckpts/`, `out/`) are under the repository, or under `$SCP_HOME` if it is
set. Files that ship with the code (`data/example/`, prompts) are always read from the repository.
"""

import argparse
import contextlib
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPLETE = "COMPLETE"  # an empty file, written last: a checkpoint without it was interrupted by a kill
DEFAULT_GENERATOR = "gpt-4-turbo"
DEFAULT_TOKENIZER = "meta-llama/Meta-Llama-3-8B"
DEFAULT_CONVERSATIONS = "ultrachat"
DEFAULT_REPLAY = "togethercomputer_RedPajama_Data_1T_Sample_None"


def home() -> Path:
    return Path(os.environ.get("SCP_HOME") or ROOT).absolute()


def raw_dir() -> Path:
    return home() / "data" / "dataset" / "raw"


def bins_dir() -> Path:
    return home() / "data" / "dataset" / "bins"


def ckpts_dir() -> Path:
    return home() / "ckpts"


def out_dir() -> Path:
    return home() / "out"


def chat_history() -> Path:
    """Input history of interactive.py."""
    return out_dir() / "chat_history"


def key_file() -> Path:
    return home() / "data" / "dataset" / "openai.key"


def example_dir() -> Path:
    return ROOT / "data" / "example"


def task_prompts_dir() -> Path:
    return ROOT / "tasks" / "prompts"


def generation_prompts_dir() -> Path:
    return ROOT / "data" / "generation" / "prompts"


def llama_template() -> Path:
    """Llama 3.1's chat template, for base models, which have none."""
    return ROOT / "utils" / "llama3.1.jinja"


def quality_file(split: str) -> Path:
    """The official QuALITY file of a split, `train` or `dev`."""
    return raw_dir() / f"QuALITY.v1.0.1.htmlstripped.{split}"


def corpus_file(task: str) -> Path:
    """The articles of the user's own corpus, in QuALITY's schema."""
    return raw_dir() / f"{short_name(task)}.jsonl"


def questions_file(task: str, kind: str = "choice") -> Path:
    """Output of make_questions.py: questions about such a corpus, in the same schema; `kind` is `choice` or `short`."""
    return raw_dir() / f"{short_name(task)}_questions{'' if kind == 'choice' else f'.{kind}'}.jsonl"


def quiz_journal(task: str) -> Path:
    """Replies to make_questions.py, for quizzes of both kinds."""
    return raw_dir() / f"{short_name(task)}_questions.calls.jsonl"


def prices_file() -> Path:
    return ROOT / "data" / "prices.json"


def passages_dir(task: str, generator: str, method: str = "entigraph") -> Path:
    """Output of step 1: one JSONL file per article."""
    return raw_dir() / f"{task}_{method}_{short_name(generator)}"


def passages_bin(task: str, generator: str, method: str = "entigraph") -> Path:
    """Output of step 2; as for every .bin here, the .idx and .json are beside it."""
    return bins_dir() / f"{task}_all-{method}{short_name(generator)}.bin"


def passage_page(task: str) -> Path:
    """Page of inspect_entigraph.py --html."""
    return out_dir() / f"{short_name(task)}-passages.html"


def articles_bin(task: str) -> Path:
    """The articles themselves, for the raw baseline."""
    return bins_dir() / f"{task}_all-raw.bin"


def replay_bin(name: str, split: str) -> Path:
    """Output of step 3; `split` is `train` or `test`."""
    return bins_dir() / f"{name}_{split}.bin"


def conversations_bin(name: str, split: str) -> Path:
    """Output of tokenize_instruct.py, with a .mask beside it; `split` is `train` or `test`."""
    return bins_dir() / f"{name}_{split}.bin"


def example_model() -> Path:
    return ckpts_dir() / "SmolLM2-135M-Instruct"


def short_name(model: str) -> str:
    """The part of a model name or folder that file names contain: `org/Name` and `a/b/Name/` give `Name`."""
    return Path(model).name


def resolve_checkpoint(name: str) -> str:
    """The argument of `from_pretrained` for a checkpoint.

    A folder is searched for under the home folder first, so that `ckpts/NAME` means the same everywhere, then under
    the current folder; anything else is a Hub name.
    """
    with contextlib.suppress(OSError, ValueError):  # a name too long for a file, or with a null character
        for folder in (home() / name, Path(name)):
            if folder.is_dir():
                return str(folder.absolute())
    return name


def existing(path: Path) -> Path:
    """A file that the user names: under the home folder, else under the current one."""
    return home() / path if (home() / path).is_file() else path


def looks_like_hub_name(name: str) -> bool:
    """True if `name` has the form of a Hub name, `NAME` or `ORGANISATION/NAME`, and is not under ckpts/."""
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)) and not name.startswith("ckpts/")


def weights_state(model: str) -> list:
    """Name, size and modification time of a checkpoint's weight files; for a Hub name, the name."""
    folder = Path(resolve_checkpoint(model))
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files] or [model]


def evaluation_file(model: str, search: str | None = None, kind: str = "choice") -> Path:
    """Output of evaluation.py; `search` is the name of an open-book evaluation's settings, `kind` that of the
    questions: `choice` or `short`."""
    name = f"{'qualityqa' if kind == 'choice' else 'shortqa'}-{short_name(model)}"
    return out_dir() / "rag" / f"{name}-{search}.json" if search else out_dir() / f"{name}.json"


def report_dir(task: str) -> Path:
    """Plan and report of own_corpus.sh."""
    return out_dir() / short_name(task)


def cache_dir() -> Path:
    """Cached embeddings and reranker scores, by content."""
    return home() / "data" / "dataset" / "cache"


def vectors_file(embedder: str) -> Path:
    return cache_dir() / f"vectors-{embedder}.jsonl"


def reranker_scores_file(model: str) -> Path:
    return cache_dir() / f"reranked-{short_name(model)}.jsonl"


def run_name(args: argparse.Namespace) -> str:
    """The folder name of a training run, with values as typed."""
    model = short_name(args.model_name).replace("-", "")
    name = (
        f"{args.task_name}-lr{args.lr}-rr{args.rr}-epochs{args.epochs}-bs{args.bs}"
        f"-wd{args.wd}-warmup{args.warmup}-{model}"
    )
    if args.lora_rank:
        name = f"{name}-lora{args.lora_rank}"
    if float(args.subsample_ratio) != 1:
        name = f"scaling-subsample_ratio{args.subsample_ratio}-{name}"
    return name
