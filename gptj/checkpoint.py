"""Checkpoints as single .mdl files, packed from the Trainer's checkpoint folders and unpacked into them."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from gptj import formats
from gptj.weight_files import load_hf, load_torch
from utils import paths
from utils.errors import UserError
from utils.io import atomic_write

NAME = re.compile(r"checkpoint_(\d+)\.mdl")
STORED_AS_BYTES = re.compile(r"trainer_state\.json|rng_state(_\d+)?\.pth")  # read by the Trainer only


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """step -> file, in the order of steps."""
    matches = {NAME.fullmatch(path.name): path for path in folder.glob("checkpoint_*.mdl")}
    return dict(sorted((int(match[1]), path) for match, path in matches.items() if match))


def newest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(list_checkpoints(folder).values()), None)


def pack(folder: Path, target: Path, section: dict, identity: dict) -> None:
    """Pack a complete checkpoint folder of the Trainer into one file. `section` is the `model` section; `identity`
    describes the data and the optimizer of the run, see check_identity."""
    state = formats.to_cs(load_hf(folder), section)
    content = {
        "model": {f"model.{name}": tensor for name, tensor in state.items()},
        "optimizer": load_torch(folder / "optimizer.pt"),
        "lr_scheduler": load_torch(folder / "scheduler.pt"),
        "global_step": json.loads((folder / "trainer_state.json").read_text())["global_step"],
        "data": json.dumps(identity),
        "trainer": {
            path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in sorted(folder.iterdir())
            if STORED_AS_BYTES.fullmatch(path.name)
        },
    }
    with atomic_write(target) as file:
        torch.save(content, file)


def save_weights(model, section: dict, target: Path) -> None:
    """Save the weights without optimizer, as convert_checkpoint.py does."""
    with atomic_write(target) as file:
        torch.save({"model": formats.to_cs(model.state_dict(), section)}, file)


def unpack(checkpoint: dict, section: dict, folder: Path) -> None:
    """Write the content of a .mdl file as a folder from which the Trainer resumes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(formats.to_hf(checkpoint["model"], section), folder / "model.safetensors", {"format": "pt"})
    torch.save(checkpoint["optimizer"], folder / "optimizer.pt")
    torch.save(checkpoint["lr_scheduler"], folder / "scheduler.pt")
    for name, content in checkpoint["trainer"].items():
        if STORED_AS_BYTES.fullmatch(name):
            (folder / name).write_bytes(content.numpy().tobytes())
    (folder / paths.COMPLETE).touch()


def check_identity(checkpoint: dict, identity: dict, path: Path) -> None:
    """Raise UserError for a checkpoint of a run with other data or another optimizer."""
    stored = json.loads(checkpoint["data"])
    for name, value in identity.items():
        if stored.get(name) != value:
            raise UserError(
                f"{path}: comes from a run with other {name} (there {stored.get(name)}, now {value}); "
                "--is_pretrained_checkpoint starts a new run from its weights"
            )


class MdlCheckpoints(TrainerCallback):
    """Replaces each checkpoint folder of the Trainer by checkpoint_<step>.mdl, and keeps the newest `keep` files
    (None: all)."""

    def __init__(self, folder: Path, section: dict, identity: dict, keep: int | None):
        self.folder, self.section, self.identity, self.keep = folder, section, identity, keep

    def on_save(self, args, state, control, **unused) -> None:
        if not state.is_world_process_zero:
            return
        source = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        pack(source, self.folder / f"checkpoint_{state.global_step}.mdl", self.section, self.identity)
        shutil.rmtree(source)
        paths = list(list_checkpoints(self.folder).values())
        for path in paths[: -self.keep] if self.keep else []:
            path.unlink()
