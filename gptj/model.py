"""TODO gptj.model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj import formats
from gptj.checkpoint import check_data, checkpoints
from gptj.hdf5 import Data
from gptj.params import recipe
from utils.cli import print_main
from utils.device import is_main_process
from utils.errors import UserError
from utils.io import read_json


@dataclass(frozen=True)
class Start:
    """What a run begins from: weights (Hugging Face names; None: random ones) and the step. `resumed`
    is a checkpoint's whole content, where the optimizer goes on, too."""

    step: int = 0
    weights: dict | None = None
    resumed: dict | None = None
    path: Path | None = None


def find_start(args, params: dict, training: Data | None) -> Start:
    there = checkpoints(args.model_dir)
    path = args.checkpoint_path
    if path is None and there and params["runconfig"]["autoload_last_checkpoint"]:
        path = list(there.values())[-1]
    if path is None:
        if args.is_pretrained_checkpoint:
            raise UserError("--is_pretrained_checkpoint: needs --checkpoint_path")
        if args.mode == "eval":
            raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; give --checkpoint_path")
        return Start()
    if path.is_dir():
        return Start(weights=without_made(formats.load_hf(path)), path=path)
    loaded = formats.load_mdl(path)
    weights = formats.to_hf(loaded["model"], str(path))
    if args.is_pretrained_checkpoint or "optimizer" not in loaded:
        return Start(weights=weights, path=path)
    step = int(loaded["global_step"])
    if training is None:
        return Start(step, weights, path=path)
    if "trainer" not in loaded:
        raise UserError(
            f"{path}: its optimizer is of another program; give --is_pretrained_checkpoint to begin from its weights"
        )
    check_data(loaded, training.identity() | recipe(params), path)
    return Start(step, weights, loaded, path)


def without_made(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not formats.MADE_BY_CODE.fullmatch(name)}


def build_model(params: dict, start: Start, strict: bool):
    """A GPT-J with fp32 weights; random ones where there is no checkpoint."""
    config = GPTJConfig(**formats.config_to_hf(params["model"]), use_cache=False)
    with torch.random.fork_rng():
        torch.manual_seed(params["runconfig"]["seed"])
        model = GPTJForCausalLM(config).float()
    if start.weights is None:
        return model
    try:
        weights = {name: tensor.float() for name, tensor in start.weights.items()}
        differing = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{start.path}: of another shape than `model` says ({' '.join(str(error).split())[:200]})"
        ) from error
    wrong = differing.missing_keys + differing.unexpected_keys
    if wrong and strict:
        raise UserError(
            f"{start.path}: {len(wrong)} weights missing or too many, {wrong[0]} for one; --disable_strict_checkpoint_loading takes what fits"
        )
    print_main(f"weights from {start.path}, step {start.step}")
    return model


def export(model, folder: Path, tokenizer: str | None, data: Data) -> None:
    """A folder that evaluation.py and transformers take: weights, configuration, tokenizer."""
    if not is_main_process():
        return
    manifest = data.files[0].parent / "data_params.json"
    model.save_pretrained(folder)
    if tokenizer is None and manifest.is_file():
        # The release's own manifest has no `settings`.
        found = read_json(manifest, "give --tokenizer")
        tokenizer = found.get("settings", {}).get("tokenizer") if isinstance(found, dict) else None
    if tokenizer and tokenizer != "None":
        from utils.tokenizer import load_tokenizer

        load_tokenizer(tokenizer).save_pretrained(folder)
    else:
        print_main(f"{folder}: without a tokenizer; give --tokenizer NAME_OR_FOLDER")
    print_main(f"{folder}: a Hugging Face checkpoint")
