"""Step 1 against a server that is slow, limits rates and fails, with kills of the client: throughput, losses, bill.

    python benchmarks/bench_generate.py             # all parts: about nine minutes
    python benchmarks/bench_generate.py throughput kills

The server is tests/fake_openai.py in its own process; data/entigraph.py runs as a user runs it, in an empty home
folder. Prints one table per part.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reports.tables import print_table
from utils.cli import make_parser, print_result
from utils.errors import run
from utils.paths import ROOT

KEY = "sk-bench-0123456789abcdef"
DOCUMENTS, ENTITIES = 250, 4
CALLS_PER_DOCUMENT = 1 + 6 + 1  # entities, all pairs, one triple
CALLS = DOCUMENTS * CALLS_PER_DOCUMENT
MODEL = "gpt-4-turbo"
USD = {"prompt": 10.0, "completion": 30.0}  # per million tokens, as in data/prices.json


def main() -> None:
    parts = {part.__name__: part for part in (throughput, limits, kills, kills_billed, budget)}
    results = {"key_found": False}
    for name in parse_arguments(list(parts)).parts or parts:
        measured = parts[name]()
        print(f"{name}: {' '.join(parts[name].__doc__.split())}")
        cells = [(key, f"{value:.3f}" if isinstance(value, float) else value) for key, value in measured.items()]
        print_table([("", "value"), *cells])
        prefix = "" if name in ("throughput", "kills") else f"{name}_"
        leaked = [value for key, value in measured.items() if key.endswith("key_found")]
        results["key_found"] |= any(leaked)
        results |= {prefix + key: value for key, value in measured.items() if key != "key_found"}
    print_result(results, f"API key in a written file: {'YES' if results['key_found'] else 'no'}")


def parse_arguments(parts: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    # Python 3.11 checks an empty list against the choices too.
    parts_help = f"{', '.join(parts)} (default: all)"
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="PART", help=parts_help)
    return parser.parse_args()


def throughput() -> dict:
    """1 s latency, 256 calls in flight, 2,000 calls; for comparison ten calls of a plain loop."""
    concurrency, latency = 256, 1.0
    with Server(latency=latency) as server:
        start = time.monotonic()
        for number in range(10):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number} # Task"}]}
            request = urllib.request.Request(
                server.url + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            urllib.request.urlopen(request).read()
        plain = 10 / (time.monotonic() - start)
    with Server(latency=latency) as server, Home() as home:
        rss_mb, written = wait_for(home.start(server, "--concurrency", concurrency))
        count, summary = server.count(), home.summary()
        return {
            "throughput_of_ideal": count["replies"] / count["seconds"] / (concurrency / latency),
            "calls_s": count["replies"] / count["seconds"],
            "plain_calls_s": plain,
            "rss_mb": rss_mb,
            "write_amplification": written / home.size(),
            "calls": count["replies"],
            "summary_agrees": agrees(summary, count),
            "key_found": home.contains_key(),
        }


def limits() -> dict:
    """600 requests per minute with a burst of one second's worth; the limit is given by option (told), learned
    from the server's headers (headers), or learned from refusals alone (bare)."""
    cases = {
        "told": ({}, ["--requests_per_minute", 600]),
        "headers": ({}, []),
        "bare": ({"no_limit_headers": True}, []),
    }

    def measure(case: str) -> dict:
        settings, options = cases[case]
        with Server(latency=1, requests_per_minute=600, burst=10, **settings) as server, Home() as home:
            wait_for(home.start(server, "--concurrency", 256, *options))
            count = server.count()
            return {
                f"{case}_of_allowed": count["replies"] / (count["seconds"] * 10),
                f"{case}_refused": count["refused"] / count["requests"],
                f"{case}_key_found": home.contains_key(),
            }

    with ThreadPoolExecutor() as pool:
        return {key: value for part in pool.map(measure, cases) for key, value in part.items()}


