"""What has been spent, and may be: every call is noted when it goes out and when it is answered.

The file survives kill -9 at any moment. It knows tokens and prices, nothing of what is asked.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from inference.prices import ZERO, Price, Usage
from utils.io import Journal


class BudgetExhausted(Exception):
    """No call fits into what is left of the budget, and none in flight will make room."""


@dataclass
class Call:
    """A call under way. `most` is the largest number of tokens it can be billed for."""

    id: str
    most: Usage
    sent: bool = False


@dataclass
class Totals:
    """What was billed: by what servers said (live, batch), and the rest, by reckoning.

    `lost` calls went out and were never answered, because the connection tore or the program was
    killed; each is taken as billed: for what the same call cost when it was answered at last, and
    until then for the most that it can have cost.
    """

    live: Usage = ZERO
    batch: Usage = ZERO
    batches: list[str] = field(default_factory=list)  # ids of those that are in `batch`
    calls: int = 0
    lost: int = 0
    retries: int = 0
    seconds: float = 0.0


class Ledger:
    """Budget and bill of one folder of passages, over all runs.

    `path` None keeps it in memory alone. Raises UserError where another process has it open.
    """

    def __init__(
        self,
        path: Path | None = None,
        price: Price | None = None,
        budget_usd: float | None = None,
        max_tokens: int | None = None,
    ):
        self.price, self.budget_usd, self.max_tokens = price, budget_usd, max_tokens
        self.totals = Totals()
        self._in_flight = 0
        self._reserved = Usage()  # by the calls in flight
        self.batch_reserved = Usage()  # by batches that are under way
        self._lost: dict[str, list[Usage]] = {}  # the most they can have cost, by id
        self._changed = asyncio.Event()
        self._journal = None
        if path:
            self._journal = Journal(path, self._replay, self._sum)
            self._lost = {id: most for id, most in self._lost.items() if most}
        self._begun = time.monotonic()

    def usd(self) -> float | None:
        """Dollars spent; None without a price. Calls in flight are not in it."""
        return self._usd(self._unknown()) if self.price else None

    def tokens(self) -> int:
        return (self.totals.live + self.totals.batch + self._unknown()).total

    def summary(self) -> dict[str, Any]:
        """The figures of summary.json, over all runs."""
        totals, unknown = self.totals, self._unknown()
        usage = totals.live + totals.batch + unknown
        return {
            "calls": totals.calls,
            "lost": totals.lost + sum(map(len, self._lost.values())),
            "retries": totals.retries,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "usd": self.usd(),
            "seconds": round(self._seconds(), 1),
        }

    async def admit(self, id: str, most: Usage) -> Call:
        """Reserve `most` for a call, when the budget has room for it.

        Calls in flight count as spent until they are answered; where room can only come from them,
        this waits. Raises BudgetSpent where there is none to come.
        """
        while not self._fits(most):
            if not self._in_flight:
                raise BudgetExhausted
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1
        self._reserved += most
        return Call(id, most)

    def sent(self, call: Call) -> None:
        """Note, just before its last bytes leave, that a call may be billed from now on."""
        call.sent = True
        self._note({"id": call.id, "most": astuple(call.most)})

    def answered(self, call: Call, usage: Usage) -> None:
        with self._closing(call):
            if not call.sent:
                self.sent(call)
            self._note({"id": call.id, "usage": astuple(usage)})
            self._answer(call.id, usage)

    def refused(self, call: Call) -> None:
        """An HTTP error: nothing is billed."""
        with self._closing(call):
            self.totals.retries += 1
            if call.sent:
                self._note({"id": call.id, "end": "refused"})

    def failed(self, call: Call) -> None:
        """No whole answer: billed where it went out at all."""
        with self._closing(call):
            if call.sent:
                self.totals.retries += 1
                self._lost.setdefault(call.id, []).append(call.most)
                self._note({"id": call.id, "end": "lost"})

    def fits_batch(self, most: Usage) -> bool:
        """Whether the budget has room for a batch of that size beside those that are under way."""
        return self._fits(Usage(), most)

    def batch_answered(self, id: str, usage: Usage, calls: int) -> None:
        """A batch has been billed. The second time it is told of one, nothing changes."""
        if id in self.totals.batches:
            return
        self._note({"id": id, "batch": astuple(usage), "calls": calls})
        self._add_batch(id, usage, calls)

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    @contextmanager
    def _closing(self, call: Call) -> Iterator[None]:
        """Whatever happens (a full disk), the call is no longer in flight."""
        try:
            yield
        finally:
            self._in_flight -= 1
            self._reserved -= call.most
            self._changed.set()

    def _add_batch(self, id: str, usage: Usage, calls: int) -> None:
        self.totals.batches.append(id)
        self.totals.batch += usage
        self.totals.calls += calls

    def _fits(self, most: Usage, most_of_batch: Usage = ZERO) -> bool:
        unknown = self._reserved + self._unknown() + most
        batch = self.batch_reserved + most_of_batch
        if self.budget_usd is not None and self._usd(unknown, batch) > self.budget_usd:
            return False
        known = self.totals.live + self.totals.batch
        return self.max_tokens is None or (known + unknown + batch).total <= self.max_tokens

    def _usd(self, live: Usage, batch: Usage = ZERO) -> float:
        live_usd = self.price.usd(self.totals.live + live)
        return live_usd + self.price.usd(self.totals.batch + batch) * self.price.batch

    def _unknown(self) -> Usage:
        """What lost calls are reckoned at."""
        return sum((most for calls in self._lost.values() for most in calls), Usage())

    def _answer(self, id: str, usage: Usage) -> None:
        """Count a reply, and what earlier calls of the same id must have cost; whether those met a
        cache is not known, so they count as if they had not."""
        lost = len(self._lost.pop(id, []))
        self.totals.live += usage
        for _ in range(lost):
            self.totals.live += Usage(usage.prompt, 0, usage.completion)
        self.totals.calls += 1
        self.totals.lost += lost

    def _seconds(self) -> float:
        return self.totals.seconds + time.monotonic() - self._begun

    def _note(self, line: dict) -> None:
        if self._journal:
            self._journal.append(line | {"s": round(self._seconds(), 2)})

    def _replay(self, line: dict) -> bool:
        """Take in a line of an earlier run. None is kept: `_sum` stands for all of them."""
        if "totals" in line:
            saved = line["totals"]
            usages = {name: Usage(**saved[name]) for name in ("live", "batch")}
            self.totals = Totals(**saved | usages)
            self._lost = {id: [Usage(*u) for u in most] for id, most in line["lost"].items()}
            return False
        id = line["id"]
        if "most" in line:  # lost, unless a later line says better
            self._lost.setdefault(id, []).append(Usage(*line["most"]))
        elif "batch" in line:
            self._add_batch(id, Usage(*line["batch"]), line["calls"])
        elif "usage" in line:
            self._forget_one(id)
            self._answer(id, Usage(*line["usage"]))
        else:
            self.totals.retries += 1
            if line["end"] == "refused":
                self._forget_one(id)
        self.totals.seconds = line["s"]
        return False

    def _forget_one(self, id: str) -> None:
        if self._lost.get(id):
            self._lost[id].pop()

    def _sum(self) -> list[dict]:
        lost = {id: [astuple(u) for u in most] for id, most in self._lost.items() if most}
        return [{"totals": asdict(self.totals), "lost": lost}]
