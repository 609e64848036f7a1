"""TODO training.run_record."""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

from utils import paths
from utils.cli import Typed
from utils.errors import UserError
from utils.io import read_json


def make_record(args: argparse.Namespace, settings, files: dict) -> dict:
    """What goes into run.json before the first step."""
    arguments = {name: str(value) if isinstance(value, Typed) else value for name, value in vars(args).items()}
    data = {
        name: {"file": str(file.path)} | {key: file.meta[key] for key in ("sha256", "mask_sha256") if key in file.meta}
        for name, file in files.items()
    }
    return {
        "arguments": arguments,
        "settings": asdict(settings),
        "data": data,
        "base": paths.weights_state(args.model_name),
        "code": code_revision(),
        "finished": False,
    }


def code_revision() -> str:
    """The commit, with a + where the tree differs from it; `unknown` outside a git checkout."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def is_finished(folder: Path, record: dict) -> bool:
    """Whether the folder holds this run, finished. Another run under the same name (other data,
    another seed) is refused: its checkpoints must not be gone on from."""
    if not (folder / "run.json").is_file():
        return False
    earlier = read_json(folder / "run.json", "delete the folder")
    there, now = identity(earlier), identity(record)
    for name, value in now.items():
        if there.get(name) != value:
            raise UserError(
                f"{folder}: holds a run with other {name} ({there.get(name)} there, {value} now); "
                "delete or rename that folder"
            )
    return earlier["finished"] and any(folder.glob("*.safetensors"))


def identity(record: dict) -> dict:
    """What of a run.json decides the result, by name; how often a run saves or looks does not."""
    free = {
        "conversations",
        "save_steps",
        "keep_checkpoints",
        "run_eval",
        "eval_blocks",
        "report_to",
        "micro_batch",
        "precision",
        "gradient_checkpointing",
        "compile",
        "sharding",
    }
    arguments = {name: value for name, value in record["arguments"].items() if name not in free}
    data = {name: [file["sha256"], file.get("mask_sha256")] for name, file in record["data"].items()}
    precision = {"precision": record["settings"]["precision"], "base": record["base"]}
    return arguments | data | precision
