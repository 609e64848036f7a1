"""llama.cpp's server in this process: the memory that a model needs, lengths of prompts, and the number of slots.

Knows GGUF files, prompts and addresses, nothing of documents.
"""

import itertools
import json
import mmap
import re
import struct
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

CONTEXT_STEP = 256  # tokens; llama.cpp rounds the context of a slot up to a multiple of it
MIN_CONTEXT = 4096  # tokens, where memory seems to suffice for less: the estimate may be wrong, as on a GPU
MEMORY_SHARE = 0.8  # of the available memory, for weights and contexts
COMPUTE_BYTES = 512 << 20  # activations and logits of a batch of 512 tokens
KV_ELEMENT_BYTES = 2  # f16, llama.cpp's default
MAX_CACHE_BYTES = 8 << 30  # of prompts that no slot holds, llama.cpp's own default
SLOT_COUNTS = (1, 2, 4)
PROBE_CONTEXT = 512  # tokens per slot
PROBE_PROMPT = "The keeper of the lighthouse wrote in the ledger what the night had brought."
PROBE_TOKENS = 400  # at most, of a completion
PROBE_S = 2.5  # for each number of slots: about ten seconds with the loading of the model
CLEARLY_FASTER = 1.2  # the throughput of twice as many slots; each slot computes a document's prefix again

