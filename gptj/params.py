"""Reader of a run's YAML file. Unknown keys and values of another type are refused by their dotted path."""

import difflib
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from gptj.sections import OTHER_NAMES, Constant, Curve, Input, Model, Optimizer, Params, RunConfig
from utils.errors import UserError

# Defaults of the published release where ours are other ones, those of its configuration files.
DEFAULTS_THERE = {
    "embedding_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "residual_dropout_rate": 0.1,
    "share_embedding_weights": True,
    "use_projection_bias_in_attention": True,
    "use_ffn_bias_in_attention": True,
    "use_ffn_bias": False,
    "use_bias_in_output": False,
}

# Models by the name before a key in the path of an error; the other steps of a path are types of a union.
SECTIONS = {"train_input": Input, "eval_input": Input, "model": Model, "optimizer": Optimizer, "runconfig": RunConfig}
SCHEDULERS = {"Linear": Curve, "CosineDecay": Curve, "Constant": Constant}
UNION_TYPES = {*SCHEDULERS, "str", "list[str]", "hdf5", "own"}


class ModelFile(BaseModel):
    """The section of a YAML file that describes the model."""

    model: Model


def load(path: Path) -> tuple[Params, list[str]]:
    """The settings with all defaults, and lines about keys without effect and about defaults."""
    content = load_yaml(path)
    params = _validate(Params, content, path)
    given = ((name, key) for name, section in content.items() for key in section or ())
    ignored = [f"{name}.{key}" for name, key in given if key in SECTIONS[name].keys_without_effect()]
    lines = [f"without effect here: {', '.join(ignored)}"] if ignored else []
    model = params.model
    defaults = [
        f"model.{key} {_as_yaml(getattr(model, key))} ({_as_yaml(there)})"
        for key, there in DEFAULTS_THERE.items()
        if content["model"].get(key) is None and getattr(model, key) != there
    ]
    if defaults:
        lines.append(f"not in the file, and another default in the published release: {', '.join(defaults)}")
    if model.scales_loss_by_rows and model.loss_scaling == "num_tokens":
        lines.append(
            f"model.loss_weight {model.loss_weight} makes loss_scaling batch_size, as in the published release"
        )
    return params, lines


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_model_section(path: Path) -> dict:
    """The `model` section of a YAML file, checked, with all defaults; from release 2.3 on it is trainer.init.model."""
    content = load_yaml(path)
    section = content.get("model")
    if section is None and isinstance(content.get("trainer"), dict):
        inner = content["trainer"].get("init")
        section = inner.get("model") if isinstance(inner, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path}: has no `model` section")
    return check_model_section(section, path)


def check_model_section(section: dict, path: Path) -> dict:
    """A `model` section with all defaults. Raises UserError, naming `path`, for what a YAML file may not say."""
    return _validate(ModelFile, {"model": section}, path).model.model_dump()


def _validate(cls: type[BaseModel], content: dict, path: Path):
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        # Unknown keys first: a misspelt key may be a missing one as well.
        first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        raise UserError(f"{path}: {describe_error(first)}") from error


class _DistinctKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which yaml would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _DistinctKeys)  # a SafeLoader
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
        models = SECTIONS | SCHEDULERS
        known = next((models[part].model_fields for part in reversed(parents) if part in models), SECTIONS)
        if OTHER_NAMES.get(key) in known:
            return f"{path}: given twice, also as {OTHER_NAMES[key]}"
        close = difflib.get_close_matches(str(key), known, 1)
        return f"{path}: unknown" + (f"; did you mean {close[0]}?" if close else "")
    value = error["input"]
    shown = f"{value!r}: " if isinstance(value, str | int | float) else ""
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {shown}{message[0].lower()}{message[1:]}"
