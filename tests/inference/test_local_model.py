"""A local checkpoint's own habits: generation defaults, tokens without an embedding, padding, byte tokens."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chat.conversation import ReplyStatus, Sampling
from chat.local_engine import LocalEngine, StreamedText
from inference.local_model import LocalModel
from tests.architectures import make_model
from utils.errors import UserError

PROMPTS = ["The lamp burned", "Who kept the light on the island all winter?"]
PENALTIES = [
    {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "length_penalty": 0.5},
    {"suppress_tokens": list(range(50, 400)), "min_length": 30, "bad_words_ids": [[20]]},
]


def with_defaults(tiny_model, folder, settings: dict):
    shutil.copytree(tiny_model, folder)
    defaults = {"eos_token_id": 1, "bos_token_id": 0} | settings
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


@pytest.mark.parametrize("settings", PENALTIES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation_defaults_have_no_effect(tiny_model, tmp_path, settings, temperature):
    plain, steered = LocalModel(str(tiny_model)), LocalModel(str(with_defaults(tiny_model, tmp_path / "m", settings)))
    texts = [model.complete(PROMPTS, 1, temperature, 40, "###", seed=3) for model in (plain, steered)]
    assert texts[0] == texts[1]


def test_end_tokens_of_the_generation_config_are_kept(tiny_model, tmp_path):
    """Llama 3.1's has three."""
    model = LocalModel(str(with_defaults(tiny_model, tmp_path / "m", {"eos_token_id": [1, 7, 9]})))
    assert model.end_ids == [1, 7, 9]
    assert LocalEngine(str(tmp_path / "m"))._stop_ids() == {1, 7, 9}


def test_tokens_without_an_embedding_are_one_line(tiny_model, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["lighthouse"])
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(folder)
    model, engine = LocalModel(str(folder)), LocalEngine(str(folder))
    for call in (
        lambda: model.complete(["The lighthouse"], 1, 0.0, 4, "#", 0),
        lambda: model.continuation_logprobs(["The"], [[" lighthouse"]]),
        lambda: list(engine.stream([{"role": "user", "content": "A lighthouse"}], Sampling(), ReplyStatus())),
    ):
        with pytest.raises(UserError, match="lighthouse.*600 embeddings"):
            call()
    assert model.complete(["The lamp"], 1, 0.0, 4, "#", 0)


@pytest.mark.parametrize("name", ["recurrent_gemma", "bart", "phi3-longrope", "llama"])
def test_batches_of_unequal_prompts_equal_single_ones(tiny_model, tmp_path, name):
    """Padding on the left changes what some models generate."""
    make_model(name).save_pretrained(tmp_path / name)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / name)
    model = LocalModel(str(tmp_path / name))
    prompts = [[5, 9, 20], list(range(10, 50)), [7] * 12]
    batch = model.generate(prompts, do_sample=False, max_new_tokens=6, eos_token_id=None)
    alone = [model.generate([ids], do_sample=False, max_new_tokens=6, eos_token_id=None)[0] for ids in prompts]
    assert batch == alone


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's: pieces with ▁, and a token for each byte of other characters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "ab", "▁ab", "é"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZER = byte_fallback()


@given(st.text("ab é🙂日\n", max_size=12).map(lambda text: TOKENIZER(text)["input_ids"]))
def test_streamed_pieces_of_byte_tokens_are_the_text(ids):
    check_stream(TOKENIZER, ids)


@given(st.lists(st.integers(3, len(TOKENIZER) - 1), max_size=12))
def test_streamed_pieces_of_any_byte_tokens_do_not_fail(ids):
    """A model may begin a character and not end it. The tokenizer then replaces the bytes before it as well, of which
    some may have been shown already."""
    stream = StreamedText(TOKENIZER)
    text = "".join([*map(stream.add, ids), stream.rest()])
    assert "\ufffd" in text or text == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_streamed_pieces_of_byte_level_tokens(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for text in ("The lamp 🙂 burns — naïve 日本", "🙂", "a\n\n b "):
        check_stream(tokenizer, tokenizer(text)["input_ids"])
    torch.manual_seed(0)
    check_stream(tokenizer, torch.randint(0, 600, (200,)).tolist())


def check_stream(tokenizer, ids: list[int]) -> None:
    stream = StreamedText(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join([*pieces, stream.rest()]) == tokenizer.decode(ids, skip_special_tokens=True)
