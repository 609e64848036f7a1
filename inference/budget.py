"""Ledger of API calls: tokens and dollars spent, within a budget.

Every call is written to the ledger's file when it is sent and when it is answered; the file survives kill -9 at any
moment. Knows tokens and prices, nothing of prompts.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from inference.prices import ZERO, Price, Usage
from inference.shared_journal import SharedJournal
from utils.errors import name_damage

UNSENT = "unsent"  # end of a call that no server has seen


class BudgetExhausted(Exception):
    """The remaining budget has no room for a call, and no call in flight can free any."""


@dataclass
class Call:
    """A call in flight; `max_usage` is the largest number of tokens it can be billed for."""

    id: str
    max_usage: Usage
    sent: bool = False


@dataclass
class Totals:
    """Billed usage as reported by servers (live, batch), and counts of calls.

    `lost` calls were sent and never answered, because the connection broke or the program was killed. Each counts as
    billed: for the cost of the same call once it is answered, and until then for the upper bound of its cost.
    """

    live: Usage = ZERO
    batch: Usage = ZERO
    batches: list[str] = field(default_factory=list)  # ids of the batches counted in `batch`
    calls: int = 0
    lost: int = 0
    retries: int = 0
    seconds: float = 0.0


class Ledger:
    """Budget and bill of one folder of passages, over all runs, also of several processes at once.

    With `path` None it is kept in memory only.
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
        self.batch_reserved = ZERO  # by pending batches
        self._reserved = ZERO  # by the calls in flight
        self._in_flight = 0
        self._held: dict[str, Usage] = {}  # by the calls of other processes that are not sent yet, by call id
        self._lost: dict[str, list[Usage]] = {}  # upper bounds of their usage, by call id
        self._released = asyncio.Event()
        self._journal = self._opened_at = None
        if path:
            with name_damage(path, "restore it from a backup, or move the folder and its passages elsewhere"):
                self._journal = SharedJournal(path, self._replay, self._snapshot)
        self._opened_at = time.monotonic()

    @property
    def has_budget(self) -> bool:
        return self.budget_usd is not None or self.max_tokens is not None

    def usd(self) -> float | None:
        """Dollars spent, without calls in flight; None without a price."""
        return self._usd(self._lost_usage()) if self.price else None

    def tokens(self) -> int:
        """Tokens spent, without calls in flight."""
        return (self.totals.live + self.totals.batch + self._lost_usage()).total

    def summary(self) -> dict[str, Any]:
        """Figures of summary.json, over all runs."""
        with self._with_others():
            totals = self.totals
        usage = totals.live + totals.batch + self._lost_usage()
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

    async def reserve(self, id: str, max_usage: Usage) -> Call:
        """Reserve `max_usage` for a call, once the budget has room for it.

        Calls in flight count as spent until they are answered; if only they can free the room, this waits. Raises
        BudgetExhausted if none is in flight.
        """
        while not self._hold(id, max_usage):
            if not self._in_flight:
                raise BudgetExhausted
            self._released.clear()
            await self._released.wait()
        self._in_flight += 1
        self._reserved += max_usage
        return Call(id, max_usage)

    def _hold(self, id: str, max_usage: Usage) -> bool:
        """Keep other processes from spending what a call may cost; False if the budget has no room for it."""
        if not self.has_budget:
            return True
        with self._with_others():
            fits = self._fits(max_usage)
            if fits and self._journal:
                self._journal.append({"id": id, "hold": astuple(max_usage)})
        return fits

    def record_sent(self, call: Call) -> None:
        """Note, just before its last bytes leave, that a call may be billed from now on."""
        call.sent = True
        self._append({"id": call.id, "most": astuple(call.max_usage)})

    def record_reply(self, call: Call, usage: Usage) -> None:
        with self._releasing(call):
            if not call.sent:
                self.record_sent(call)
            self._append({"id": call.id, "usage": astuple(usage)})
            self._add_reply(call.id, usage)

    def record_refusal(self, call: Call) -> None:
        """Note an HTTP error, which is not billed."""
        with self._releasing(call):
            self.totals.retries += 1
            self._append_end(call, "refused")

    def record_failure(self, call: Call) -> None:
        """Note a call without a complete reply, which is billed if it was sent."""
        with self._releasing(call):
            if call.sent:
                self.totals.retries += 1
                self._lost.setdefault(call.id, []).append(call.max_usage)
            self._append_end(call, "lost")

    def _append_end(self, call: Call, end: str) -> None:
        if call.sent:
            self._append({"id": call.id, "end": end})
        elif self.has_budget:
            self._append({"id": call.id, "end": UNSENT})

    def fits_batch(self, max_usage: Usage) -> bool:
        """True if the budget covers a batch of this size in addition to the pending ones."""
        return self._fits(ZERO, max_usage)

    def record_batch(self, id: str, usage: Usage, calls: int) -> None:
        """Add the bill of a batch, once per id."""
        if id in self.totals.batches:
            return
        self._append({"id": id, "batch": astuple(usage), "calls": calls})
        self._add_batch(id, usage, calls)

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    @contextmanager
    def _releasing(self, call: Call) -> Iterator[None]:
        """Release the reservation of a call in any case, such as a full disk."""
        try:
            yield
        finally:
            self._in_flight -= 1
            self._reserved -= call.max_usage
            self._released.set()

    def _fits(self, live: Usage, batch: Usage = ZERO) -> bool:
        live = sum(self._held.values(), self._reserved) + self._lost_usage() + live
        batch = self.batch_reserved + batch
        if self.budget_usd is not None and self._usd(live, batch) > self.budget_usd:
            return False
        billed = self.totals.live + self.totals.batch
        return self.max_tokens is None or (billed + live + batch).total <= self.max_tokens

    def _usd(self, live: Usage, batch: Usage = ZERO) -> float:
        """Dollars for all that is billed and for further `live` and `batch` usage."""
        live_usd = self.price.usd(self.totals.live + live)
        return live_usd + self.price.usd(self.totals.batch + batch) * self.price.batch

    def _lost_usage(self) -> Usage:
        """Upper bound of the usage of lost calls."""
        return sum((bound for bounds in self._lost.values() for bound in bounds), ZERO)

    def _add_reply(self, id: str, usage: Usage) -> None:
        """Count a reply, and the same usage, without cache hits, for each lost call of its id."""
        lost = len(self._lost.pop(id, []))
        self.totals.live += usage
        for _ in range(lost):
            self.totals.live += Usage(usage.prompt, 0, usage.completion)
        self.totals.calls += 1
        self.totals.lost += lost

    def _add_batch(self, id: str, usage: Usage, calls: int) -> None:
        self.totals.batches.append(id)
        self.totals.batch += usage
        self.totals.calls += calls

    def _seconds(self) -> float:
        return self.totals.seconds + time.monotonic() - self._opened_at

    def _append(self, record: dict) -> None:
        if self._journal:
            with self._journal.locked():
                self._journal.append(record | {"s": round(self._seconds(), 2)})

    def _with_others(self) -> AbstractContextManager:
        """Read the records of other processes, and lock the file."""
        return self._journal.locked() if self._journal else nullcontext()

    def _replay(self, record: dict) -> None:
        """Apply a record of an earlier run, or of another process."""
        if "totals" in record:
            saved = record["totals"]
            self.totals = Totals(**saved | {name: read_usage(saved[name].values()) for name in ("live", "batch")})
            self._lost = {id: [read_usage(bound) for bound in bounds] for id, bounds in record["lost"].items()}
            self._held = {}
            return
        id = record["id"]
        if "hold" in record:
            self._held[id] = read_usage(record["hold"])
            return
        self._held.pop(id, None)
        if "most" in record:  # lost, unless a later record says otherwise
            self._lost.setdefault(id, []).append(read_usage(record["most"]))
        elif "batch" in record:
            self._add_batch(id, read_usage(record["batch"]), record["calls"])
        elif "usage" in record:
            self._drop_last_lost(id)
            self._add_reply(id, read_usage(record["usage"]))
        elif record["end"] != UNSENT:
            self.totals.retries += 1
            if record["end"] == "refused":
                self._drop_last_lost(id)
        if self._opened_at is None:  # the time of other processes passes beside this one's
            self.totals.seconds = max(self.totals.seconds, float(record["s"]))

    def _drop_last_lost(self, id: str) -> None:
        if self._lost.get(id):
            self._lost[id].pop()
        if not self._lost.get(id):
            self._lost.pop(id, None)

    def _snapshot(self) -> list[dict]:
        lost = {id: [astuple(bound) for bound in bounds] for id, bounds in self._lost.items() if bounds}
        return [{"totals": asdict(self.totals), "lost": lost}]


def read_usage(counts: Iterable) -> Usage:
    """The usage of a record. Raises ValueError for what is no count."""
    usage = Usage(*counts)
    if not all(isinstance(count, int) and count >= 0 for count in astuple(usage)):
        raise ValueError(f"{usage} are no counts")
    return usage
