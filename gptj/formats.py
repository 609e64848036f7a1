"""GPT-J's checkpoints and configurations under two sets of names: Hugging Face's (hf) and the
published release's (cs-1.8). Pure renames; no tensor is changed.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import UserError, first_line
from utils.io import read_json

# Hugging Face's name -> cs-1.8's; N is the layer's number.
RENAMES = [
    ("transformer.wte", "embedding_layer.word_embeddings"),
    ("transformer.h.N.ln_1", "transformer_decoder.layers.N.norm1"),
    ("transformer.h.N.attn.q_proj", "transformer_decoder.layers.N.self_attn.proj_q_dense_layer"),
    ("transformer.h.N.attn.k_proj", "transformer_decoder.layers.N.self_attn.proj_k_dense_layer"),
    ("transformer.h.N.attn.v_proj", "transformer_decoder.layers.N.self_attn.proj_v_dense_layer"),
    ("transformer.h.N.attn.out_proj", "transformer_decoder.layers.N.self_attn.proj_output_dense_layer"),
    ("transformer.h.N.mlp.fc_in", "transformer_decoder.layers.N.ffn.ffn.0.linear_layer"),
    ("transformer.h.N.mlp.fc_out", "transformer_decoder.layers.N.ffn.ffn.1.linear_layer"),
    ("transformer.ln_f", "ln_f"),
    ("lm_head", "lm_head"),
]
TWIN = ("ln_f.", "transformer_decoder.norm.")  # cs-1.8 holds the last norm under both names
MADE_BY_CODE = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # in old HF files
CONFIG_RENAMES = [
    ("vocab_size", "vocab_size"),
    ("n_positions", "max_position_embeddings"),
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_heads"),
    ("rotary_dim", "rotary_dim"),
    ("n_inner", "filter_size"),
    ("activation_function", "nonlinearity"),
    ("resid_pdrop", "residual_dropout_rate"),
    ("embd_pdrop", "embedding_dropout_rate"),
    ("attn_pdrop", "attention_dropout_rate"),
    ("layer_norm_epsilon", "layer_norm_epsilon"),
    ("initializer_range", "initializer_range"),
    ("tie_word_embeddings", "share_embedding_weights"),
]
# What GPT-J is in the release's words, whatever the Hugging Face configuration says.
FIXED = {
    "position_embedding_type": "rotary",
    "use_projection_bias_in_attention": False,
    "use_ffn_bias_in_attention": False,
    "use_ffn_bias": True,
    "use_bias_in_output": True,
    "attention_type": "scaled_dot_product",
    "mixed_precision": True,
}
HF_DEFAULTS = {
    "activation_function": "gelu_new",
    "rotary_dim": 64,
    "n_inner": None,
    "tie_word_embeddings": False,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
}


def _renamed(state: dict, pairs: list[tuple[str, str]], where: str) -> dict:
    """Every tensor under its other name. Raises UserError that lists names nobody knows."""
    patterns = [(re.compile(re.escape(old).replace("N", r"(\d+)", 1) + r"\.(weight|bias)"), new) for old, new in pairs]
    renamed, unknown = {}, []
    for name, tensor in state.items():
        for pattern, new in patterns:
            if match := pattern.fullmatch(name):
                *layer, kind = match.groups()
                renamed[f"{new.replace('N', *layer) if layer else new}.{kind}"] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"{where}: {len(unknown)} names that GPT-J does not have, {unknown[0]} for one")
    return renamed


def to_cs(state: dict, where: str = "the checkpoint") -> dict:
    """Hugging Face names -> cs-1.8's."""
    state = {name: tensor for name, tensor in state.items() if not MADE_BY_CODE.fullmatch(name)}
    renamed = _renamed(state, RENAMES, where)
    ours, twin = TWIN
    for kind in ("weight", "bias"):
        if f"{ours}{kind}" in renamed:
            renamed[f"{twin}{kind}"] = renamed[f"{ours}{kind}"]
    return renamed


def to_hf(state: dict, where: str = "the checkpoint") -> dict:
    """cs-1.8's names, with a training run's prefix `model.` or without, -> Hugging Face's."""
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    ours, twin = TWIN
    for name in [name for name in state if name.startswith(twin)]:
        other = state.setdefault(name.replace(twin, ours), state[name])
        if not torch.equal(other, state[name]):
            raise UserError(f"{where}: {name} and {name.replace(twin, ours)} differ")
        del state[name]
    return _renamed(state, [(new, old) for old, new in RENAMES], where)


def config_to_cs(config: dict) -> dict:
    """Hugging Face's config.json -> the `model` section of a YAML file."""
    if config.get("model_type", "gptj") != "gptj":
        raise UserError(f"model_type {config['model_type']}: only gptj is supported")
    config = HF_DEFAULTS | config
    missing = [old for old, _ in CONFIG_RENAMES if old not in config]
    if missing:
        raise UserError(f"the configuration has no {', '.join(missing)}")
    model = {new: config[old] for old, new in CONFIG_RENAMES}
    model["filter_size"] = model["filter_size"] or 4 * model["hidden_size"]
    return model | FIXED


def config_to_hf(model: dict) -> dict:
    """The `model` section of a YAML file -> what transformers needs to build a GPT-J."""
    for key in ("position_embedding_type", "use_projection_bias_in_attention", "use_ffn_bias"):
        if model.get(key, FIXED[key]) != FIXED[key]:
            raise UserError(f"model.{key}: {model[key]}; GPT-J has {FIXED[key]}")
    missing = [new for old, new in CONFIG_RENAMES if new not in model and old not in HF_DEFAULTS]
    if missing:
        raise UserError(f"model.{missing[0]}: missing")
    config = {old: model.get(new, HF_DEFAULTS.get(old)) for old, new in CONFIG_RENAMES}
    end = 50256 if config["vocab_size"] > 50256 else None  # GPT-2's end token
    config |= {"bos_token_id": end, "eos_token_id": end, "dtype": "float32"}
    return config | {"model_type": "gptj", "architectures": ["GPTJForCausalLM"]}


def load_torch(path: Path) -> dict:
    """A file of torch.save, as data alone: what would run code in it is refused."""
    if not path.is_file():
        raise UserError(f"{path}: not there")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise UserError(f"{path}: refused, it holds more than tensors ({first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        kind = "an HDF5 checkpoint (release 2.0 and later; ours are 1.8's), or damaged"
        raise UserError(f"{path}: {kind} ({first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, no checkpoint")
    return loaded


def load_mdl(path: Path) -> dict:
    """A .mdl checkpoint: `model` and, of a training run, `optimizer`, `lr_scheduler`, `global_step`."""
    loaded = load_torch(path)
    if not isinstance(loaded.get("model"), dict):
        raise UserError(
            f"{path}: has no `model` in it; a Hugging Face file is made a .mdl by: "
            "python gptj/convert_checkpoint.py convert"
        )
    return loaded


def load_hf(path: Path) -> dict:
    """Tensors by Hugging Face's names: a .safetensors or .bin file, an index of shards, or a folder."""
    if path.is_dir():
        names = (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        )
        found = next((path / name for name in names if (path / name).is_file()), None)
        if not found:
            raise UserError(f"{path}: holds no weights (model.safetensors or pytorch_model.bin)")
        return load_hf(found)
    if path.name.endswith(".index.json"):
        shards = sorted(set(read_json(path, "download it again").get("weight_map", {}).values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UserError(f"{path}: names files outside its folder")
        return {name: t for shard in shards for name, t in load_hf(path.parent / shard).items()}
    if path.suffix != ".safetensors":
        return load_torch(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not there, or damaged ({first_line(error)})") from error
