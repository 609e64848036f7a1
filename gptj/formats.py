"""Conversion of weights and configurations between Hugging Face (hf) and the published release (cs-1.8).

Tensors are renamed, bit for bit unchanged; of GPT-NeoX's queries and keys the rows are also put in another order.
A `section` is the checked `model` section of a YAML file, with all defaults.
"""

import math
import re

import torch

from gptj.architectures import ARCHITECTURES, FUSED, GPT_NEOX, PARTS, TWIN, Architecture, architecture_of
from utils.errors import UserError

# Keys that a converted configuration has beside the architecture's switches.
ALWAYS_WRITTEN = {"use_ffn_bias": True, "attention_type": "scaled_dot_product", "mixed_precision": True}
ROTARY_SHARE, ROTARY_BASE = 0.25, 10_000  # GPT-NeoX's defaults in Hugging Face; cs-1.8 has no key for the base
GPT2_EOS, NEOX_EOS = 50256, 0  # end-of-text tokens of the architectures' own tokenizers


def to_cs(state: dict, section: dict, source: str = "the checkpoint") -> dict:
    """Hugging Face names -> cs-1.8 names. `source` is named in errors."""
    state = drop_buffers(state, section)
    if architecture_of(section) is GPT_NEOX:
        if "lm_head.weight" in state:  # the head's name in a state_dict of transformers 5
            state["embed_out.weight"] = state.pop("lm_head.weight")
        state = _split_query_key_value(state, section, source)
    renamed = _rename(state, _names(section), section, source)
    name, twin = TWIN
    for kind in ("weight", "bias"):
        if f"{name}{kind}" in renamed:
            renamed[f"{twin}{kind}"] = renamed[f"{name}{kind}"]
    return renamed


def to_hf(state: dict, section: dict, source: str = "the checkpoint") -> dict:
    """cs-1.8 names, with or without the prefix `model.` of a training run, -> Hugging Face names. A layer of GPT-NeoX
    without queries, keys or values comes without their common tensor."""
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    for twin in [name for name in state if name.startswith(TWIN[1])]:
        name = twin.replace(TWIN[1], TWIN[0])
        tensor = state.pop(twin)
        if not torch.equal(state.setdefault(name, tensor), tensor):
            raise UserError(f"{source}: {twin} and {name} differ")
    renamed = _rename(state, {cs: hf for hf, cs in _names(section).items()}, section, source)
    return _join_query_key_value(renamed, section, source) if architecture_of(section) is GPT_NEOX else renamed


def check_complete(state: dict, section: dict, source: str) -> None:
    """Raise UserError unless a state with cs-1.8 names has all tensors of the model."""
    if missing := [name for name in _names(section).values() if name not in state]:
        raise UserError(f"{source}: {len(missing)} tensors are missing, {missing[0]} for example")


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
    heads, head_size = section["num_heads"], section["hidden_size"] // section["num_heads"]
    rows = rotary_rows(head_size, section["rotary_dim"])
    pattern = re.compile(FUSED.replace(".N.", r"\.(\d+)\.").replace("gpt_neox.", r"gpt_neox\.") + r"\.(weight|bias)")
    result = {}
    for name, tensor in state.items():
        if not (match := pattern.fullmatch(name)):
            result[name] = tensor
            continue
        if len(tensor) != 3 * section["hidden_size"]:
            raise UserError(
                f"{source}: {name} has {len(tensor)} rows; of {heads} heads it has {3 * section['hidden_size']}"
            )
        parts = tensor.unflatten(0, (heads, 3, head_size)).unbind(1)
        for part, values in zip(PARTS, (parts[0][:, rows], parts[1][:, rows], parts[2]), strict=True):
            result[f"{part.replace('.N.', f'.{match[1]}.')}.{match[2]}"] = values.flatten(0, 1).contiguous()
    return result


