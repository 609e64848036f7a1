"""The YAML file of a run, checked: every key is known and of its type, or the user is told its path."""

import contextlib
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.errors import UserError

REQUIRED = object()
NUMBER = (int, float)


@dataclass(frozen=True)
class Key:
    """What a key may hold: its types, its default, and what else must be true of it, in words."""

    types: type | tuple
    default: object = None
    rule: str = ""
    holds: Callable = lambda value: True


def whole(default, least: int = 0) -> Key:
    return Key(int, default, f"a whole number, {least} or more", lambda n: n >= least)


def number(default) -> Key:
    return Key(NUMBER, default, "a number, 0 or more", lambda x: 0 <= x < math.inf)


def yes_no(default: bool) -> Key:
    return Key(bool, default, "true or false")


def only(*values) -> Key:
    said = " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
    return Key(type(values[0]), values[0], said, lambda value: value in values)


INPUT = {
    "data_processor": only("GptHDF5DataProcessor"),
    "data_dir": Key((str, list), REQUIRED, "a folder, or a list of them"),
    "vocab_size": whole(None, 1),
    "max_sequence_length": whole(None, 1),
    "batch_size": whole(REQUIRED, 1),
    "shuffle": yes_no(False),
    "shuffle_seed": whole(None),
    "num_workers": whole(0),
    "drop_last": yes_no(True),
    "prefetch_factor": whole(10, 1),
    "persistent_workers": yes_no(True),
}
MODEL = {
    "vocab_size": whole(50257, 1),
    "position_embedding_type": only("rotary"),
    "embedding_dropout_rate": number(0.0),
    "attention_dropout_rate": number(0.0),
    "residual_dropout_rate": number(0.0),
    "share_embedding_weights": only(False),
    "hidden_size": whole(REQUIRED, 1),
    "num_heads": whole(REQUIRED, 1),
    "num_hidden_layers": whole(REQUIRED, 1),
    "max_position_embeddings": whole(1024, 1),
    "attention_type": only("scaled_dot_product"),
    "use_projection_bias_in_attention": only(False),
    "use_ffn_bias_in_attention": only(False),
    "use_ffn_bias": only(True),
    "filter_size": whole(REQUIRED, 1),
    "nonlinearity": only("gelu", "gelu_new", "relu"),
    "rotary_dim": whole(64, 2),
    "layer_norm_epsilon": number(1e-5),
    "use_bias_in_output": only(True),
    "initializer_range": number(0.02),
    "loss_scaling": only("num_tokens"),
    "mixed_precision": yes_no(True),
}
OPTIMIZER = {
    "optimizer_type": only("adamw", "AdamW"),
    "eps": number(1e-6),
    "beta1": Key(NUMBER, 0.9, "a number from 0 to below 1", lambda x: 0 <= x < 1),
    "beta2": Key(NUMBER, 0.999, "a number from 0 to below 1", lambda x: 0 <= x < 1),
    "weight_decay": number(0.0),
    "max_gradient_norm": number(None),
    "correct_bias": yes_no(True),
    "learning_rate": Key((*NUMBER, dict, list), REQUIRED, "a number, or a list of schedulers"),
}
RUNCONFIG = {
    "max_steps": whole(None, 1),
    "num_steps": whole(None, 1),
    "num_epochs": whole(None, 1),
    "steps_per_epoch": whole(None, 1),
    "eval_steps": whole(None, 1),
    "eval_frequency": whole(None, 1),
    "log_steps": whole(1, 1),
    "checkpoint_steps": whole(0),
    "seed": whole(1),
    "keep_checkpoint_max": whole(None, 1),
    "save_initial_checkpoint": yes_no(False),
    "autoload_last_checkpoint": yes_no(True),
    "check_loss_values": only(True),
}
SECTIONS = {"train_input": INPUT, "eval_input": INPUT, "model": MODEL, "optimizer": OPTIMIZER, "runconfig": RUNCONFIG}
# The same thing under the name that another release gave it.
OTHER_NAMES = {"weight_decay_rate": "weight_decay", "max_checkpoints": "keep_checkpoint_max", "steps": "total_iters"}
# What only the original hardware, or its loss scaling for fp16, understands.
HARDWARE = {
    "model": {"fp16_type", "use_bfloat16", "precision_opt_level"},
    "optimizer": {
        "loss_scaling_factor",
        "initial_loss_scale",
        "steps_per_increase",
        "min_loss_scale",
        "max_loss_scale",
        "log_summaries",
    },
    "runconfig": {
        "multireplica",
        "num_csx",
        "cs_ip",
        "mgmt_address",
        "mgmt_namespace",
        "credentials_path",
        "mount_dirs",
        "python_paths",
        "compile_dir",
        "validate_only",
        "compile_only",
        "num_wgt_servers",
        "num_act_servers",
        "num_workers_per_csx",
        "transfer_processes",
        "job_labels",
        "job_time_sec",
        "debug_args_path",
        "compile_crd_memory_gi",
        "execute_crd_memory_gi",
        "act_memory_gi",
        "cmd_memory_gi",
        "wgt_memory_gi",
        "wrk_memory_gi",
        "disable_version_check",
        "dist_backend",
        "init_method",
        "enable_distributed",
        "is_onnx",
        "use_cstorch_optimizer_step",
        "precision_opt_level",
        "experimental_api",
        "op_profiler_config",
        "dump_activations",
        "drop_data",
    },
}
CURVE = {
    "initial_learning_rate": number(REQUIRED),
    "end_learning_rate": number(REQUIRED),
    "total_iters": whole(REQUIRED, 1),
}
SCHEDULERS = {
    "Linear": CURVE,
    "CosineDecay": CURVE,
    "Constant": {"learning_rate": number(REQUIRED), "total_iters": whole(None, 1)},
}


