"""How fast to call a server: under the limits that are known, and under those that it shows by refusing.

It knows times and counts, nothing of what is called.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable

# Calls/s that start, at the most. Closer together their replies come together too, and wait for each
# other here; and a hidden limit shows itself while few have started.
MOST_A_SECOND = 600.0
FIRST_LOOK, FIRST_LOOK_S = 16, 0.1  # after so many calls, wait so long for a first refusal
BURST_S = 0.2  # refusals so close to the last cut belong to it
RECOVERY_S = 5.0  # the rate doubles in it while it is below half of what has been kept up
KEPT_UP = 20  # calls between two refusals, to call their rate kept up …
FORGET = 0.95  # … which is forgotten by so much at every cut: limits change
SLOWEST = 1 / 60  # calls/s: it goes on trying
BELOW_LIMIT = 0.98  # of a limit that the user gives: clocks differ
CUT = 0.9  # of the rate, after a refusal …
CUT_SOON, SOON = 0.5, 2  # … and this where fewer calls than SOON got through since the last one
FIRST_DOUBLES_S = 2.0  # the rate after the first refusal is a guess: it doubles until the next
GROWTH = 0.05  # of the rate after a cut, added over the next …
GROWTH_CALLS = 50  # … so many calls, and twice as much over each so many more without a refusal
LATE_S = 0.1  # a call that starts later than it might is made up for, so far back


class LeakyBucket:
    """Keeps amounts apart in time: `rate` a second, evenly, with no burst."""

    def __init__(self, rate: float):
        self.rate = rate
        self.free_at = 0.0

    def take(self, amount: float, now: float) -> None:
        self.free_at = max(self.free_at, now - LATE_S) + amount / self.rate


class RateLimiter:
    """When a call may start.

    `requests_per_minute` and `tokens_per_minute` are limits that the user knows of (None: none).
    Besides, a refusal (429) cuts the rate of calls multiplicatively, once for a burst of refusals,
    and the rate then grows additively, in steps that widen while nothing is refused: in a simulation
    of a hidden limit 93 to 100% of it are used and 1.2 to 1.5% of the calls refused, at 1 to 83
    calls/s (tests/test_pace.py). A time to wait that the server names is kept to by all calls.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._all = LeakyBucket(MOST_A_SECOND)
        self._requests = requests_per_minute and LeakyBucket(requests_per_minute / 60 * BELOW_LIMIT)
        self._tokens = tokens_per_minute and LeakyBucket(tokens_per_minute / 60 * BELOW_LIMIT)
        self._learnt: LeakyBucket | None = None  # from refusals
        self._base_rate = 0.0  # calls/s after the last cut
        self._begun: float | None = None
        self._cut_at = 0.0
        self._cuts = 0
        self._kept_up = 0.0  # calls/s
        self._admitted = 0  # calls since the last cut that were not refused
        self._paused_until = 0.0
        self._waiting: deque[tuple[asyncio.Future, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    async def start(self, tokens: float) -> float:
        """Wait until a call of about `tokens` may start; returns its start, for `refuse`. Calls start
        in the order in which they asked."""
        started = asyncio.get_running_loop().create_future()
        self._waiting.append((started, tokens))
        self._release()
        return await started

    def _release(self) -> None:
        """Start all that may start now, at once: one after the other, each in a turn of the event
        loop of its own, 256 calls took a second to go out."""
        while self._waiting and (self._stopped or self.wait_s() <= 0):
            started, tokens = self._waiting.popleft()
            if not started.cancelled():
                started.set_result(self.begin(tokens))
        if self._waiting:
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self.wait_s(), self._release)

    def stop(self) -> None:
        """Let all that wait start at once, and all that come: their callers are to give up."""
        self._stopped = True
        self._release()

    def wait_s(self) -> float:
        """Seconds until the next call may start, as far as is known now; 0: now."""
        now = self._clock()
        if self._begun is None:
            self._begun = self._cut_at = now
        free_at = [spacing.free_at for spacing in self._spacings()]
        wait = max([self._paused_until, *free_at]) - now
        return max(0.0, wait)

    def begin(self, tokens: float) -> float:
        """Note a call that starts now."""
        now = self._clock()
        if self._learnt and self._cuts == 1:
            doublings = min(30, (now - self._cut_at) / FIRST_DOUBLES_S)
            self._learnt.rate = self._base_rate * 2**doublings
        elif self._learnt:
            growth = GROWTH * (2 ** min(30, self._admitted / GROWTH_CALLS) - 1)
            # Refusals that have nothing to do with the rate must not bring it down for good.
            recovered = self._base_rate * 2 ** min(30, (now - self._cut_at) / RECOVERY_S)
            self._learnt.rate = max(self._base_rate * (1 + growth), min(recovered, self._kept_up / 2))
        for spacing in self._spacings():
            spacing.take(tokens if spacing is self._tokens else 1, now)
        self._admitted += 1
        if self._admitted == FIRST_LOOK and not self._learnt:
            self.pause(FIRST_LOOK_S)
        return now

    def end(self, tokens: float, used: float) -> None:
        """Note a call that ended; `used` in place of the `tokens` it was thought to need."""
        if self._tokens:
            self._tokens.free_at += (used - tokens) / self._tokens.rate

    def refuse(self, started: float, wait_s: float) -> None:
        """Note a 429 to the call that began at `started`; `wait_s` is the server's word, or 0."""
        now = self._clock()
        self._admitted -= 1
        self.pause(wait_s)
        if self._learnt and (started < self._cut_at or now - self._cut_at < BURST_S):
            return  # of a burst that has been answered already
        passed = max(1.0, now - self._cut_at)
        got_through = self._admitted / passed if self._admitted >= KEPT_UP else 0.0
        self._kept_up = max(got_through, self._kept_up * FORGET)
        if self._learnt:
            cut = CUT if self._admitted >= SOON else CUT_SOON
            self._base_rate = cut * self._learnt.rate
        else:
            self._base_rate = CUT * max(1, self._admitted) / passed
            self._learnt = LeakyBucket(self._base_rate)
        self._base_rate = max(self._base_rate, SLOWEST)
        self._learnt.rate = self._base_rate
        self._learnt.free_at = now + 1 / self._base_rate
        self._cut_at, self._admitted = now, 0
        self._cuts += 1

    def pause(self, seconds: float) -> None:
        """No call starts for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _spacings(self) -> list[LeakyBucket]:
        return [s for s in (self._all, self._requests, self._tokens, self._learnt) if s]


def retry_after_s(headers) -> float | None:
    """Seconds to wait by a response's headers; None where they name no number."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d*)?", value):
            return float(value) * unit
    return None


def limit_wait_s(headers) -> float:
    """Seconds until one more request is allowed, by the x-ratelimit headers; 0 without them.

    OpenAI's `reset` is the time until all of `limit` is there again (`1s`, `6m0s`, `120ms`), so one
    request comes back in its (limit - remaining)-th part.
    """
    wait = 0.0
    for kind in ("requests", "tokens"):
        fields = [headers.get(f"x-ratelimit-{what}-{kind}") for what in ("remaining", "limit", "reset")]
        if fields[0] != "0" or not (fields[1] or "").isdigit():
            continue
        parts = re.findall(r"([\d.]+)(ms|s|m|h|d)", fields[2] or "")
        units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
        full = sum(float(number) * units[unit] for number, unit in parts)
        wait = max(wait, full / max(1, int(fields[1])))
    return wait
