"""Rate limiter for API calls: known limits, and hidden ones inferred from HTTP 429.

Knows times and counts, nothing of the calls themselves.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable

SHOWN_WAIT_S = 2.0  # shorter waits are not worth a word
# If calls start closer together, their replies arrive together too and wait for each other in the event loop; a lower
# rate also reveals a hidden limit while few calls have started.
MAX_CALLS_PER_S = 600.0
PROBE_CALLS, PROBE_PAUSE_S = 16, 0.1  # after the first calls, pause for a possible first refusal
LIMIT_MARGIN = 0.98  # fraction of a user's limit that is used: clocks differ
CATCH_UP_S = 0.1  # a call that starts late is made up for, up to this delay

REFUSAL_BURST_S = 0.2  # refusals this soon after a cut belong to the same burst
CUT_FACTOR = 0.9  # multiplies the rate after a refusal
EARLY_CUT_FACTOR, EARLY_CUT_CALLS = 0.5, 2  # and if fewer calls than this were accepted since the last cut
MIN_CALLS_PER_S = 1 / 60
FIRST_DOUBLING_S = 2.0  # the rate after the first refusal is a guess and doubles in this time until the next refusal
GROWTH_FRACTION, GROWTH_CALLS = 0.05, 50  # a cut rate grows by 5% over 50 accepted calls, by 10% over the next 50, ...
RECOVERY_DOUBLING_S = 5.0  # doubling time of a rate below half of the sustained rate
SUSTAINED_CALLS = 20  # calls accepted between two refusals that make their rate a sustained rate
SUSTAINED_DECAY = 0.95  # multiplies the sustained rate at each cut: limits change


class LeakyBucket:
    """Spaces amounts evenly at `rate` per second, without bursts."""

    def __init__(self, rate: float):
        self.rate = rate
        self.free_at = 0.0

    def take(self, amount: float, now: float) -> None:
        self.free_at = max(self.free_at, now - CATCH_UP_S) + amount / self.rate


class RateLimiter:
    """Decides when the next call may start.

    `requests_per_minute` and `tokens_per_minute` are limits known to the user (None: unlimited). In addition, a
    refusal (HTTP 429) cuts the rate of calls multiplicatively, once per burst of refusals; the rate then grows
    additively, in steps that widen until the next refusal. In a simulation of a hidden limit of 1 to 83 calls/s,
    93 to 100% of it are used and 1.2 to 1.5% of the calls are refused (tests/inference/test_rate_limiter.py).
    A waiting time named by the server holds for all calls.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._starts = LeakyBucket(MAX_CALLS_PER_S)
        self._requests = requests_per_minute and LeakyBucket(requests_per_minute / 60 * LIMIT_MARGIN)
        self._tokens = tokens_per_minute and LeakyBucket(tokens_per_minute / 60 * LIMIT_MARGIN)
        self._adaptive: LeakyBucket | None = None  # inferred from refusals
        self._base_rate = 0.0  # calls/s after the last cut
        self._sustained_rate = 0.0  # calls/s
        self._first_used_at: float | None = None
        self._cut_at = 0.0
        self._cuts = 0
        self._accepted = 0  # calls since the last cut that were not refused
        self._paused_until = 0.0
        self._waiting: deque[tuple[asyncio.Future, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    async def acquire(self, tokens: float) -> float:
        """Wait until a call of about `tokens` may start, in order of arrival; returns its start time."""
        started = asyncio.get_running_loop().create_future()
        self._waiting.append((started, tokens))
        self._start_ready()
        return await started

    def stop(self) -> None:
        """Let all present and future waiters start at once; their callers are expected to give up."""
        self._stopped = True
        self._start_ready()

    def pause(self, seconds: float) -> None:
        """Start no call for this long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def paused_s(self) -> float:
        """Seconds of the longest waiting time that the server has named."""
        return max(0.0, self._paused_until - self._clock())

    def wait_s(self) -> float:
        """Seconds until the next call may start, as currently known; 0 if it may start now."""
        now = self._clock()
        if self._first_used_at is None:
            self._first_used_at = self._cut_at = now
        return max(0.0, max([self._paused_until, *(bucket.free_at for bucket in self._buckets())]) - now)

    def describe_wait(self) -> str:
        """A sentence for the progress bar while calls wait; empty while calls start freely."""
        seconds = self.wait_s() if self._waiting else 0.0
        return f"waiting for the rate limit, {seconds:.0f} s" if seconds >= SHOWN_WAIT_S else ""

    def record_start(self, tokens: float) -> float:
        """Count a call that starts now; returns its start time, for `record_refusal`."""
        now = self._clock()
        if self._adaptive:
            self._adaptive.rate = self._grown_rate(now)
        for bucket in self._buckets():
            bucket.take(tokens if bucket is self._tokens else 1, now)
        self._accepted += 1
        if self._accepted == PROBE_CALLS and not self._adaptive:
            self.pause(PROBE_PAUSE_S)
        return now

    def record_end(self, estimated_tokens: float, used_tokens: float) -> None:
        """Replace the estimated tokens of a call that ended by those it used."""
        if self._tokens:
            self._tokens.free_at += (used_tokens - estimated_tokens) / self._tokens.rate

    def record_refusal(self, started_at: float, retry_after_s: float) -> None:
        """Count a 429 to the call started at `started_at`; `retry_after_s` is the server's waiting time, or 0."""
        now = self._clock()
        self._accepted -= 1
        self.pause(retry_after_s)
        if self._adaptive and (started_at < self._cut_at or now - self._cut_at < REFUSAL_BURST_S):
            return  # same burst as the last cut
        elapsed = max(1.0, now - self._cut_at)
        accepted_rate = self._accepted / elapsed if self._accepted >= SUSTAINED_CALLS else 0.0
        self._sustained_rate = max(accepted_rate, self._sustained_rate * SUSTAINED_DECAY)
        if self._adaptive:
            factor = CUT_FACTOR if self._accepted >= EARLY_CUT_CALLS else EARLY_CUT_FACTOR
            self._base_rate = factor * self._adaptive.rate
        else:
            self._base_rate = CUT_FACTOR * max(1, self._accepted) / elapsed
        self._base_rate = max(self._base_rate, MIN_CALLS_PER_S)
        self._adaptive = LeakyBucket(self._base_rate)
        self._adaptive.free_at = now + 1 / self._base_rate
        self._cut_at, self._accepted = now, 0
        self._cuts += 1

    def _grown_rate(self, now: float) -> float:
        """Adaptive rate in calls/s, by the time and the accepted calls since the last cut."""
        if self._cuts == 1:
            return self._base_rate * 2 ** min(30, (now - self._cut_at) / FIRST_DOUBLING_S)
        growth = GROWTH_FRACTION * (2 ** min(30, self._accepted / GROWTH_CALLS) - 1)
        # Refusals unrelated to the rate must not lower it for good.
        recovered = self._base_rate * 2 ** min(30, (now - self._cut_at) / RECOVERY_DOUBLING_S)
        return max(self._base_rate * (1 + growth), min(recovered, self._sustained_rate / 2))

    def _start_ready(self) -> None:
        """Start all calls that may start now, in one turn of the event loop: one turn per call took 1 s for 256."""
        while self._waiting and (self._stopped or self.wait_s() <= 0):
            started, tokens = self._waiting.popleft()
            if not started.cancelled():
                started.set_result(self.record_start(tokens))
        if self._waiting:
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self.wait_s(), self._start_ready)

    def _buckets(self) -> list[LeakyBucket]:
        return [bucket for bucket in (self._starts, self._requests, self._tokens, self._adaptive) if bucket]


def parse_retry_after(headers) -> float | None:
    """Seconds to wait by the retry-after headers; None without a number."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d*)?", value):
            return float(value) * unit_s
    return None


def parse_limit_reset(headers) -> float:
    """Seconds until one more request is allowed, by the x-ratelimit headers; 0 without them.

    OpenAI's `reset` is the time until all of `limit` is available again (`1s`, `6m0s`, `120ms`), so one request
    becomes available after reset / (limit - remaining).
    """
    units_s = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    wait_s = 0.0
    for kind in ("requests", "tokens"):
        remaining, limit, reset = (headers.get(f"x-ratelimit-{n}-{kind}") for n in ("remaining", "limit", "reset"))
        if remaining == "0" and re.fullmatch(r"[0-9]{1,15}", limit or ""):
            parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", reset or "")
            reset_s = sum(float(number) * units_s[unit] for number, unit in parts)
            wait_s = max(wait_s, reset_s / max(1, int(limit)))
    return wait_s
