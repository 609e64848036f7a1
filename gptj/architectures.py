"""Architectures of the second front, GPT-J and GPT-NeoX: names of their tensors and configuration keys in Hugging Face
(hf) and in the published release (cs-1.8), and the keys of a YAML file's `model` section that tell them apart.
"""

from dataclasses import dataclass

SIZES = {"V": "vocab_size", "H": "hidden_size", "F": "filter_size"}  # letters of a shape: keys of the `model` section


@dataclass(frozen=True)
class Architecture:
    """GPT-J or GPT-NeoX.

    tensors: Hugging Face name and cs-1.8 name, where N is the number of the layer; the shape of the weight in letters of
        SIZES; and whether there is a bias, which has the weight's first size.
    switches: keys of the `model` section, beside use_untied_layer_norm, and the only value that the architecture has.
    config_keys: Hugging Face key -> key of the `model` section; config_defaults: of Hugging Face keys.
    """

    name: str
    model_type: str
    class_name: str
    tensors: tuple[tuple[str, str, str, bool], ...]
    buffers: str  # regular expression: computed by the code, stored in old Hugging Face files
    switches: dict[str, bool]
    config_keys: dict[str, str]
    config_defaults: dict[str, object]

    def tensor_names(self, layers: int) -> dict[str, str]:
        """Hugging Face name -> cs-1.8 name, of all tensors."""
        names = {}
        for hf, cs, _, has_bias in self.tensors:
            for layer in range(layers) if ".N." in hf else [0]:
                for kind in ("weight", "bias") if has_bias else ("weight",):
                    names[f"{of_layer(hf, layer)}.{kind}"] = f"{of_layer(cs, layer)}.{kind}"
        return names

    def tensor_shapes(self, section: dict) -> dict[str, tuple[int, ...]]:
        """cs-1.8 name -> shape, of all tensors of a checked `model` section."""
        shapes = {}
        for _, cs, letters, has_bias in self.tensors:
            shape = tuple(section[SIZES[letter]] for letter in letters)
            for layer in range(section["num_hidden_layers"]) if ".N." in cs else [0]:
                shapes[f"{of_layer(cs, layer)}.weight"] = shape
                if has_bias:
                    shapes[f"{of_layer(cs, layer)}.bias"] = shape[:1]
        return shapes


def of_layer(name: str, layer: int) -> str:
    return name.replace(".N.", f".{layer}.")


def architecture_of(section: dict) -> Architecture:
    """The architecture that a checked `model` section describes."""
    return GPT_NEOX if section.get("use_untied_layer_norm") else GPT_J


GPT_J = Architecture(
    name="GPT-J",
    model_type="gptj",
    class_name="GPTJForCausalLM",
    tensors=(
        ("transformer.wte", "embedding_layer.word_embeddings", "VH", False),
        ("transformer.h.N.ln_1", "transformer_decoder.layers.N.norm1", "H", True),
        ("transformer.h.N.attn.q_proj", "transformer_decoder.layers.N.self_attn.proj_q_dense_layer", "HH", False),
        ("transformer.h.N.attn.k_proj", "transformer_decoder.layers.N.self_attn.proj_k_dense_layer", "HH", False),
        ("transformer.h.N.attn.v_proj", "transformer_decoder.layers.N.self_attn.proj_v_dense_layer", "HH", False),
        (
            "transformer.h.N.attn.out_proj",
            "transformer_decoder.layers.N.self_attn.proj_output_dense_layer",
            "HH",
            False,
        ),
        ("transformer.h.N.mlp.fc_in", "transformer_decoder.layers.N.ffn.ffn.0.linear_layer", "FH", True),
        ("transformer.h.N.mlp.fc_out", "transformer_decoder.layers.N.ffn.ffn.1.linear_layer", "HF", True),
        ("transformer.ln_f", "ln_f", "H", True),
        ("lm_head", "lm_head", "VH", True),
    ),
    buffers=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    switches={
        "use_projection_bias_in_attention": False,
        "use_ffn_bias_in_attention": False,
        "use_bias_in_output": True,
    },
    config_keys={
        "vocab_size": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_heads",
        "rotary_dim": "rotary_dim",
        "n_inner": "filter_size",
        "activation_function": "nonlinearity",
        "resid_pdrop": "residual_dropout_rate",
        "embd_pdrop": "embedding_dropout_rate",
        "attn_pdrop": "attention_dropout_rate",
        "layer_norm_epsilon": "layer_norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "share_embedding_weights",
    },
    config_defaults={
        "activation_function": "gelu_new",
        "rotary_dim": 64,
        "n_inner": None,
        "tie_word_embeddings": False,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
    },
)

# Queries, keys and values are one tensor in Hugging Face files, see formats.py; q, k and v stand for its parts.
FUSED = "gpt_neox.layers.N.attention.query_key_value"
PARTS = tuple(f"gpt_neox.layers.N.attention.{part}" for part in "qkv")
GPT_NEOX = Architecture(
    name="GPT-NeoX",
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    tensors=(
        ("gpt_neox.embed_in", "embedding_layer.word_embeddings", "VH", False),
        ("gpt_neox.layers.N.input_layernorm", "transformer_decoder.layers.N.norm1", "H", True),
        ("gpt_neox.layers.N.post_attention_layernorm", "transformer_decoder.layers.N.norm3", "H", True),
        (PARTS[0], "transformer_decoder.layers.N.self_attn.proj_q_dense_layer", "HH", True),
        (PARTS[1], "transformer_decoder.layers.N.self_attn.proj_k_dense_layer", "HH", True),
        (PARTS[2], "transformer_decoder.layers.N.self_attn.proj_v_dense_layer", "HH", True),
        (
            "gpt_neox.layers.N.attention.dense",
            "transformer_decoder.layers.N.self_attn.proj_output_dense_layer",
            "HH",
            True,
        ),
        ("gpt_neox.layers.N.mlp.dense_h_to_4h", "transformer_decoder.layers.N.ffn.ffn.0.linear_layer", "FH", True),
        ("gpt_neox.layers.N.mlp.dense_4h_to_h", "transformer_decoder.layers.N.ffn.ffn.1.linear_layer", "HF", True),
        ("gpt_neox.final_layer_norm", "ln_f", "H", True),
        ("embed_out", "lm_head", "VH", False),
    ),
    buffers=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    switches={"use_projection_bias_in_attention": True, "use_ffn_bias_in_attention": True, "use_bias_in_output": False},
    config_keys={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "filter_size",
        "hidden_act": "nonlinearity",
        "hidden_dropout": "residual_dropout_rate",
        "attention_dropout": "attention_dropout_rate",
        "layer_norm_eps": "layer_norm_epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "share_embedding_weights",
    },
    config_defaults={
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    },
)
ARCHITECTURES = {"gptj": GPT_J, "gpt-neox": GPT_NEOX}  # by the converter's --model
TWIN = ("ln_f.", "transformer_decoder.norm.")  # cs-1.8 stores the final layer norm under both names