def _join_query_key_value(state: dict, section: dict, source: str) -> dict:
    """The inverse of _split_query_key_value."""
    heads, head_size = section["num_heads"], section["hidden_size"] // section["num_heads"]
    rows = rotary_rows(head_size, section["rotary_dim"]).argsort()
    result = dict(state)
    for layer in range(section["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            names = [f"{part.replace('.N.', f'.{layer}.')}.{kind}" for part in PARTS]
            parts = [result.pop(name, None) for name in names]
            if any(part is None for part in parts):
                continue
            if wrong := [name for name, part in zip(names, parts, strict=True) if len(part) != heads * head_size]:
                raise UserError(f"{source}: {wrong[0]} has not the {heads * head_size} rows of the `model` section")
            queries, keys, values = (part.unflatten(0, (heads, head_size)) for part in parts)
            joined = torch.stack([queries[:, rows], keys[:, rows], values], 1)
            result[f"{FUSED.replace('.N.', f'.{layer}.')}.{kind}"] = joined.flatten(0, 2).contiguous()
    return result


def config_to_cs(config: dict, architecture: Architecture) -> dict:
    """Content of a Hugging Face config.json -> the `model` section of a YAML file, not checked."""
    model_type = config.get("model_type", architecture.model_type)
    if model_type != architecture.model_type:
        option = next((name for name, other in ARCHITECTURES.items() if other.model_type == model_type), None)
        advice = f"give --model {option}" if option else f"only {', '.join(ARCHITECTURES)} are supported"
        raise UserError(f"model_type {model_type}: {advice}")
    given = architecture.config_defaults | config
    if missing := [key for key in architecture.config_keys if given.get(key) is None and key != "n_inner"]:
        raise UserError(f"the configuration has no {', '.join(missing)}")
    section = {new: given[old] for old, new in architecture.config_keys.items()}
    section |= architecture.switches | ALWAYS_WRITTEN
    if architecture is GPT_NEOX:
        section["rotary_dim"] = _rotary_dim(config, section)
        section["embedding_dropout_rate"] = section["residual_dropout_rate"]  # as GPTNeoXModel does
        return section | {"use_untied_layer_norm": True}
    section["filter_size"] = section["filter_size"] or 4 * section["hidden_size"]
    return section | {"position_embedding_type": "rotary"}


def _rotary_dim(config: dict, section: dict) -> int:
    """Rotated dimensions of a head of GPT-NeoX. Raises UserError for what cs-1.8 has no key for."""
    for key in ("use_parallel_residual", "attention_bias"):
        if not config.get(key, True):
            raise UserError(f"{key}: {config[key]}; cs-1.8 has no key for it, {GPT_NEOX.name} there has true")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}  # of transformers 4
    kinds = {rope.get("rope_type", "default"), scaling.get("rope_type", scaling.get("type", "default"))}
    if kinds != {"default"}:
        raise UserError(f"rope_type: {', '.join(sorted(kinds - {'default'}))}; cs-1.8 has no key for it")
    spellings = {"rotary_emb_base": ("rope_theta", ROTARY_BASE), "rotary_pct": ("partial_rotary_factor", ROTARY_SHARE)}
    values = {}
    for old, (new, default) in spellings.items():
        given = [value for value in (config.get(old), rope.get(new)) if value is not None]
        if len(set(given)) > 1:
            raise UserError(f"{old} {given[0]}, but rope_parameters.{new} {given[1]}: they must be equal")
        values[old] = given[0] if given else default
    if values["rotary_emb_base"] != ROTARY_BASE:
        raise UserError(
            f"rotary_emb_base: {values['rotary_emb_base']}; cs-1.8 has no key for it, it is {ROTARY_BASE} there"
        )
    head_size = section["hidden_size"] // section["num_heads"]
    dim = int(head_size * values["rotary_pct"])
    if dim % 2 or not 0 < dim <= head_size:
        raise UserError(
            f"rotary_pct: {values['rotary_pct']} of a head of {head_size} is {dim} dimensions, which are rotated in pairs; "
            "cs-1.8 needs an even number"
        )
    return dim


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
        # In the words of transformers 4 and 5.
        config |= {"rotary_pct": share, "rotary_emb_base": ROTARY_BASE, "rope_parameters": rope}
        config |= {"attention_bias": True, "use_parallel_residual": True}
        eos = NEOX_EOS
    else:
        eos = GPT2_EOS if section["vocab_size"] > GPT2_EOS else None
    config |= {"bos_token_id": eos, "eos_token_id": eos, "dtype": "float32"}
    return config | {"model_type": architecture.model_type, "architectures": [architecture.class_name]}
