import asyncio
import fcntl
import json
import random
import subprocess
import sys
import time

import pytest

from inference.budget import BudgetExhausted, Ledger
from inference.prices import Price, Usage, find_price
from inference.shared_journal import SharedJournal
from utils.errors import UserError

PRICE = Price(10.0, 5.0, 30.0, 0.5)


def ledger(path=None, **settings):
    return Ledger(path, PRICE, **settings)


def test_dollars():
    assert PRICE.usd(Usage(1_000_000, 400_000, 100_000)) == pytest.approx(6 + 2 + 3)


def test_call_is_reserved_until_it_is_answered():
    async def main():
        book = ledger(budget_usd=1.0)
        max_usage = Usage(10_000, 0, 20_000)  # 0.70 dollars
        call = await book.reserve("a", max_usage)
        waiting = asyncio.create_task(book.reserve("b", max_usage))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # it may fit once the first is answered
        book.record_reply(call, Usage(9000, 0, 1000))
        call = await waiting
        book.record_reply(call, Usage(9000, 0, 18_000))
        with pytest.raises(BudgetExhausted):
            await book.reserve("c", max_usage)
        assert book.usd() == pytest.approx(0.12 + 0.63)

    asyncio.run(main())


def test_token_budget():
    async def main():
        book = Ledger(max_tokens=1000)
        book.record_reply(await book.reserve("a", Usage(500, 0, 400)), Usage(500, 0, 100))
        with pytest.raises(BudgetExhausted):
            await book.reserve("b", Usage(300, 0, 101))
        book.record_failure(await book.reserve("c", Usage(300, 0, 100)))  # it was never sent
        assert book.tokens() == 600

    asyncio.run(main())


def test_lost_calls_cost_the_upper_bound_until_answered():
    async def main():
        book = ledger()
        for _ in range(2):
            call = await book.reserve("a", Usage(1000, 0, 500))
            book.record_sent(call)
            book.record_failure(call)
        assert book.summary()["lost"] == 2
        assert book.tokens() == 3000
        book.record_reply(await book.reserve("a", Usage(1000, 0, 500)), Usage(300, 200, 50))
        assert book.summary() | {"seconds": 0} == {
            "calls": 1,
            "lost": 2,
            "retries": 2,
            "prompt_tokens": 900,
            "cached_tokens": 200,
            "completion_tokens": 150,
            "seconds": 0,
            "usd": pytest.approx((700 * 10 + 200 * 5 + 150 * 30) / 1e6),
        }

    asyncio.run(main())


def test_kill_at_any_byte_loses_no_paid_call(tmp_path):
    """After a kill the ledger is never below the answered usage and never above the answered and sent usage; a second
    reading gives the same figures."""

    async def write(path):
        rng, book, open_calls, bounds = random.Random(1), ledger(path), [], []
        for number in range(40):
            under_way = {call.id for call in open_calls}
            free = [f"id{n}" for n in range(9) if f"id{n}" not in under_way]
            call = await book.reserve(free[number % len(free)], Usage(100, 0, 100))
            book.record_sent(call)
            open_calls.append(call)
            if len(open_calls) > 3:
                call = open_calls.pop(rng.randrange(4))
                end = rng.choice([book.record_reply] * 3 + [book.record_failure, book.record_refusal])
                end(call, Usage(60, 0, 20)) if end == book.record_reply else end(call)
            bounds.append((path.stat().st_size, book.totals.live.total, book.tokens() + 200 * 4))
        book.close()
        return bounds

    bounds = asyncio.run(write(tmp_path / "complete"))
    content = (tmp_path / "complete").read_bytes()
    for size, lower, upper in bounds:
        for cut in (size, size + 5):
            path = tmp_path / "cut"
            path.write_bytes(content[:cut])
            first = ledger(path)
            figures = first.summary()
            first.close()
            assert lower <= first.tokens() <= upper
            again = ledger(path)
            assert again.summary() | {"seconds": 0} == figures | {"seconds": 0}
            again.close()
            path.unlink()


def test_snapshot_is_written_before_the_records_are_dropped(tmp_path, monkeypatch):
    """A failure while a ledger is opened loses no usage from its file."""

    async def spend(path):
        book = ledger(path)
        book.record_reply(await book.reserve("a", Usage(100, 0, 100)), Usage(60, 0, 20))
        book.close()

    asyncio.run(spend(tmp_path / "l"))
    with monkeypatch.context() as patch:
        patch.setattr(SharedJournal, "append", lambda *_: 1 / 0)
        ledger(tmp_path / "l").close()
    book = ledger(tmp_path / "l")
    assert book.tokens() == 80
    book.close()


