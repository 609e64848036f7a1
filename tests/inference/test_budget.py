import asyncio
import json
import random

import pytest

from inference.budget import BudgetExhausted, Ledger
from inference.prices import Price, Usage, find_price
from utils.errors import UserError
from utils.io import Journal

PRICE = Price(10.0, 5.0, 30.0, 0.5)


def ledger(path=None, **settings):
    return Ledger(path, PRICE, **settings)


def test_dollars():
    assert PRICE.usd(Usage(1_000_000, 400_000, 100_000)) == pytest.approx(6 + 2 + 3)


def test_a_call_is_reserved_until_it_is_answered():
    async def main():
        book = ledger(budget_usd=1.0)
        most = Usage(10_000, 0, 20_000)  # 0.70 dollars
        call = await book.admit("a", most)
        waiting = asyncio.create_task(book.admit("b", most))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # it may fit when the first is known
        book.answered(call, Usage(9000, 0, 1000))
        call = await waiting
        book.answered(call, Usage(9000, 0, 18_000))
        with pytest.raises(BudgetExhausted):
            await book.admit("c", most)
        assert book.usd() == pytest.approx(0.12 + 0.63)

    asyncio.run(main())


def test_a_budget_of_tokens():
    async def main():
        book = Ledger(max_tokens=1000)
        book.answered(await book.admit("a", Usage(500, 0, 400)), Usage(500, 0, 100))
        with pytest.raises(BudgetExhausted):
            await book.admit("b", Usage(300, 0, 101))
        book.failed(await book.admit("c", Usage(300, 0, 100)))  # it never went out
        assert book.tokens() == 600

    asyncio.run(main())


def test_lost_calls_cost_the_most_until_they_are_answered():
    async def main():
        book = ledger()
        for _ in range(2):
            call = await book.admit("a", Usage(1000, 0, 500))
            book.sent(call)
            book.failed(call)
        assert book.summary()["lost"] == 2
        assert book.tokens() == 3000
        book.answered(await book.admit("a", Usage(1000, 0, 500)), Usage(300, 200, 50))
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


def test_after_a_kill_at_any_byte_nothing_paid_is_forgotten(tmp_path):
    """What the ledger says after a kill is never below what was answered, and never above what was
    answered and sent; and reading it twice says the same."""

    async def write(path):
        rng, book, open_calls, bounds = random.Random(1), ledger(path), [], []
        for number in range(40):
            under_way = {call.id for call in open_calls}
            free = [f"id{n}" for n in range(9) if f"id{n}" not in under_way]
            call = await book.admit(free[number % len(free)], Usage(100, 0, 100))
            book.sent(call)
            open_calls.append(call)
            if len(open_calls) > 3:
                call = open_calls.pop(rng.randrange(4))
                end = rng.choice([book.answered] * 3 + [book.failed, book.refused])
                end(call, Usage(60, 0, 20)) if end == book.answered else end(call)
            bounds.append((path.stat().st_size, book.totals.live.total, book.tokens() + 200 * 4))
        book.close()
        return bounds

    bounds = asyncio.run(write(tmp_path / "whole"))
    content = (tmp_path / "whole").read_bytes()
    for size, least, most in bounds:
        for cut in (size, size + 5):
            path = tmp_path / "cut"
            path.write_bytes(content[:cut])
            first = ledger(path)
            figures = first.summary()
            first.close()
            assert least <= first.tokens() <= most
            again = ledger(path)
            assert again.summary() | {"seconds": 0} == figures | {"seconds": 0}
            again.close()
            path.unlink()


def test_the_sum_is_there_before_the_lines_go(tmp_path, monkeypatch):
    """Whatever fails while a ledger is opened, its file says what was spent."""

    async def spend(path):
        book = ledger(path)
        book.answered(await book.admit("a", Usage(100, 0, 100)), Usage(60, 0, 20))
        book.close()

    asyncio.run(spend(tmp_path / "l"))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *_: 1 / 0)
        ledger(tmp_path / "l").close()
    book = ledger(tmp_path / "l")
    assert book.tokens() == 80
    book.close()


def test_a_full_disk_does_not_leave_a_call_in_flight(tmp_path, monkeypatch):
    async def main():
        book = ledger(tmp_path / "l", budget_usd=0.01)
        call = await book.admit("a", Usage(100, 0, 100))
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                book.answered(call, Usage(60, 0, 20))
        with pytest.raises(BudgetExhausted):
            await asyncio.wait_for(book.admit("b", Usage(1000, 0, 1000)), 1)

    asyncio.run(main())


def test_batches_count_once(tmp_path):
    book = ledger(tmp_path / "l")
    for _ in range(2):
        book.batch_answered("batch_1", Usage(1_000_000, 0, 0), 7)
    assert (book.usd(), book.summary()["calls"]) == (5.0, 7)
    book.close()
    book = ledger(tmp_path / "l", budget_usd=10.0)
    book.batch_answered("batch_1", Usage(1_000_000, 0, 0), 7)
    assert book.usd() == 5.0
    assert book.fits_batch(Usage(1_000_000, 0, 0))
    assert not book.fits_batch(Usage(1_000_001, 0, 0))
    book.close()


def test_two_processes_do_not_share_a_ledger(tmp_path):
    book = ledger(tmp_path / "l")
    with pytest.raises(UserError, match="another process"):
        ledger(tmp_path / "l")
    book.close()


def test_prices(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"m": {"prompt": 1, "cached": 0.5, "completion": 2, "batch": 0.5}}))
    assert find_price(path, "m") == find_price(path, "m-2024-08-06") == Price(1, 0.5, 2, 0.5)
    assert find_price(path, "m-mini") is None
    for bad in ('{"m": {"prompt": "x"}}', '{"m": 3}', '{"m": {"input": 1}}', "{"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"prices\.json"):
            find_price(path, "m")
