"""run.json: arguments, data and base model of a run, and whether a folder holds that run."""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

from training.settings import TrainingSettings
from utils import paths
from utils.device import is_main_process
from utils.errors import UserError
from utils.io import read_json, write_json

# Arguments that do not decide the result of a run.
NOT_IDENTIFYING = """
    conversations save_steps keep_checkpoints run_eval eval_blocks report_to micro_batch precision
    gradient_checkpointing compile sharding"""


def make_record(args: argparse.Namespace, settings: TrainingSettings, files: dict, blocks: int) -> dict:
    """The content of run.json before the first step. `files` are the token files by role, `blocks` the number of
    blocks of the run."""
    data = {
        name: {"file": str(file.path)} | {key: file.meta[key] for key in ("sha256", "mask_sha256") if key in file.meta}
        for name, file in files.items()
    }
    origin = {"data": data, "base": paths.weights_state(args.model_name), "code": code_revision()}
    return {"arguments": vars(args), "settings": asdict(settings), "blocks": blocks} | origin | {"finished": False}


def write_record(folder: Path, record: dict) -> None:
    """Write run.json, on rank 0."""
    if is_main_process():
        write_json(folder / "run.json", record)


def code_revision() -> str:
    """The git commit, with a + where the working tree differs from it; `unknown` outside a git checkout."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def is_finished(folder: Path, record: dict) -> bool:
    """True if the folder holds this run and the run is finished.

    Raises UserError where it holds another run of the same name (other data, another seed), whose checkpoints
    must not be resumed.
    """
    if not (folder / "run.json").is_file():
        return False
    earlier = read_json(folder / "run.json", "delete the folder")
    recorded, wanted = identity(earlier), identity(record)
    if earlier["finished"] and recorded["blocks"] is None:  # by an earlier version, without the last partial block
        wanted.pop("blocks")
    for name, value in wanted.items():
        if recorded.get(name) != value:
            change = f"{recorded.get(name)}, not {value}"
            raise UserError(f"{folder}: holds a run with other {name} ({change}); delete or rename that folder")
    return earlier["finished"] and any(folder.glob("*.safetensors"))


def identity(record: dict) -> dict:
    """The entries of a run.json that decide the result, by name."""
    ignored = NOT_IDENTIFYING.split()
    arguments = {name: value for name, value in record["arguments"].items() if name not in ignored}
    data = {name: [file["sha256"], file.get("mask_sha256")] for name, file in record["data"].items()}
    others = {"precision": record["settings"]["precision"], "base": record["base"], "blocks": record.get("blocks")}
    return arguments | data | others