def test_full_disk_does_not_leave_a_call_in_flight(tmp_path, monkeypatch):
    async def main():
        book = ledger(tmp_path / "l", budget_usd=0.01)
        call = await book.reserve("a", Usage(100, 0, 100))
        with monkeypatch.context() as patch:
            patch.setattr(SharedJournal, "append", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                book.record_reply(call, Usage(60, 0, 20))
        with pytest.raises(BudgetExhausted):
            await asyncio.wait_for(book.reserve("b", Usage(1000, 0, 1000)), 1)

    asyncio.run(main())


def test_batches_count_once(tmp_path):
    book = ledger(tmp_path / "l")
    for _ in range(2):
        book.record_batch("batch_1", Usage(1_000_000, 0, 0), 7)
    assert (book.usd(), book.summary()["calls"]) == (5.0, 7)
    book.close()
    book = ledger(tmp_path / "l", budget_usd=10.0)
    book.record_batch("batch_1", Usage(1_000_000, 0, 0), 7)
    assert book.usd() == 5.0
    assert book.fits_batch(Usage(1_000_000, 0, 0))
    assert not book.fits_batch(Usage(1_000_001, 0, 0))
    book.close()


SPENDER = """
import asyncio, random, sys
from pathlib import Path
from inference.budget import BudgetExhausted, Ledger
from inference.prices import Usage

async def main(path, name, budget):
    rng, book, calls = random.Random(name), Ledger(Path(path), max_tokens=int(budget)), 0
    print("open", flush=True)
    sys.stdin.readline()
    try:
        while True:
            call = await book.reserve(f"{name}{calls}", Usage(100, 0, 100))
            await asyncio.sleep(rng.random() / 500)
            book.record_sent(call)
            await asyncio.sleep(rng.random() / 500)
            book.record_reply(call, Usage(100, 0, rng.randrange(100)))
            calls += 1
    except BudgetExhausted:
        print(calls, book.tokens())

asyncio.run(main(*sys.argv[1:]))
"""


def spenders(path, budget: int, number: int) -> list[subprocess.Popen]:
    """Processes that spend one budget. All have opened the ledger before the first spends."""
    command = [sys.executable, "-c", SPENDER, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, f"p{n}-", str(budget)], **pipes) for n in range(number)]
    assert [process.stdout.readline() for process in processes] == ["open\n"] * number
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_processes_share_a_budget(tmp_path):
    """D9: a second process was refused. Together they spend the budget, and no more."""
    counts = [process.communicate()[0].split() for process in spenders(tmp_path / "l", 30_000, 4)]
    assert all(int(calls) > 10 for calls, _ in counts)
    book = ledger(tmp_path / "l")
    assert 29_600 < book.tokens() <= 30_000
    assert book.summary()["calls"] == sum(int(calls) for calls, _ in counts)
    book.close()


def test_a_killed_process_among_several(tmp_path):
    """A sent call counts at its maximum cost; the reservation of the killed process is released for a later run."""
    processes = spenders(tmp_path / "l", 30_000, 3)
    while (tmp_path / "l").stat().st_size < 5_000:
        time.sleep(0.005)
    processes[0].kill()
    with open(tmp_path / "l", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"id": "torn')  # as a kill in the middle of write() leaves it
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [-9, 0, 0]
    book = ledger(tmp_path / "l", max_tokens=30_000)
    assert 29_400 < book.tokens() <= 30_000
    assert book.summary()["lost"] <= 1
    assert not book._held
    book.close()
    assert (tmp_path / "l").read_text().count("\n") == 1


def test_prices(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"m": {"prompt": 1, "cached": 0.5, "completion": 2, "batch": 0.5}}))
    assert find_price(path, "m") == find_price(path, "m-2024-08-06") == Price(1, 0.5, 2, 0.5)
    assert find_price(path, "m-mini") is None
    for bad in ('{"m": {"prompt": "x"}}', '{"m": 3}', '{"m": {"input": 1}}', "{"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"prices\.json"):
            find_price(path, "m")
