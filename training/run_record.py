"""run.json: arguments, data and base model of a run, and whether a folder holds that run."""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

from training.settings import TrainingSettings
from utils import paths
from utils.device import is_main_process
from utils.errors import UserError, name_damage
from utils.io import read_json, sampled_sha256, write_json

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
    origin = {"data": data, "base": base_weights(args.model_name), "code": code_revision()}
    return {"arguments": vars(args), "settings": asdict(settings), "blocks": blocks} | origin | {"finished": False}


def base_weights(model: str) -> list:
    """Name, size, modification time and sampled hash of the base model's weight files; for a Hub name, the name."""
    folder = Path(paths.resolve_checkpoint(model))
    states = paths.weights_state(model)
    return [[*state, sampled_sha256(folder / state[0])] if len(state) == 3 else state for state in states]


def same_base(one: list, other: list) -> bool:
    """True if two records name the same weights: by their hashes, or, of earlier versions, by the modification time."""
    if len(one) != len(other):
        return False
    pairs = list(zip(one, other, strict=True))
    if not all(isinstance(state, list) for pair in pairs for state in pair):
        return one == other
    return all(a[:2] == b[:2] and (a[3:] == b[3:] if len(a) == len(b) == 4 else a[2:3] == b[2:3]) for a, b in pairs)


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
    must not be resumed. A run that ended before its first checkpoint, such as one without a package it needs, has none.
    """
    if not (folder / "run.json").is_file():
        return False
    earlier = read_json(folder / "run.json", "delete the folder")
    with name_damage(folder / "run.json", "delete the folder"):
        return is_same_run(folder, earlier, record)


def is_same_run(folder: Path, earlier: dict, record: dict) -> bool:
    """is_finished, for the content of the folder's run.json."""
    if not earlier["finished"] and not any(folder.glob(f"checkpoint-*/{paths.COMPLETE}")):
        return False
    blocks_before, blocks_now = (one["arguments"].get("eval_blocks") for one in (earlier, record))
    if not earlier["finished"] and blocks_before != blocks_now:
        raise UserError(
            f"--eval_blocks {blocks_now}: this run was begun with {blocks_before}; give the same, to compare"
        )
    recorded, wanted = identity(earlier), identity(record)
    if earlier["finished"] and recorded["blocks"] is None:  # by an earlier version, without the last partial block
        wanted.pop("blocks")
    for name, value in wanted.items():
        same = same_base(recorded["base"], value) if name == "base" else recorded.get(name) == value
        if not same:
            change = f"{recorded.get(name)}, not {value}"
            raise UserError(f"{folder}: holds a run with other {name} ({change}); delete or rename that folder")
    return bool(earlier["finished"]) and any(folder.glob("*.safetensors"))


def identity(record: dict) -> dict:
    """The entries of a run.json that decide the result, by name."""
    ignored = NOT_IDENTIFYING.split()
    arguments = {name: value for name, value in record["arguments"].items() if name not in ignored}
    data = {name: [file["sha256"], file.get("mask_sha256")] for name, file in record["data"].items()}
    others = {"precision": record["settings"]["precision"], "base": record["base"], "blocks": record.get("blocks")}
    return arguments | data | others
