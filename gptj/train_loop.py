"""What gptj/run.py does: data, model and checkpoint named in a YAML file, put on the shared trainer."""

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import DataLoader
from transformers import GPTJConfig, GPTJForCausalLM, TrainerCallback, default_data_collator
from transformers.utils import logging

from data import cptdata
from gptj import formats
from gptj.checkpoint import SingleFiles, check_data, checkpoints, save_weights, unpack
from gptj.params import learning_rate
from training import trainer
from training.optim import AdamW
from training.settings import Settings, choose_sharding, fit_memory, is_main_process
from utils.io import UserError, read_json


def quiet() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def say(*words) -> None:
    if is_main_process():
        print(*words, flush=True)


def check_device(device: str) -> None:
    if device == "GPU" and not torch.cuda.is_available():
        raise UserError("GPU: torch sees none here; give CPU")
    if device == "CPU" and torch.cuda.is_available():
        raise UserError("CPU: this machine has GPUs; hide them with CUDA_VISIBLE_DEVICES= to use the CPU")  # fmt: skip


@dataclass(frozen=True)
class Data:
    """The checked files of one input section."""

    section: dict
    files: list[Path]
    counts: list[int]
    length: int

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def steps(self, epochs: int) -> int:
        """Without drop_last an epoch may end within a batch, and the next one begin there."""
        bs = self.section["batch_size"]
        if self.section["drop_last"]:
            return epochs * (self.rows // bs)
        return -(-epochs * self.rows // bs)

    def seed(self) -> int | None:
        return (self.section["shuffle_seed"] or 0) if self.section["shuffle"] else None

    def identity(self) -> dict:
        """What decides which rows a step sees."""
        named = [
            f"{path.name}:{count}" for path, count in zip(self.files, self.counts, strict=True)
        ]
        return {
            "train_input.data_dir": named,
            "train_input.batch_size": self.section["batch_size"],
            "train_input.shuffle": self.section["shuffle"],
            "train_input.shuffle_seed": self.seed(),
            "train_input.drop_last": self.section["drop_last"],
            "train_input.files": self.hashes(),
        }

    def hashes(self) -> list[str]:
        """Of the files, as their manifests have them; nothing for folders without one of ours."""
        found = []
        for manifest in sorted({path.parent / "data_params.json" for path in self.files}):
            content = read_json(manifest, "make the files again") if manifest.is_file() else {}
            files = content.get("files", []) if isinstance(content, dict) else []
            found += [file.get("sha256") for file in files if isinstance(file, dict)]
        return found


def open_data(params: dict, name: str) -> Data:
    if name not in params:
        raise UserError(f"{name}: this section is missing")
    section, model = params[name], params["model"]
    folders = section["data_dir"] if isinstance(section["data_dir"], list) else [section["data_dir"]]  # fmt: skip
    files = []
    for folder in map(Path, folders):
        found = sorted(folder.glob("*.h5"))
        if not found:
            raise UserError(f"{name}.data_dir: {folder}: no .h5 files in it; run: python gptj/create_hdf5.py")  # fmt: skip
        if (folder / ".settings.json").exists():
            raise UserError(f"{name}.data_dir: {folder}: unfinished; run gptj/create_hdf5.py again with --resume_from_checkpoint")  # fmt: skip
        files += found
    if section["vocab_size"] not in (None, model["vocab_size"]):
        raise UserError(f"{name}.vocab_size: {section['vocab_size']}, and model.vocab_size is {model['vocab_size']}")  # fmt: skip
    counts, length = cptdata.check_hdf5(files, model["vocab_size"], model["max_position_embeddings"])  # fmt: skip
    if section["max_sequence_length"] not in (None, length):
        raise UserError(f"{name}.max_sequence_length: {section['max_sequence_length']}, and the rows of {files[0]} have {length} tokens")  # fmt: skip
    data = Data(section, files, counts, length)
    if name == "train_input" and not data.steps(1):
        raise UserError(f"{name}.batch_size: {section['batch_size']}, and there are {data.rows} rows")  # fmt: skip
    return data


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
            raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; give --checkpoint_path")  # fmt: skip
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
        raise UserError(f"{path}: its optimizer is of another program; give --is_pretrained_checkpoint to begin from its weights")  # fmt: skip
    check_data(loaded, training.identity() | recipe(params), path)
    return Start(step, weights, loaded, path)


def without_made(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not formats.MADE_BY_CODE.fullmatch(name)}  # fmt: skip


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
        raise UserError(f"{start.path}: of another shape than `model` says ({' '.join(str(error).split())[:200]})") from error  # fmt: skip
    wrong = differing.missing_keys + differing.unexpected_keys
    if wrong and strict:
        raise UserError(f"{start.path}: {len(wrong)} weights missing or too many, {wrong[0]} for one; --disable_strict_checkpoint_loading takes what fits")  # fmt: skip
    say(f"weights from {start.path}, step {start.step}")
    return model


def recipe(params: dict) -> dict:
    """What an optimizer's state holds of the YAML file: to go on with other values is another run."""
    names = ("eps", "beta1", "beta2", "weight_decay", "correct_bias")
    return {f"optimizer.{name}": params["optimizer"][name] for name in names}


def target_step(params: dict, start: int, data: Data) -> int:
    """The step to train up to. Raises UserError where the run is there already."""
    config = params["runconfig"]
    if config["num_steps"]:
        return start + config["num_steps"]
    epochs, per_epoch = config["num_epochs"], config["steps_per_epoch"]
    if per_epoch and not epochs:
        raise UserError("runconfig.steps_per_epoch: has a meaning with num_epochs alone")
    last = config["max_steps"] or (epochs and min(epochs * (per_epoch or math.inf), data.steps(epochs)))  # fmt: skip
    if not last:
        raise UserError("runconfig.max_steps: missing; or give --max_steps, --num_steps or --num_epochs")  # fmt: skip
    if start >= last:
        raise UserError(f"the checkpoint is at step {start}, and max_steps is {last}: nothing to train; give a larger --max_steps, or --num_steps")  # fmt: skip
    return last


def refuse_later_checkpoints(folder: Path, start: Start) -> None:
    """A run may not write among the later checkpoints of another."""
    later = [path for step, path in checkpoints(folder).items() if step > start.step]
    if later:
        raise UserError(f"{later[-1]}: later than step {start.step}, where this run begins; leave out --checkpoint_path to go on from it, or give another --model_dir")  # fmt: skip


def settings_of(params: dict, data: Data, last: int) -> Settings:
    config, optimizer = params["runconfig"], params["optimizer"]
    return Settings(
        lr=1.0,  # times the schedule
        bs=data.section["batch_size"],
        wd=optimizer["weight_decay"],
        warmup=0.0,
        seed=config["seed"],
        block_size=data.length,
        save_steps=config["checkpoint_steps"] or last,
        keep_checkpoints=1,
        precision="bf16" if params["model"]["mixed_precision"] else "fp32",
        sharding=choose_sharding("none", 0),
        report_to="tensorboard",
        max_grad_norm=optimizer["max_gradient_norm"] or 0.0,  # 0: no clipping
        num_workers=data.section["num_workers"],
        prefetch=data.section["prefetch_factor"],
        keep_workers=data.section["persistent_workers"],
    )


def train(args, params: dict, model, start: Start, data: Data, validation: Data | None) -> None:
    """Train up to the target step."""
    optimizer, folder = params["optimizer"], args.model_dir
    work = folder / ".trainer"  # where the Trainer writes what becomes .mdl files
    refuse_later_checkpoints(folder, start)
    last = target_step(params, start.step, data)
    settings, memory = fit_memory(model, settings_of(params, data, last), "auto", flags=False)  # fmt: skip
    say(f"training {memory}")
    order = cptdata.order_of_rows(data.rows, settings.bs, last, data.section["drop_last"], data.seed())  # fmt: skip
    rows = cptdata.Hdf5Rows(data.files, data.counts, order)
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        if is_main_process():
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed while it wrote one
            if start.resumed:
                unpack(start.resumed, work / f"checkpoint-{start.step}")
            elif (folder / "metrics.jsonl").is_file():
                (folder / "metrics.jsonl").unlink()
    if start.weights:
        start.weights.clear()  # the model has them
    initial = params["runconfig"]["save_initial_checkpoint"] and start.step == 0
    if initial and is_main_process():
        save_weights(model, folder / "checkpoint_0.mdl")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "train")
    callbacks = [
        SingleFiles(
            folder, data.identity() | recipe(params), params["runconfig"]["keep_checkpoint_max"]
        ),
        Console(args.device, params["runconfig"]["log_steps"], settings.bs),
    ]
    if validation:
        callbacks.append(Evaluation(params, validation, folder))
    adamw = {
        "lr": settings.lr,
        "betas": (optimizer["beta1"], optimizer["beta2"]),
        "eps": optimizer["eps"],
        "early_eps": True,
        "correct_bias": optimizer["correct_bias"],
    }
    rate = learning_rate(optimizer["learning_rate"])
    trainer.train(
        model,
        None,
        rows,
        None,
        settings,
        work,
        rate,
        (AdamW, adamw),
        callbacks,
        folder / "metrics.jsonl",
    )
    if is_main_process():  # another rank may be here while this one writes the last .mdl
        shutil.rmtree(work, ignore_errors=True)


class Console(TrainerCallback):
    """`| Train Device=CPU, Step=50, Loss=3.14159, Rate=…`"""

    def __init__(self, device: str, every: int, bs: int):
        self.device, self.every, self.bs = device, every, bs

    def on_train_begin(self, args, state, control, **unused) -> None:
        self.first, self.begun = state.global_step, time.monotonic()
        self.told, self.told_at = self.first, self.begun

    def on_log(self, args, state, control, logs=None, **unused) -> None:
        step = state.global_step
        if "loss" not in logs or (step % self.every and step != state.max_steps):
            return
        now = time.monotonic()
        recent = (step - self.told) * self.bs / (now - self.told_at)
        overall = (step - self.first) * self.bs / (now - self.begun)
        self.told, self.told_at = step, now
        say(f"| Train Device={self.device}, Step={step}, Loss={logs['loss']:.5f}, Rate={recent:.2f} samples/sec, GlobalRate={overall:.2f} samples/sec")  # fmt: skip


class Evaluation(TrainerCallback):
    """Evaluates every runconfig.eval_frequency steps, and at the end."""

    def __init__(self, params: dict, data: Data, folder: Path):
        self.params, self.data, self.folder = params, data, folder

    def on_step_end(self, args, state, control, model=None, **unused) -> None:
        every = self.params["runconfig"]["eval_frequency"]
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            evaluate(self.params, model, self.data, state.global_step, self.folder)

    def on_train_end(self, args, state, control, model=None, **unused) -> None:
        evaluate(self.params, model, self.data, state.global_step, self.folder)


def evaluate(params: dict, model, data: Data, step: int, folder: Path) -> dict:
    """The mean over batches of Σ(ce·mask)/Σmask; the perplexity, exp of the same over all tokens at
    once; and the share of counted labels that are the likeliest. Printed, and written as TensorBoard
    events."""
    bs, most = data.section["batch_size"], params["runconfig"]["eval_steps"]
    order = cptdata.order_of_rows(data.rows, bs, data.steps(1), data.section["drop_last"], data.seed())  # fmt: skip
    order = order[: data.rows]
    if not len(order):
        raise UserError(f"eval_input.batch_size: {bs}, and there are {data.rows} rows; give drop_last: false")  # fmt: skip
    if len(order) < data.rows:
        say(
            f"{data.rows - len(order)} rows, less than a batch, are left out (eval_input.drop_last)"
        )
    rows = cptdata.Hdf5Rows(data.files, data.counts, order)
    workers = data.section["num_workers"]
    loader = DataLoader(
        rows,
        bs,
        collate_fn=default_data_collator,
        num_workers=workers,
        prefetch_factor=data.section["prefetch_factor"] if workers else None,
        persistent_workers=data.section["persistent_workers"] and workers > 0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    losses = []
    total = torch.zeros((), device=device)  # in fp32, as the release's
    right = counted = torch.zeros((), dtype=torch.int64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=params["model"]["mixed_precision"]):  # fmt: skip
        for number, batch in enumerate(loader):
            if number == most:
                break
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device).flatten()
            hidden = model.transformer(input_ids=ids).last_hidden_state.flatten(0, 1)
            # Not the model's own output layer, which hands hidden states on while it is trained.
            logits = linear(hidden, model.lm_head.weight, model.lm_head.bias).float()
            tokens = (labels != cptdata.IGNORED).sum()
            if not tokens:
                continue
            nll = cross_entropy(
                logits, labels, ignore_index=cptdata.IGNORED, reduction="none"
            ).sum()
            losses.append((nll / tokens).item())
            total, counted = total + nll, counted + tokens
            right += (logits.argmax(-1) == labels).sum()
    model.train(was_training)
    if not losses:
        raise UserError("eval_input: no label is counted by the mask")
    found = {
        "loss": float(np.mean(losses)),
        "eval/lm_perplexity": math.exp((total / counted).item()),
        "eval/accuracy": (right / counted).item(),
    }
    report(found, step, folder)
    return found


def report(found: dict, step: int, folder: Path) -> None:
    if not is_main_process():
        return
    from tensorboardX import SummaryWriter

    say(f"| Eval Step={step}, Avg Eval Loss={found['loss']}")
    say(f"Metric: eval/lm_perplexity = {found['eval/lm_perplexity']}")
    say(f"Metric: eval/accuracy = {found['eval/accuracy']}")
    with SummaryWriter(str(folder / "eval")) as writer:
        for name, value in found.items():
            writer.add_scalar(name, value, step)


def evaluate_all(args, params: dict, data: Data):
    """Every checkpoint of the folder, in order of steps; returns the last one's model."""
    model = None
    for step, path in checkpoints(args.model_dir).items():
        weights = formats.to_hf(formats.load_mdl(path)["model"], str(path))
        start = Start(step, weights, path=path)
        model = build_model(params, start, not args.disable_strict_checkpoint_loading)
        evaluate(params, model, data, step, args.model_dir)
    if model is None:
        raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; run: --mode train")
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
        say(f"{folder}: without a tokenizer; give --tokenizer NAME_OR_FOLDER")
    say(f"{folder}: a Hugging Face checkpoint")