# Codes of the GGUF format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class ModelSize:
    """`trained_context` is in tokens. Sliding windows and compressed keys need less than `kv_bytes_per_token`."""

    trained_context: int
    weight_bytes: int
    kv_bytes_per_token: int

    @classmethod
    def read(cls, gguf: Path) -> "ModelSize":
        """From the metadata of a GGUF file. Raises UserError if it is none."""
        if not gguf.is_file():
            hint = "python scripts/example_model.py --gguf prints the example model's path"
            raise UserError(f"{gguf}: no such file; {hint}")
        try:
            values = read_metadata(gguf)
            name = values["general.architecture"]
            get = {key.removeprefix(f"{name}."): value for key, value in values.items()}.get
            heads = get("attention.head_count")
            head_size = get("embedding_length") // (max(heads) if isinstance(heads, list) else heads)
            kv_heads = get("attention.head_count_kv", heads)  # one number, or one for each layer
            kv_heads = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * get("block_count")
            sizes = get("attention.key_length", head_size) + get("attention.value_length", head_size)
            return cls(get("context_length"), gguf.stat().st_size, kv_heads * sizes * KV_ELEMENT_BYTES)
        except (ValueError, KeyError, TypeError, ZeroDivisionError, struct.error) as error:
            raise UserError(f"{gguf}: not a language model in GGUF format ({error})") from error

    def largest_context(self, slots: int, available_bytes: int) -> int:
        """Tokens per slot, bounded by the trained context and by memory."""
        rest = int(MEMORY_SHARE * available_bytes) - self.weight_bytes - COMPUTE_BYTES
        fits = rest // (slots * self.kv_bytes_per_token) // CONTEXT_STEP * CONTEXT_STEP
        return min(self.trained_context, max(fits, MIN_CONTEXT))

    def cache_bytes(self, slots: int, context: int, available_bytes: int) -> int:
        """Size of the prompt cache in RAM: half of what weights and contexts leave, at most MAX_CACHE_BYTES."""
        used = self.weight_bytes + COMPUTE_BYTES + slots * context * self.kv_bytes_per_token
        return max(0, min(MAX_CACHE_BYTES, (available_bytes - used) // 2))


def read_metadata(gguf: Path) -> dict[str, object]:
    """Key-value pairs at the head of a GGUF file. The package `gguf` needs seconds for a vocabulary of 150,000."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("its first bytes are not GGUF")
        (count,), offset, values = struct.unpack_from("<Q", data, 16), 24, {}
        for _ in range(count):
            key, offset = _read_value(data, offset, STRING)
            (kind,) = struct.unpack_from("<I", data, offset)
            values[key], offset = _read_value(data, offset + 4, kind)
    return values


def _read_value(data: mmap.mmap, offset: int, kind: int) -> tuple[object, int]:
    """A value and the offset after it."""
    if kind in SCALARS:
        return struct.unpack_from(f"<{SCALARS[kind]}", data, offset)[0], offset + struct.calcsize(SCALARS[kind])
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, offset)
        return data[offset + 8 : offset + 8 + length].decode(errors="replace"), offset + 8 + length
    if kind != ARRAY:
        raise ValueError(f"unknown type {kind}")
    kind, length = struct.unpack_from("<IQ", data, offset)
    offset += 12
    if kind in SCALARS:
        form = f"<{length}{SCALARS[kind]}"
        return list(struct.unpack_from(form, data, offset)), offset + struct.calcsize(form)
    items = []
    for _ in range(length):
        item, offset = _read_value(data, offset, kind)
        items.append(item)
    return items, offset


def round_up(context: int) -> int:
    """The size that llama.cpp makes of a context."""
    return -(-context // CONTEXT_STEP) * CONTEXT_STEP


def available_memory() -> int:
    """Bytes that processes can still allocate, within the limit of a container (cgroup v2 or v1)."""
    meminfo = Path("/proc/meminfo").read_text()
    available = 1024 * int(meminfo.split("MemAvailable:")[1].split()[0])
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        folder = Path("/sys/fs/cgroup") / ("memory" if "bytes" in limit else "")
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
            files = re.findall(r"^(?:in)?active_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
            used = int((folder / usage).read_text()) - sum(map(int, files))  # pages of files can be given up
            available = min(available, int(text) - used)
    return available


def start_server(gguf: Path, slots: int, context: int, threads: int, cache_bytes: int = 0):
    """Start a server with `context` tokens per slot, and return it with its base URL. It stops when the object is
    deleted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = cache_bytes >> 20
    params.verbosity = 0
    server = xllamacpp.Server(params)
    return server, f"{server.listening_address}/v1"


def count_tokens(base_url: str, prompt: str) -> int:
    """Tokens of a chat prompt with the model's own template."""
    body = {"messages": [{"role": "user", "content": prompt}]}
    return _post(f"{base_url}/chat/completions/input_tokens", body)["input_tokens"]


def measure_slots(base_url: str) -> dict[int, float]:
    """Tokens per second that a server with max(SLOT_COUNTS) slots decodes in all, by the number of concurrent
    requests. The measurement ends at the first number that is not clearly faster."""
    rates: dict[int, float] = {}
    for slots in SLOT_COUNTS:
        with ThreadPoolExecutor(slots) as pool:
            rates[slots] = sum(pool.map(lambda _: _decoding_rate(base_url), range(slots)))
        if best_slots(rates) != slots:
            break
    return rates


def best_slots(rates: dict[int, float]) -> int:
    """The largest number of slots of which each step was clearly faster than the one before."""
    best = min(rates)
    for fewer, more in itertools.pairwise(sorted(rates)):
        if rates[more] <= CLEARLY_FASTER * rates[fewer]:
            break
        best = more
    return best


def _decoding_rate(base_url: str) -> float:
    """Tokens per second of a streamed completion after its first token, within PROBE_S."""
    body = {"prompt": PROBE_PROMPT, "max_tokens": PROBE_TOKENS, "ignore_eos": True, "stream": True}
    times, started = [], time.monotonic()
    with urllib.request.urlopen(_request(f"{base_url}/completions", body)) as response:
        for line in response:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
            if time.monotonic() - started > PROBE_S and len(times) > 1:
                break  # the server notices the closed connection
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def _post(url: str, body: dict) -> dict:
    with urllib.request.urlopen(_request(url, body)) as response:
        return json.load(response)


def _request(url: str, body: dict) -> urllib.request.Request:
    return urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
