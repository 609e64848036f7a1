"""Checkpoints: loading the one that was meant, whole, or saying what is wrong with it; and those of a
run that goes on."""

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from utils import paths
from utils.errors import UserError, first_line

COMPLETE = "COMPLETE"  # an empty file, written last: a checkpoint without it was cut by a kill


def load_checkpoint(name: str, dtype: torch.dtype, flag: str):
    """A causal language model from a folder or the hub, on the CPU.

    Raises UserError, which names the `flag` that the user typed, where there is none, and where its
    weights are damaged, of another shape, or not all there (transformers fills missing ones with
    random numbers).
    """
    found = paths.resolve_checkpoint(name)
    if Path(found).is_dir() and not (Path(found) / "config.json").is_file():
        raise UserError(
            f"{flag} {found}: holds no model (config.json); a run that was stopped goes on by scripts/train.sh"
        )
    if not Path(found).is_dir() and not paths.looks_like_hub_name(name):
        raise UserError(f"{flag} {name}: no such folder")
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(found, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} {name}: not a checkpoint folder, and not to be had from the hub ({first_line(error)})"
        ) from error
    except (SafetensorError, UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{flag} {name}: its weights are damaged or of another shape than its config says "
            f"({first_line(error)}); make or download it again"
        ) from error
    if missing := loaded["missing_keys"]:
        raise UserError(
            f"{flag} {name}: {len(missing)} weights are missing, {sorted(missing)[0]} for one; "
            "make or download it again"
        )
    return model


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; what a kill left half written is removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        elif os.environ.get("RANK", "0") == "0":
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a resume needs from a finished run: a checkpoint is three times the fp32
    weights. To be called once nothing can make a resume necessary any more."""
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
