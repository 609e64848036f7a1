"""GGUF metadata, memory and the choice of slots, without a server; scripts/test_llama_server.py runs the real one."""

from pathlib import Path

import pytest

from inference import llama_cpp
from inference.llama_cpp import CONTEXT_STEP, MIN_CONTEXT, ModelSize
from utils.errors import UserError

GIB = 1 << 30


def write_gguf(path, kv_heads, **lengths):
    """A GGUF file without tensors: 4 layers, 8 heads of 64."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(512)
    writer.add_block_count(4)
    writer.add_head_count(8)
    writer.add_head_count_kv(kv_heads)
    for name, length in lengths.items():
        getattr(writer, f"add_{name}")(length)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kv_heads", "lengths", "expected"),
    [
        (2, {}, 4 * 2 * 128 * 2),
        ([2, 0, 2, 0], {}, 4 * 128 * 2),  # layers without a cache
        (2, {"key_length": 96, "value_length": 32}, 4 * 2 * 128 * 2),
        (2, {"key_length": 128, "value_length": 128}, 4 * 2 * 256 * 2),
    ],
)
def test_bytes_of_a_token(tmp_path, kv_heads, lengths, expected):
    size = ModelSize.read(write_gguf(tmp_path / "m.gguf", kv_heads, **lengths))
    assert (size.trained_context, size.kv_bytes_per_token) == (2048, expected)


def test_metadata_is_that_of_the_package_gguf(tmp_path):
    from gguf import GGUFReader

    path = write_gguf(tmp_path / "m.gguf", [2, 0, 2, 0])
    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items() if "GGUF." not in name}
    assert llama_cpp.read_metadata(path) == fields


@pytest.mark.parametrize("content", [b"", b"text", b"GGUF", b"GGUF" + bytes(20) + b"\xff" * 8, b"GGUF" + bytes(40)])
def test_other_files_are_user_errors(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match="m.gguf: not a language model in GGUF"):
        ModelSize.read(tmp_path / "m.gguf")


def test_context_is_bounded_by_memory_and_by_the_model():
    size = ModelSize(trained_context=32_768, weight_bytes=GIB, kv_bytes_per_token=28_672)
    assert size.largest_context(1, 64 * GIB) == 32_768
    available = int((1.5 * GIB + 10_000 * 28_672) / llama_cpp.MEMORY_SHARE)
    assert size.largest_context(1, available) == 10_000 // CONTEXT_STEP * CONTEXT_STEP
    assert size.largest_context(2, available) == 5_000 // CONTEXT_STEP * CONTEXT_STEP
    assert size.largest_context(4, available) == MIN_CONTEXT


def test_prompt_cache_takes_half_of_what_is_left():
    size = ModelSize(trained_context=32_768, weight_bytes=GIB, kv_bytes_per_token=1 << 15)
    assert size.cache_bytes(2, 8192, 4 * GIB) == (4 * GIB - 1.5 * GIB - 0.5 * GIB) // 2
    assert size.cache_bytes(1, 8192, 64 * GIB) == llama_cpp.MAX_CACHE_BYTES
    assert size.cache_bytes(1, 8192, GIB) == 0


@pytest.mark.parametrize(
    ("rates", "slots"),
    [
        ({1: 15.0}, 1),
        ({1: 15.0, 2: 17.9}, 1),  # not clearly faster
        ({1: 15.0, 2: 18.1, 4: 20.0}, 2),
        ({1: 15.0, 2: 29.0, 4: 50.0}, 4),
        ({1: 15.0, 2: 14.0, 4: 90.0}, 1),
        ({1: 0.0, 2: 0.0}, 1),
    ],
)
def test_more_slots_only_if_clearly_faster(rates, slots):
    assert llama_cpp.best_slots(rates) == slots


@pytest.mark.parametrize(("scaling", "measured"), [([1, 1.1, 9], [1, 2]), ([1, 1.9, 2], [1, 2, 4])])
def test_the_measurement_ends_where_more_slots_do_not_help(monkeypatch, scaling, measured):
    rates = dict(zip(llama_cpp.SLOT_COUNTS, scaling, strict=True))
    calls = []

    class Pool(llama_cpp.ThreadPoolExecutor):
        def __init__(self, workers):
            calls.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(llama_cpp, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(llama_cpp, "_decoding_rate", lambda url: rates[calls[-1]] / calls[-1])
    assert llama_cpp.measure_slots("") == pytest.approx({slots: rates[slots] for slots in measured})


def test_available_memory_is_that_of_the_machine_or_less():
    meminfo = Path("/proc/meminfo").read_text()
    total = 1024 * int(meminfo.split("MemTotal:")[1].split()[0])
    assert 0 < llama_cpp.available_memory() <= total
