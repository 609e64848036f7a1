"""Settings of a run, read from a YAML file: a pydantic model per section, and the learning-rate schedule.

Unknown keys and values of another type are refused by their dotted path; a null means the default.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from utils.errors import UserError

# The same key under another release's name.
OTHER_NAMES = {"weight_decay_rate": "weight_decay", "max_checkpoints": "keep_checkpoint_max", "steps": "total_iters"}
# Keys of the original hardware and of its fp16 loss scaling: accepted, without effect here.
HARDWARE_KEYS = {
    "Model": "fp16_type use_bfloat16 precision_opt_level",
    "Optimizer": """
        loss_scaling_factor initial_loss_scale steps_per_increase min_loss_scale max_loss_scale log_summaries""",
    "RunConfig": """
        multireplica num_csx cs_ip mgmt_address mgmt_namespace credentials_path mount_dirs python_paths compile_dir
        validate_only compile_only num_wgt_servers num_act_servers num_workers_per_csx transfer_processes job_labels
        job_time_sec debug_args_path compile_crd_memory_gi execute_crd_memory_gi act_memory_gi cmd_memory_gi
        wgt_memory_gi wrk_memory_gi disable_version_check dist_backend init_method enable_distributed is_onnx
        use_cstorch_optimizer_step precision_opt_level experimental_api op_profiler_config dump_activations drop_data""",
}


def parse_number(value: object) -> object:
    """YAML 1.1 reads 6e-6, without a point, as a string."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


Number = Annotated[float, Field(ge=0), BeforeValidator(parse_number)]
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(parse_number)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def hardware_keys(cls) -> list[str]:
        return HARDWARE_KEYS.get(cls.__name__, "").split()

    @model_validator(mode="before")
    @classmethod
    def drop_keys(cls, given: object) -> object:
        """Drop keys of the hardware, and known keys whose value is null."""
        if not isinstance(given, dict):
            return given
        nulls = {key for key in given if given[key] is None and OTHER_NAMES.get(key, key) in cls.model_fields}
        return {key: value for key, value in given.items() if key not in nulls.union(cls.hardware_keys())}


class Input(Section):
    data_processor: Literal["GptHDF5DataProcessor"] = "GptHDF5DataProcessor"
    data_dir: str | list[str]
    vocab_size: PositiveInt | None = None
    max_sequence_length: PositiveInt | None = None
    batch_size: PositiveInt
    shuffle: bool = False
    shuffle_seed: NonNegativeInt | None = None
    num_workers: NonNegativeInt = 0
    drop_last: bool = True
    prefetch_factor: PositiveInt = 10
    persistent_workers: bool = True


class Model(Section):
    vocab_size: PositiveInt = 50257
    position_embedding_type: Literal["rotary"] = "rotary"
    embedding_dropout_rate: Fraction = 0.0
    attention_dropout_rate: Fraction = 0.0
    residual_dropout_rate: Fraction = 0.0
    share_embedding_weights: Literal[False] = False
    hidden_size: PositiveInt
    num_heads: PositiveInt
    num_hidden_layers: PositiveInt
    max_position_embeddings: PositiveInt = 1024
    attention_type: Literal["scaled_dot_product"] = "scaled_dot_product"
    use_projection_bias_in_attention: Literal[False] = False
    use_ffn_bias_in_attention: Literal[False] = False
    use_ffn_bias: Literal[True] = True
    filter_size: PositiveInt
    nonlinearity: Literal["gelu", "gelu_new", "relu"] = "gelu"
    rotary_dim: PositiveInt = Field(64, validate_default=True)
    layer_norm_epsilon: Number = 1e-5
    use_bias_in_output: Literal[True] = True
    initializer_range: Number = 0.02
    loss_scaling: Literal["num_tokens"] = "num_tokens"
    mixed_precision: bool = True

    @field_validator("num_heads")
    @classmethod
    def check_num_heads(cls, heads: int, info: ValidationInfo) -> int:
        if info.data.get("hidden_size", 0) % heads:
            raise ValueError(f"does not divide hidden_size {info.data['hidden_size']}")
        return heads

    @field_validator("rotary_dim")
    @classmethod
    def check_rotary_dim(cls, dim: int, info: ValidationInfo) -> int:
        limit = info.data.get("hidden_size", math.inf) // info.data.get("num_heads", 1)
        if dim > limit or dim % 2:
            raise ValueError(f"must be even and at most {limit}, the size of a head")
        return dim


class Curve(Section):
    scheduler: Literal["Linear", "CosineDecay"]
    initial_learning_rate: Number
    end_learning_rate: Number
    total_iters: PositiveInt = Field(validation_alias=AliasChoices("total_iters", "steps"))

    def rate(self, step: int) -> float:
        share = min(step / self.total_iters, 1)
        if self.scheduler == "CosineDecay":
            share = 1 - (1 + math.cos(math.pi * share)) / 2
        return self.initial_learning_rate + (self.end_learning_rate - self.initial_learning_rate) * share


