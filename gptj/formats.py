"""Conversion of weights and configurations between Hugging Face (hf) and the published release (cs-1.8).

Tensors are renamed, bit for bit unchanged; of GPT-NeoX's queries and keys the rows are also put in another order.
A `section` is the checked `model` section of a YAML file, with all defaults.
"""

import math
import re
from pathlib import Path

import torch

from gptj.architectures import ARCHITECTURES, FUSED, GPT_NEOX, PARTS, TWIN, Architecture, architecture_of, of_layer
from gptj.params import check_model_section
from utils.errors import UserError

# Keys that a converted configuration has beside the architecture's switches.
ALWAYS_WRITTEN = {"use_ffn_bias": True, "attention_type": "scaled_dot_product", "mixed_precision": True}
ROTARY_SHARE, ROTARY_BASE = 0.25, 10_000  # GPT-NeoX's defaults in Hugging Face; cs-1.8 has no key for the base
GPT2_EOS, NEOX_EOS = 50256, 0  # end-of-text tokens of the architectures' own tokenizers


def to_cs(state: dict, section: dict, source: str = "the checkpoint") -> dict:
    """Hugging Face names -> cs-1.8 names. `source` is named in errors."""
    state = with_one_head(drop_buffers(state, section), source)
    if architecture_of(section) is GPT_NEOX:
        state = _split_query_key_value(state, section, source)
    renamed = _rename(state, _names(section), section, source)
    check_shapes(renamed, section, source)
    name, twin = TWIN
    for kind in ("weight", "bias"):
        if f"{name}{kind}" in renamed:
            renamed[f"{twin}{kind}"] = renamed[f"{name}{kind}"]
    return renamed


def to_hf(state: dict, section: dict, source: str = "the checkpoint", strict: bool = True) -> dict:
    """cs-1.8 names, as `without_twins` gives them, -> Hugging Face names. Without `strict` unknown names are kept. A
    layer of GPT-NeoX that lacks queries, keys or values gets no query_key_value."""
    state = without_twins(state, source)
    check_shapes(state, section, source)
    names = {cs: hf for hf, cs in _names(section).items()}
    if not strict:
        names = {name: name for name in state} | names
    renamed = _rename(state, names, section, source)
    return _join_query_key_value(renamed, section) if architecture_of(section) is GPT_NEOX else renamed


def without_twins(state: dict, source: str) -> dict:
    """Names without the prefix `model.` of a training run, and the final layer norm under one name."""
    plain: dict = {}
    for name, tensor in state.items():
        short = name.removeprefix("model.")
        if not torch.equal(plain.setdefault(short, tensor), tensor):
            raise UserError(f"{source}: {short} and model.{short} differ")
    state = plain
    for twin in [name for name in state if name.startswith(TWIN[1])]:
        name = twin.replace(TWIN[1], TWIN[0])
        tensor = state.pop(twin)
        if not torch.equal(state.setdefault(name, tensor), tensor):
            raise UserError(f"{source}: {twin} and {name} differ")
    return state


def with_one_head(state: dict, source: str) -> dict:
    """GPT-NeoX's head under the name it has in files. In a state_dict of transformers 5 it is lm_head."""
    if "lm_head.weight" not in state or not any(name.startswith("gpt_neox.") for name in state):
        return state
    state = dict(state)
    head = state.pop("lm_head.weight")
    if not torch.equal(state.setdefault("embed_out.weight", head), head):
        raise UserError(f"{source}: embed_out.weight and lm_head.weight differ")
    return state


def check_complete(state: dict, section: dict, source: str) -> None:
    """Raise UserError unless a state with cs-1.8 names has all tensors of the model."""
    if missing := [name for name in _names(section).values() if name not in state]:
        raise UserError(f"{source}: {len(missing)} tensors are missing, {missing[0]} for example")


def check_shapes(state: dict, section: dict, source: str) -> None:
    """Raise UserError for a tensor, by its cs-1.8 name, of another shape than the `model` section's, or of integers."""
    shapes = architecture_of(section).tensor_shapes(section)
    for name, tensor in state.items():
        if name in shapes:
            _check_shape(name, tensor, shapes[name], source)


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], source: str) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{source}: shapes differ from the `model` section: {name} is {tuple(tensor.shape)}, there {shape}"
        )
    if not tensor.is_floating_point():
        raise UserError(f"{source}: {name} is {tensor.dtype}; only floating-point weights are supported")


