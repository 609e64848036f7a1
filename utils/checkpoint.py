"""Checkpoints: loading with validation, and the newest complete checkpoint of a run."""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from utils import paths
from utils.device import is_main_process
from utils.errors import UserError, first_line
from utils.hub import use_cache_without_network
from utils.progress import working
from utils.shards import shards_of_index

# What transformers makes of a configuration with values that no model has.
BAD_CONFIG = (StrictDataclassError, ZeroDivisionError, OverflowError, TypeError, KeyError, AttributeError)
ODD_CONFIG = "its config.json describes no model; download it again"


def load_checkpoint(name: str, dtype: torch.dtype, flag: str):
    """A causal language model from a folder or the hub, on the CPU.

    Raises UserError, which names the command-line `flag`, where no model is found, and where weights are damaged,
    have another shape than the config says, or are missing (transformers would initialise them at random).
    """
    folder = find_checkpoint(name, flag)
    for index in Path(folder).glob("*.index.json") if Path(folder).is_dir() else ():
        shards_of_index(index)  # which may not lie outside of the folder
    try:
        with working(f"loading {paths.short_name(name)}"):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except ImportError as error:  # of a quantised checkpoint
        raise UserError(f"{flag} {name}: needs a package that is not installed: {first_line(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} {name}: not a checkpoint folder, and could not be loaded from the Hub ({first_line(error)})"
        ) from error
    except BAD_CONFIG as error:
        raise UserError(f"{flag} {name}: {ODD_CONFIG} ({first_line(error)})") from error
    except (SafetensorError, UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{flag} {name}: its weights are damaged, or of another shape than its config says ({first_line(error)})"
        ) from error
    if missing := loaded["missing_keys"]:
        raise UserError(f"{flag} {name}: lacks {len(missing)} weights, for example {min(missing)}; download it again")
    if surplus := surplus_layers(model, loaded["unexpected_keys"]):
        raise UserError(
            f"{flag} {name}: has weights of more layers than its config.json says, for example {min(surplus)}; "
            "download it again"
        )
    return model


def surplus_layers(model, unexpected: Iterable[str]) -> list[str]:
    """The unexpected weights that stand where the model's own layers are: it would run without them."""
    layer = re.compile(r"^(.*\b(?:layers|h|blocks)\.)\d+\.")
    places = {match[1] for name, _ in model.named_parameters() if (match := layer.match(name))}
    return [name for name in unexpected if (match := layer.match(name)) and match[1] in places]


def find_checkpoint(name: str, flag: str) -> str:
    """The folder of a checkpoint, or its Hub name. Raises UserError, which names the command-line `flag`, where there
    is none."""
    found = paths.resolve_checkpoint(name)
    if Path(found).is_dir() and not (Path(found) / "config.json").is_file():
        raise UserError(f"{flag} {found}: holds no model (config.json); resume the run with scripts/train.sh")
    if not Path(found).is_dir() and not paths.looks_like_hub_name(name):
        raise UserError(f"{flag} {name}: no such folder")
    use_cache_without_network()
    return found


def load_config(name: str, flag: str):
    """A checkpoint's configuration, from a folder or the hub."""
    folder = find_checkpoint(name, flag)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name}: its configuration could not be loaded ({first_line(error)})") from error
    except BAD_CONFIG as error:
        raise UserError(f"{flag} {name}: {ODD_CONFIG} ({first_line(error)})") from error


def text_config(model):
    """The configuration of a model's language part: of a model for text and images the nested one, else its own."""
    return model.config.get_text_config(decoder=True)


def quantization_method(config) -> str | None:
    """The method by which a checkpoint's weights are quantised, such as gptq; None where they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    return str(settings.get("quant_method", "unknown method"))


def context_length(model) -> int | None:
    """Tokens that the model can read; None where its configuration names no limit (recurrent models, ALiBi)."""
    config = text_config(model)
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len")
    return next((length for name in names if (length := getattr(config, name, None))), None)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; incomplete ones are removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / paths.COMPLETE).is_file():
            complete.append(path)
        elif is_main_process():
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)


@contextmanager
def say_what_is_kept(folder: Path, save_steps: int) -> Iterator[None]:
    """Give Ctrl-C during a run the words that errors.run() prints: "resumes after step 500"."""
    try:
        yield
    except KeyboardInterrupt as error:
        steps = [int(path.parent.name.partition("-")[2]) for path in folder.glob(f"checkpoint-*/{paths.COMPLETE}")]
        first = f"starts over: no checkpoint yet, the first comes at step {save_steps:,} (--save_steps)"
        raise KeyboardInterrupt(f"resumes after step {max(steps):,}" if steps else first) from error


def remove_older_checkpoints(folder: Path, keep: int) -> None:
    """Keep the newest `keep` complete checkpoints of a run. Called once the newest is complete and synced."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / paths.COMPLETE).is_file()]
    for path in sorted(complete, key=lambda path: int(path.name.partition("-")[2]))[:-keep]:
        (path / paths.COMPLETE).unlink()  # first: a kill here must not leave half of it as complete
        shutil.rmtree(path)


def remove_checkpoints(folder: Path) -> None:
    """Remove from a finished run what only resuming needs; a checkpoint takes three times the fp32 weights."""
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json has the same content
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