class Constant(Section):
    scheduler: Literal["Constant"]
    learning_rate: Number
    total_iters: PositiveInt | None = Field(None, validation_alias=AliasChoices("total_iters", "steps"))

    def rate(self, step: int) -> float:
        return self.learning_rate


Scheduler = Annotated[Curve | Constant, Field(discriminator="scheduler")]


class Optimizer(Section):
    optimizer_type: Literal["adamw", "AdamW"] = "adamw"
    eps: Number = 1e-6
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: Number = Field(0.0, validation_alias=AliasChoices("weight_decay", "weight_decay_rate"))
    max_gradient_norm: Number | None = None
    correct_bias: bool = True
    learning_rate: Annotated[list[Scheduler], Field(min_length=1)]

    @field_validator("learning_rate", mode="before")
    @classmethod
    def list_schedulers(cls, given: object) -> list:
        """A number, one scheduler or a list of them, as a list."""
        number = parse_number(given)
        if isinstance(number, int | float):
            return [{"scheduler": "Constant", "learning_rate": number}]
        return given if isinstance(given, list) else [given]

    @field_validator("learning_rate")
    @classmethod
    def check_lengths(cls, schedulers: list) -> list:
        if any(scheduler.total_iters is None for scheduler in schedulers[:-1]):
            raise ValueError("total_iters: missing; only the last scheduler may lack it")
        return schedulers

    def identity(self) -> dict:
        """The settings behind an optimizer state; a run with other values cannot resume from it."""
        names = ("eps", "beta1", "beta2", "weight_decay", "correct_bias")
        return {f"optimizer.{name}": getattr(self, name) for name in names}


class RunConfig(Section):
    max_steps: PositiveInt | None = None
    num_steps: PositiveInt | None = None
    num_epochs: PositiveInt | None = None
    steps_per_epoch: PositiveInt | None = None
    eval_steps: PositiveInt | None = None
    eval_frequency: PositiveInt | None = None
    log_steps: PositiveInt = 1
    checkpoint_steps: NonNegativeInt = 0
    seed: NonNegativeInt = 1
    keep_checkpoint_max: PositiveInt | None = Field(
        None, validation_alias=AliasChoices("keep_checkpoint_max", "max_checkpoints")
    )
    save_initial_checkpoint: bool = False
    autoload_last_checkpoint: bool = True
    check_loss_values: Literal[True] = True


class ModelFile(BaseModel):
    """The section of a YAML file that describes the model."""

    model: Model


class Params(Section):
    """All sections of the file."""

    train_input: Input | None = None
    eval_input: Input | None = None
    model: Model
    optimizer: Optimizer
    runconfig: RunConfig


# Models by the name before a key in the path of an error; the other steps of a path are types of a union.
SECTIONS = {"train_input": Input, "eval_input": Input, "model": Model, "optimizer": Optimizer, "runconfig": RunConfig}
SCHEDULERS = {"Linear": Curve, "CosineDecay": Curve, "Constant": Constant}
UNION_TYPES = {*SCHEDULERS, "str", "list[str]"}


def load(path: Path) -> tuple[Params, list[str]]:
    """The settings with all defaults, and the dotted paths of the keys without effect."""
    content = load_yaml(path)
    params = _validate(Params, content, path)
    given = ((name, key) for name, section in content.items() for key in section or ())
    ignored = [f"{name}.{key}" for name, key in given if key in SECTIONS[name].hardware_keys()]
    return params, ignored


def load_model_section(path: Path) -> dict:
    """The keys given in the `model` section of a YAML file, checked, with numbers as numbers."""
    content = load_yaml(path)
    if not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: has no `model` section")
    return _validate(ModelFile, {"model": content["model"]}, path).model.model_dump(exclude_unset=True)


def _validate(cls: type[BaseModel], content: dict, path: Path):
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        # Unknown keys first: a misspelt key may be a missing one as well.
        first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        raise UserError(f"{path}: {describe_error(first)}") from error


def load_yaml(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a YAML mapping")
    return loaded


def describe_error(error: dict) -> str:
    parts = [part for part in error["loc"] if part not in UNION_TYPES]
    path = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, parts)))
    if error["type"] == "missing":
        return f"{path}: missing"
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        known = (SECTIONS | SCHEDULERS)[parents[-1]].model_fields if parents else SECTIONS
        if OTHER_NAMES.get(key) in known:
            return f"{path}: given twice, also as {OTHER_NAMES[key]}"
        close = difflib.get_close_matches(str(key), known, 1)
        return f"{path}: unknown" + (f"; did you mean {close[0]}?" if close else "")
    value = error["input"]
    shown = f"{value!r}: " if isinstance(value, str | int | float) else ""
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {shown}{message[0].lower()}{message[1:]}"


def make_schedule(schedulers: list) -> Callable[[int], float]:
    """step (from 0) -> learning rate. One scheduler after the other, each counted from its own first step; the
    last one continues without end."""

    def rate(step: int) -> float:
        for scheduler in schedulers[:-1]:
            if step < scheduler.total_iters:
                return scheduler.rate(step)
            step -= scheduler.total_iters
        return schedulers[-1].rate(step)

    return rate
