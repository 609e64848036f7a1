"""Sections of a run's YAML file as pydantic models, and the learning-rate schedule. A null means the default."""

import contextlib
import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gptj.architectures import architecture_of
from utils.cli import LARGEST

# The same key under another release's name.
OTHER_NAMES = {
    "weight_decay_rate": "weight_decay",
    "max_checkpoints": "keep_checkpoint_max",
    "steps": "total_iters",
    "decay_steps": "total_iters",
}
# Accepted, without effect here: keys of the original hardware and of its fp16 loss scaling, and of the initialization
# of new weights, which are drawn with initializer_range.
KEYS_WITHOUT_EFFECT = {
    "Model": """
        fp16_type use_bfloat16 precision_opt_level name embedding_initializer initializer output_layer_initializer""",
    "Optimizer": """
        use_bias_correction loss_scaling_factor initial_loss_scale steps_per_increase min_loss_scale max_loss_scale log_summaries""",
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


PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=0), BeforeValidator(parse_number)]
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(parse_number)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def keys_without_effect(cls) -> list[str]:
        return KEYS_WITHOUT_EFFECT.get(cls.__name__, "").split()

    @model_validator(mode="before")
    @classmethod
    def drop_keys(cls, given: object) -> object:
        """Drop keys without effect, and known keys whose value is null."""
        if not isinstance(given, dict):
            return given
        nulls = {key for key in given if given[key] is None and OTHER_NAMES.get(key, key) in cls.model_fields}
        return {key: value for key, value in given.items() if key not in nulls.union(cls.keys_without_effect())}


HDF5_PROCESSOR = "GptHDF5DataProcessor"


class Input(Section):
    """HDF5 files, as gptj/create_hdf5.py writes them."""

    data_processor: Literal[HDF5_PROCESSOR] = HDF5_PROCESSOR
    data_dir: str | list[str]
    vocab_size: PositiveInt | None = None
    max_sequence_length: PositiveInt | None = None
    batch_size: PositiveInt
    shuffle: bool = False
    shuffle_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    num_workers: NonNegativeInt = 0
    drop_last: bool = True
    prefetch_factor: PositiveInt = 10
    persistent_workers: bool = True


class OwnInput(Input):
    """A data loader of the user's own (gptj/own_loader.py), which is given all keys, and may have more."""

    model_config = ConfigDict(extra="allow")

    data_processor: str
    data_dir: str | list[str] | None = None


def _input_kind(given: object) -> str:
    name = given.get("data_processor") if isinstance(given, dict) else getattr(given, "data_processor", None)
    return "hdf5" if name in (None, HDF5_PROCESSOR) else "own"


AnyInput = Annotated[Annotated[Input, Tag("hdf5")] | Annotated[OwnInput, Tag("own")], Discriminator(_input_kind)]


class Model(Section):
    """A GPT-J or, with use_untied_layer_norm, a GPT-NeoX."""

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
    use_untied_layer_norm: bool = False
    use_projection_bias_in_attention: bool | None = Field(None, validate_default=True)
    use_ffn_bias_in_attention: bool | None = Field(None, validate_default=True)
    use_ffn_bias: Literal[True] = True
    filter_size: PositiveInt
    nonlinearity: Literal["gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "silu"] = "gelu"
    rotary_dim: PositiveInt | None = Field(None, validate_default=True)
    norm_type: Literal["layernorm"] = "layernorm"
    pos_scaling_factor: Literal[1.0] = 1.0
    layer_norm_epsilon: Number = 1e-5
    use_bias_in_output: bool | None = Field(None, validate_default=True)
    initializer_range: Number = 0.02
    loss_scaling: Literal["num_tokens", "batch_size"] = "num_tokens"
    loss_weight: Annotated[float, Field(gt=0), BeforeValidator(parse_number)] = 1.0
    mixed_precision: bool = True

    @field_validator("num_heads")
    @classmethod
    def check_num_heads(cls, heads: int, info: ValidationInfo) -> int:
        if info.data.get("hidden_size", 0) % heads:
            raise ValueError(f"does not divide hidden_size {info.data['hidden_size']}")
        return heads

    @field_validator("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_bias_in_output")
    @classmethod
    def check_switch(cls, given: bool | None, info: ValidationInfo) -> bool:
        """The architecture's value, where none is given; another one is refused."""
        architecture = architecture_of(info.data)
        value = architecture.switches[info.field_name]
        if given not in (None, value):
            untied = str(info.data.get("use_untied_layer_norm")).lower()
            raise ValueError(
                f"must be {str(value).lower()} in {architecture.name}, for which use_untied_layer_norm: {untied} stands; "
                "other combinations are not supported"
            )
        return value

    @field_validator("rotary_dim")
    @classmethod
    def check_rotary_dim(cls, dim: int | None, info: ValidationInfo) -> int:
        limit = info.data.get("hidden_size", math.inf) // info.data.get("num_heads", 1)
        if dim is None:
            dim = limit // 4
        if dim > limit or dim % 2 or not dim:
            raise ValueError(f"must be even and at most {limit}, the size of a head")
        return dim

    @property
    def scales_loss_by_rows(self) -> bool:
        """True if the loss is a sum over the batch's tokens divided by its rows, times loss_weight; with num_tokens and
        a weight it is the same, as in the published release."""
        return self.loss_scaling == "batch_size" or self.loss_weight != 1.0


class Curve(Section):
    scheduler: Literal["Linear", "CosineDecay"]
    initial_learning_rate: Number
    end_learning_rate: Number
    total_iters: PositiveInt = Field(validation_alias=AliasChoices("total_iters", "steps", "decay_steps"))

    def rate(self, step: int) -> float:
        share = min(step / self.total_iters, 1)
        if self.scheduler == "CosineDecay":
            share = 1 - (1 + math.cos(math.pi * share)) / 2
        return self.initial_learning_rate + (self.end_learning_rate - self.initial_learning_rate) * share


class Constant(Section):
    scheduler: Literal["Constant"]
    learning_rate: Number
    total_iters: PositiveInt | None = Field(None, validation_alias=AliasChoices("total_iters", "steps", "decay_steps"))

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

    @model_validator(mode="before")
    @classmethod
    def split_betas(cls, given: object) -> object:
        """Release 2.x writes `betas: [0.9, 0.95]`."""
        if not isinstance(given, dict) or "betas" not in given:
            return given
        match given["betas"]:
            case [beta1, beta2] if not {"beta1", "beta2"} & given.keys():
                rest = {key: value for key, value in given.items() if key != "betas"}
                return rest | {"beta1": beta1, "beta2": beta2}
        raise ValueError("betas: must be two numbers, without beta1 and beta2 beside it")

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
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    keep_checkpoint_max: PositiveInt | None = Field(
        None, validation_alias=AliasChoices("keep_checkpoint_max", "max_checkpoints")
    )
    save_initial_checkpoint: bool = False
    autoload_last_checkpoint: bool = True
    check_loss_values: Literal[True] = True


class Params(Section):
    """All sections of the file."""

    train_input: AnyInput | None = None
    eval_input: AnyInput | None = None
    model: Model
    optimizer: Optimizer
    runconfig: RunConfig


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