def drop_buffers(state: dict, section: dict) -> dict:
    buffers = re.compile(architecture_of(section).buffers)
    return {name: tensor for name, tensor in state.items() if not buffers.fullmatch(name)}


def _names(section: dict) -> dict[str, str]:
    return architecture_of(section).tensor_names(section["num_hidden_layers"])


def _rename(state: dict, names: dict[str, str], section: dict, source: str) -> dict:
    """Every tensor under its other name. Raises UserError for unknown names."""
    if unknown := [name for name in state if name not in names]:
        model = f"a {architecture_of(section).name} of {section['num_hidden_layers']} layers"
        raise UserError(f"{source}: {len(unknown)} names are not of {model}, {unknown[0]} for example")
    return {names[name]: tensor for name, tensor in state.items()}


def rotary_rows(head_size: int, rotary_dim: int) -> torch.Tensor:
    """The row of Hugging Face's GPT-NeoX for every row of a head in cs-1.8. The dimensions that are rotated together
    are i and i + rotary_dim / 2 there, and neighbours here."""
    pairs = torch.arange(rotary_dim).view(2, -1).t().flatten()
    return torch.cat([pairs, torch.arange(rotary_dim, head_size)])


def _split_query_key_value(state: dict, section: dict, source: str) -> dict:
    """query_key_value, whose rows are head 0's queries, keys and values, then head 1's, -> three tensors."""
    hidden, heads = section["hidden_size"], section["num_heads"]
    rows = rotary_rows(hidden // heads, section["rotary_dim"])
    result = dict(state)
    for layer in range(section["num_hidden_layers"]):
        for kind, shape in (("weight", (3 * hidden, hidden)), ("bias", (3 * hidden,))):
            name = f"{of_layer(FUSED, layer)}.{kind}"
            if (fused := result.pop(name, None)) is None:
                continue
            _check_shape(name, fused, shape, source)
            queries, keys, values = fused.unflatten(0, (heads, 3, -1)).unbind(1)
            for part, tensor in zip(PARTS, (queries[:, rows], keys[:, rows], values), strict=True):
                result[f"{of_layer(part, layer)}.{kind}"] = tensor.flatten(0, 1).contiguous()
    return result


def _join_query_key_value(state: dict, section: dict) -> dict:
    """The inverse of _split_query_key_value, of tensors whose shapes were checked."""
    heads, head_size = section["num_heads"], section["hidden_size"] // section["num_heads"]
    rows = rotary_rows(head_size, section["rotary_dim"]).argsort()
    result = dict(state)
    for layer in range(section["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [result.pop(f"{of_layer(part, layer)}.{kind}", None) for part in PARTS]
            if all(part is not None for part in parts):
                queries, keys, values = (part.unflatten(0, (heads, head_size)) for part in parts)
                joined = torch.stack([queries[:, rows], keys[:, rows], values], 1)
                result[f"{of_layer(FUSED, layer)}.{kind}"] = joined.flatten(0, 2).contiguous()
    return result


def config_to_cs(config: dict, architecture: Architecture, source: Path) -> dict:
    """Content of a Hugging Face config.json -> the `model` section of a YAML file. Raises UserError, naming `source`, for
    what such a section cannot say."""
    model_type = config.get("model_type", architecture.model_type)
    if model_type != architecture.model_type:
        option = next((name for name, other in ARCHITECTURES.items() if other.model_type == model_type), None)
        advice = f"give --model {option}" if option else f"only {', '.join(ARCHITECTURES)} are supported"
        raise UserError(f"{source}: model_type {model_type}: {advice}")
    given = architecture.config_defaults | config
    if missing := [key for key in architecture.config_keys if given.get(key) is None and key != "n_inner"]:
        raise UserError(f"{source}: the configuration has no {', '.join(missing)}")
    section = {new: given[old] for old, new in architecture.config_keys.items()}
    section |= architecture.switches | ALWAYS_WRITTEN
    if architecture is GPT_NEOX:
        section |= {"use_untied_layer_norm": True, "embedding_dropout_rate": section["residual_dropout_rate"]}
        check_model_section(section | {"rotary_dim": 2}, source)  # before numbers are computed from it
        section["rotary_dim"] = _rotary_dim(config, section, source)
    else:
        section["filter_size"] = section["filter_size"] or _four_times(section["hidden_size"], source)
        section["position_embedding_type"] = "rotary"
    check_model_section(section, source)
    return section


def _four_times(hidden: object, source: Path) -> int:
    if not isinstance(hidden, int):
        raise UserError(f"{source}: n_embd: {hidden!r} is not a whole number")
    return 4 * hidden


def _rotary_dim(config: dict, section: dict, source: Path) -> int:
    """Rotated dimensions of a head of GPT-NeoX. Raises UserError for what cs-1.8 has no key for."""
    for key in ("use_parallel_residual", "attention_bias"):
        if not config.get(key, True):
            raise UserError(f"{source}: {key}: {config[key]}; cs-1.8 has no key for it, {GPT_NEOX.name} there has true")
    rope, scaling = (_mapping(config, key, source) for key in ("rope_parameters", "rope_scaling"))  # transformers 5, 4
    kinds = {str(words.get("rope_type") or words.get("type") or "default") for words in (rope, scaling)}
    if kinds != {"default"}:
        raise UserError(f"{source}: rope_type: {', '.join(sorted(kinds - {'default'}))}; cs-1.8 has no key for it")
    base = _rope_number("rotary_emb_base", config, "rope_theta", rope, ROTARY_BASE, source)
    share = _rope_number("rotary_pct", config, "partial_rotary_factor", rope, ROTARY_SHARE, source)
    if base != ROTARY_BASE:
        raise UserError(f"{source}: rotary_emb_base: {base}; cs-1.8 has no key for it, it is {ROTARY_BASE} there")
    head_size = section["hidden_size"] // section["num_heads"]
    dim = int(head_size * share)
    if dim % 2 or not 0 < dim <= head_size:
        raise UserError(
            f"{source}: rotary_pct: {share} of a head of {head_size} is {dim} dimensions, which are rotated in pairs; "
            "cs-1.8 needs an even number"
        )
    return dim


def _mapping(config: dict, key: str, source: Path) -> dict:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key}: {value!r} is not an object")
    return value


def _rope_number(old: str, config: dict, new: str, rope: dict, default: float, source: Path) -> float:
    """A value that transformers 4 calls `old`, and transformers 5 `new` in rope_parameters."""
    given = [value for value in (config.get(old), rope.get(new)) if value is not None]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{source}: {old} (rope_parameters.{new}): {value!r} is not a positive number")
    if len(set(given)) > 1:
        raise UserError(f"{source}: {old} {given[0]}, but rope_parameters.{new} {given[1]}: they must be equal")
    return given[0] if given else default


def rotary_share(head_size: int, rotary_dim: int) -> float:
    """A rotary_pct of which int(head_size * rotary_pct) is `rotary_dim`; the quotient's product can be just below it."""
    share = rotary_dim / head_size
    return share if int(head_size * share) == rotary_dim else math.nextafter(share, math.inf)


def config_to_hf(section: dict) -> dict:
    """A checked `model` section -> content of a Hugging Face config.json."""
    architecture = architecture_of(section)
    config = {old: section[new] for old, new in architecture.config_keys.items()}
    if architecture is GPT_NEOX:
        share = rotary_share(section["hidden_size"] // section["num_heads"], section["rotary_dim"])
        rope = {"rope_type": "default", "rope_theta": ROTARY_BASE, "partial_rotary_factor": share}
        # The keys of transformers 4 and of transformers 5.
        config |= {"rotary_pct": share, "rotary_emb_base": ROTARY_BASE, "rope_parameters": rope}
        config |= {"attention_bias": True, "use_parallel_residual": True}
        eos = NEOX_EOS
    else:
        eos = GPT2_EOS if section["vocab_size"] > GPT2_EOS else None
    config |= {"bos_token_id": eos, "eos_token_id": eos, "dtype": "float32"}
    return config | {"model_type": architecture.model_type, "architectures": [architecture.class_name]}
