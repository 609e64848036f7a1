"""Step 1 against a server that is slow, limits rates, fails and is killed under: what gets through,
what is lost, what is paid twice.

    python benchmarks/bench_generate.py             # all parts: about nine minutes
    python benchmarks/bench_generate.py throughput kills

The server is tests/fake_openai.py in a process of its own; data/entigraph.py runs as a user runs
it, in an empty home folder. Prints a table a part; the last line is one JSON object.
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

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-bench-0123456789abcdef"
DOCUMENTS, ENTITIES = 250, 4
CALLS_A_DOCUMENT = 1 + 6 + 1  # entities, all pairs, one triple
CALLS = DOCUMENTS * CALLS_A_DOCUMENT
MODEL = "gpt-4-turbo"
USD = {"prompt": 10.0, "completion": 30.0}  # of data/prices.json, for a million tokens


class Server:
    """The fake server, in a process of its own."""

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
    """An empty home folder with a corpus of DOCUMENTS articles of about 1,000 tokens."""

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
        log = open(self.logs / f"{len(list(self.logs.iterdir()))}.txt", "w")
        with log:
            return subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "data/entigraph.py"),
                    "all",
                    "--task",
                    "bench",
                    "--base_url",
                    server.url,
                    "--max_triples",
                    "1",
                    *map(str, options),
                ],
                env=os.environ | {"SCP_HOME": str(self.path), "OPENAI_API_KEY": KEY},
                stdout=log,
                stderr=log,
            )

    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    def records(self) -> list[dict]:
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("*.jsonl"))
            for line in path.read_text().split("\n")
            if line
        ]

    def holds_key(self) -> bool:
        """Whether the key is in any file: journals, ledger, summary, what was printed."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return any(KEY.encode() in path.read_bytes() for path in files)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def finish(process: subprocess.Popen) -> tuple[float, int]:
    """Wait for it; its peak resident memory in MB and the bytes that it wrote to files."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    io = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024, int(io["wchar"])


def throughput() -> dict:
    """1 s latency, 256 in flight, 2,000 calls; beside it ten calls of a plain loop."""
    concurrency, latency = 256, 1.0
    with Server(latency=latency) as server, Home() as home:
        begun = time.monotonic()
        for number in range(10):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number} # Task"}]}
            request = urllib.request.Request(
                server.url + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            urllib.request.urlopen(request).read()
        plain = 10 / (time.monotonic() - begun)
    with Server(latency=latency) as server, Home() as home:
        process = home.start(server, "--concurrency", concurrency)
        rss_mb, written = finish(process)
        count, summary = server.count(), home.summary()
        return {
            "throughput_of_ideal": count["replies"] / count["seconds"] / (concurrency / latency),
            "calls_s": count["replies"] / count["seconds"],
            "plain_calls_s": plain,
            "rss_mb": rss_mb,
            "write_amplification": written / home.size(),
            "calls": count["replies"],
            "summary_agrees": agrees(summary, count),
            "key_found": home.holds_key(),
        }


def limits() -> dict:
    """600 requests a minute, a second's worth at once: told of the limit, learning it from the
    server's headers, and from bare refusals."""
    ways = {"told": ({}, ["--requests_per_minute", 600]), "headers": ({}, []), "bare": ({"no_limit_headers": True}, [])}

    def measure(way: str) -> dict:
        settings, options = ways[way]
        with Server(latency=1, requests_per_minute=600, burst=10, **settings) as server, Home() as home:
            finish(home.start(server, "--concurrency", 256, *options))
            count = server.count()
            return {
                f"{way}_of_allowed": count["replies"] / (count["seconds"] * 10),
                f"{way}_refused": count["refused"] / count["requests"],
                f"{way}_key_found": home.holds_key(),
            }

    with ThreadPoolExecutor() as pool:
        return {key: value for part in pool.map(measure, ways) for key, value in part.items()}


def kills(**settings: bool) -> dict:
    """10% faults of every kind, 20 kills with -9 at random moments."""
    rng, in_flight = random.Random(0), 0
    options = ["--concurrency", 64, "--timeout", 2]
    with Server(latency=0.5, fault_share=0.1, **settings) as server, Home() as home:
        for _ in range(20):
            before = server.count()["requests"]
            process = home.start(server, *options)
            while server.count()["requests"] == before and process.poll() is None:
                time.sleep(0.01)  # random among the calls, not among the imports
            time.sleep(rng.uniform(0, 1.0))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            in_flight += server.count()["in_flight"]
            process.wait()
        for _ in range(5):  # calls that failed for good are asked for again
            finish(home.start(server, *options))
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
            "key_found": home.holds_key(),
        }


def kills_billed() -> dict:
    """The same with those faults alone that are billed: no call in flight can have been free."""
    return kills(no_refusals=True)


def budget() -> dict:
    """--budget_usd 5 with 10% faults and five kills: what the server bills in the end."""
    rng = random.Random(1)
    options = ["--concurrency", 256, "--timeout", 2, "--budget_usd", 5, "--max_tokens", 1000]
    with Server(latency=0.2, fault_share=0.1) as server, Home() as home:
        for _ in range(5):
            process = home.start(server, *options)
            time.sleep(rng.uniform(0.8, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        finish(home.start(server, *options))
        return {"usd_server": usd(server.count()), "usd_summary": home.summary()["usd"], "key_found": home.holds_key()}


def usd(count: dict) -> float:
    return sum(count["tokens"][kind] * price / 1e6 for kind, price in USD.items())


def agrees(summary: dict, count: dict) -> bool:
    """Whether the client's own count of tokens is the server's."""
    return all(summary[f"{kind}_tokens"] == count["tokens"][kind] for kind in USD)


def main() -> None:
    functions = (throughput, limits, kills, kills_billed, budget)
    parts = {function.__name__: function for function in functions}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: all")
    results = {}
    for name in parser.parse_args().parts or parts:
        found = parts[name]()
        print(f"{name}: {' '.join(parts[name].__doc__.split())}")
        for key, value in found.items():
            print(f"  {key:24}{value:>14.3f}" if isinstance(value, float) else f"  {key:24}{value:>14}")
        prefix = "" if name in ("throughput", "kills") else f"{name}_"
        results |= {prefix + key: value for key, value in found.items() if key != "key_found"}
        results["key_found"] = results.get("key_found", False) or any(
            value for key, value in found.items() if key.endswith("key_found")
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