def load_yaml(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: not there")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: no YAML mapping")
    return loaded


def load(path: Path) -> tuple[dict, list[str]]:
    """The file with all defaults, by section, and what is accepted and without effect here."""
    given = load_yaml(path)
    unknown = [name for name in given if name not in SECTIONS]
    if unknown:
        raise UserError(f"{path}: {unknown[0]}: unknown section{_meant(unknown[0], SECTIONS)}")
    for name in ("model", "optimizer", "runconfig"):
        if name not in given:
            raise UserError(f"{path}: {name}: this section is missing")
    params, ignored = {}, []
    for name, section in given.items():
        if not isinstance(section, dict):
            raise UserError(f"{path}: {name}: no mapping of keys")
        ignored += [f"{name}.{key}" for key in section if key in HARDWARE.get(name, ())]
        meant = {k: v for k, v in section.items() if k not in HARDWARE.get(name, ())}
        params[name] = checked(meant, SECTIONS[name], f"{path}: {name}")
    rates = params["optimizer"]["learning_rate"]
    params["optimizer"]["learning_rate"] = _schedulers(rates, f"{path}: optimizer.learning_rate")
    _check_model(params["model"], f"{path}: model")
    return params, ignored


def checked(given: dict, keys: dict[str, Key], where: str) -> dict:
    """`given` under today's names, with defaults. Raises UserError that names the key's path."""
    found = {}
    for old, value in given.items():
        name = OTHER_NAMES.get(old, old)
        path = f"{where}.{old}"
        if name not in keys:
            raise UserError(f"{path}: unknown{_meant(old, [*keys, *OTHER_NAMES])}")
        if name in found:
            raise UserError(f"{path}: given twice, as {name} too")
        found[name] = _value(value, keys[name], path)
    for name, key in keys.items():
        if key.default is REQUIRED and found.get(name) is None:
            raise UserError(f"{where}.{name}: missing")
    said = {name: value for name, value in found.items() if value is not None}
    return {name: key.default for name, key in keys.items()} | said


def _value(value, key: Key, path: str):
    if value is None:
        return None
    if isinstance(value, str) and isinstance(key.types, tuple) and float in key.types:
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 takes 6e-6 for a text
    wrong = isinstance(value, bool) and key.types is not bool
    if wrong or not isinstance(value, key.types) or not key.holds(value):
        raise UserError(f"{path}: {value!r}, where {key.rule} is wanted")
    return value


def _meant(name: str, known) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _schedulers(given, where: str) -> list[dict]:
    """A number, one scheduler or a list of them, as a list."""
    if isinstance(given, NUMBER):
        given = [{"scheduler": "Constant", "learning_rate": given}]
    found = []
    for index, entry in enumerate(given if isinstance(given, list) else [given]):
        path = f"{where}[{index}]"
        if not isinstance(entry, dict) or "scheduler" not in entry:
            raise UserError(f"{path}.scheduler: missing")
        name = entry["scheduler"]
        if not isinstance(name, str) or name not in SCHEDULERS:
            raise UserError(f"{path}.scheduler: {name!r} is unknown; there are {', '.join(SCHEDULERS)}")
        rest = {key: value for key, value in entry.items() if key != "scheduler"}
        found.append({"scheduler": name} | checked(rest, SCHEDULERS[name], path))
    for index, entry in enumerate(found[:-1]):
        if entry["total_iters"] is None:
            raise UserError(f"{where}[{index}].total_iters: missing, and others come after it")
    if not found:
        raise UserError(f"{where}: empty")
    return found


def _check_model(model: dict, where: str) -> None:
    width = model["hidden_size"] / model["num_heads"]
    if width != int(width):
        raise UserError(f"{where}.num_heads: {model['num_heads']} does not divide hidden_size {model['hidden_size']}")
    if model["rotary_dim"] > width or model["rotary_dim"] % 2:
        raise UserError(
            f"{where}.rotary_dim: {model['rotary_dim']}, where an even number up to a head's {int(width)} is wanted"
        )
    for name in ("embedding_dropout_rate", "attention_dropout_rate", "residual_dropout_rate"):
        if model[name] >= 1:
            raise UserError(f"{where}.{name}: {model[name]}, where a share below 1 is wanted")


def learning_rate(schedulers: list[dict]) -> Callable[[int], float]:
    """step (counted from 0) -> rate: one scheduler after the other, each from its own begin; the last
    one's end stays."""

    def rate(step: int) -> float:
        for entry in schedulers[:-1]:
            if step < entry["total_iters"]:
                return _rate(entry, step)
            step -= entry["total_iters"]
        return _rate(schedulers[-1], step)

    return rate


def _rate(entry: dict, step: int) -> float:
    if entry["scheduler"] == "Constant":
        return entry["learning_rate"]
    begin, end = entry["initial_learning_rate"], entry["end_learning_rate"]
    share = min(step / entry["total_iters"], 1)
    if entry["scheduler"] == "CosineDecay":
        share = 1 - (1 + math.cos(math.pi * share)) / 2
    return begin + (end - begin) * share


def recipe(params: dict) -> dict:
    """What an optimizer's state holds of the YAML file: to go on with other values is another run."""
    names = ("eps", "beta1", "beta2", "weight_decay", "correct_bias")
    return {f"optimizer.{name}": params["optimizer"][name] for name in names}