def kills(**settings: bool) -> dict:
    """10% faults of every kind, 20 kills with SIGKILL at random moments."""
    rng, in_flight = random.Random(0), 0
    options = ["--concurrency", 64, "--timeout", 2]
    with Server(latency=0.5, fault_share=0.1, **settings) as server, Home() as home:
        for _ in range(20):
            before = server.count()["requests"]
            process = home.start(server, *options)
            while server.count()["requests"] == before and process.poll() is None:
                time.sleep(0.01)  # until the first call, so that imports are not killed
            time.sleep(rng.uniform(0, 1.0))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            in_flight += server.count()["in_flight"]
            process.wait()
        for _ in range(5):  # calls that failed after all retries are repeated
            wait_for(home.start(server, *options))
            records = home.records()
            if all(record["finish_reason"] in ("stop", "length") for record in records):
                break
        count, summary = server.count(), home.summary()
        return {
            "records": len(records),
            "distinct_records": len({record["id"] for record in records}),
            "expected": CALLS,
            "paid_twice": count["replies"] - count["distinct"] - count["spoiled"],
            "in_flight_at_kills": in_flight,
            "usd_summary": summary["usd"],
            "usd_server": usd(count),
            "summary_agrees": agrees(summary, count),
            "lost": summary["lost"],
            "key_found": home.contains_key(),
        }


def kills_billed() -> dict:
    """The same with billed faults only, so that every call in flight is billed."""
    return kills(no_refusals=True)


def budget() -> dict:
    """--budget_usd 5 with 10% faults and five kills: the server's final bill."""
    rng = random.Random(1)
    options = ["--concurrency", 256, "--timeout", 2, "--budget_usd", 5, "--max_tokens", 1000]
    with Server(latency=0.2, fault_share=0.1) as server, Home() as home:
        for _ in range(5):
            process = home.start(server, *options)
            time.sleep(rng.uniform(0.8, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(home.start(server, *options))
        bill, summary = usd(server.count()), home.summary()
        return {"usd_server": bill, "usd_summary": summary["usd"], "key_found": home.contains_key()}


class Server:
    """The fake server in its own process, as a context manager."""

    def __init__(self, **settings: float | bool):
        command = [sys.executable, str(ROOT / "tests/fake_openai.py"), "--entities", str(ENTITIES)]
        for name, value in settings.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def count(self) -> dict:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/count", timeout=30) as reply:
            return json.load(reply)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()


class Home:
    """A temporary home folder with a corpus of DOCUMENTS articles of about 1,000 tokens, as a context manager."""

    def __enter__(self) -> "Home":
        self.path = Path(tempfile.mkdtemp(prefix="bench_generate."))
        raw = self.path / "data/dataset/raw"
        raw.mkdir(parents=True)
        words, rng = [f"word{n}" for n in range(3000)], random.Random(0)
        with open(raw / "bench.jsonl", "w") as file:
            for number in range(DOCUMENTS):
                article = " ".join(rng.choices(words, k=600))
                file.write(json.dumps({"title": f"Article {number}", "article": article}) + "\n")
        self.folder = raw / f"bench_entigraph_{MODEL}"
        self.logs = self.path / "logs"
        self.logs.mkdir()
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.path)

    def start(self, server: Server, *options: object) -> subprocess.Popen:
        """Start step 1; its output goes to a new file in `logs`."""
        fixed = f"all --task bench --base_url {server.url} --max_triples 1".split()
        command = [sys.executable, str(ROOT / "data/entigraph.py"), *fixed, *map(str, options)]
        environment = os.environ | {"SCP_HOME": str(self.path), "OPENAI_API_KEY": KEY}
        with open(self.logs / f"{len(list(self.logs.iterdir()))}.txt", "w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    def records(self) -> list[dict]:
        texts = [path.read_text() for path in sorted(self.folder.glob("*.jsonl"))]
        return [json.loads(line) for text in texts for line in text.split("\n") if line]

    def contains_key(self) -> bool:
        """True if a journal, the ledger, the summary or the printed output contains the API key."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return any(KEY.encode() in path.read_bytes() for path in files)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def wait_for(process: subprocess.Popen) -> tuple[float, int]:
    """Wait for the end of a process; returns its peak resident memory in MB and the number of bytes written."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    io = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024, int(io["wchar"])


def usd(count: dict) -> float:
    return sum(count["tokens"][kind] * price / 1e6 for kind, price in USD.items())


def agrees(summary: dict, count: dict) -> bool:
    """True if client and server counted the same tokens."""
    return all(summary[f"{kind}_tokens"] == count["tokens"][kind] for kind in USD)


if __name__ == "__main__":
    run(main)
