"""A run's checkpoints as single .mdl files, made of the Trainer's folders and unpacked into them."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from gptj import formats
from utils.checkpoint import COMPLETE
from utils.errors import UserError
from utils.io import atomic_write

NAME = re.compile(r"checkpoint_(\d+)\.mdl")
KEPT_AS_BYTES = re.compile(r"trainer_state\.json|rng_state(_\d+)?\.pth")  # what only the Trainer reads


def checkpoints(folder: Path) -> dict[int, Path]:
    """step -> file, in order of steps."""
    found = {NAME.fullmatch(path.name): path for path in folder.glob("checkpoint_*.mdl")}
    return dict(sorted((int(match[1]), path) for match, path in found.items() if match))


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def pack(folder: Path, target: Path, data: dict) -> None:
    """A complete checkpoint folder of the Trainer -> one file. `data` says what the run reads."""
    state = formats.to_cs(formats.load_hf(folder))
    content = {
        "model": {f"model.{name}": tensor for name, tensor in state.items()},
        "optimizer": load(folder / "optimizer.pt"),
        "lr_scheduler": load(folder / "scheduler.pt"),
        "global_step": json.loads((folder / "trainer_state.json").read_text())["global_step"],
        "data": json.dumps(data),
        "trainer": {
            path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in sorted(folder.iterdir())
            if KEPT_AS_BYTES.fullmatch(path.name)
        },
    }
    with atomic_write(target) as file:
        torch.save(content, file)


def save_weights(model, target: Path) -> None:
    """The weights alone, as the converter writes them."""
    with atomic_write(target) as file:
        torch.save({"model": formats.to_cs(model.state_dict())}, file)


def unpack(loaded: dict, folder: Path) -> None:
    """The other way: a folder that the Trainer goes on from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(formats.to_hf(loaded["model"]), folder / "model.safetensors", {"format": "pt"})
    torch.save(loaded["optimizer"], folder / "optimizer.pt")
    torch.save(loaded["lr_scheduler"], folder / "scheduler.pt")
    for name, content in loaded["trainer"].items():
        if KEPT_AS_BYTES.fullmatch(name):
            (folder / name).write_bytes(content.numpy().tobytes())
    (folder / COMPLETE).touch()


def check_data(loaded: dict, data: dict, path: Path) -> None:
    """Raises UserError where a checkpoint is of a run with other data, by name."""
    then = json.loads(loaded["data"])
    for name, value in data.items():
        if then.get(name) != value:
            raise UserError(
                f"{path}: begun with other {name} ({then.get(name)} there, {value} now); give "
                "--is_pretrained_checkpoint to begin anew from its weights"
            )


class SingleFiles(TrainerCallback):
    """Turns each of the Trainer's checkpoints into checkpoint_<step>.mdl, and keeps the newest."""

    def __init__(self, folder: Path, data: dict, keep: int | None):
        self.folder, self.data, self.keep = folder, data, keep

    def on_save(self, args, state, control, **unused) -> None:
        if not state.is_world_process_zero:
            return
        made = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        pack(made, self.folder / f"checkpoint_{state.global_step}.mdl", self.data)
        shutil.rmtree(made)
        paths = list(checkpoints(self.folder).values())
        for old in paths[: -self.keep] if self.keep else []:
            old.unlink()
