import asyncio
import heapq
import random

import pytest

from inference.rate_limiter import PROBE_CALLS, PROBE_PAUSE_S, REFUSAL_BURST_S, RateLimiter


class Simulation:
    """Calls through a RateLimiter to a server with a token bucket, in simulated time: accepted calls take `latency`,
    refused calls return at once."""

    def __init__(self, rate=10.0, burst=1.0, latency=1.0, names_wait=False, concurrency=256, **limits):
        self.now, self.rate, self.level, self.filled_at = 0.0, rate, burst, 0.0
        self.burst, self.latency, self.names_wait = burst, latency, names_wait
        self.limiter = RateLimiter(**limits, clock=lambda: self.now)
        self.free = concurrency
        self.done: list[float] = []
        self.refused: list[float] = []

    def run(self, seconds):
        ends = []
        while self.now < seconds:
            while ends and ends[0] <= self.now:
                heapq.heappop(ends)
                self.limiter.record_end(0, 0)
                self.done.append(self.now)
                self.free += 1
            wait = self.limiter.wait_s() if self.free else 1e9
            if wait == 0:
                self.start(ends)
            else:
                self.now = min([self.now + wait, *ends[:1]])
        return self

    def start(self, ends):
        begun = self.limiter.record_start(0)
        self.level = min(self.burst, self.level + (self.now - self.filled_at) * self.rate)
        self.filled_at = self.now
        if self.level >= 1:
            self.level -= 1
            self.free -= 1
            heapq.heappush(ends, self.now + self.latency)
        else:
            self.refused.append(self.now)
            self.limiter.record_refusal(begun, (1 - self.level) / self.rate if self.names_wait else 0)
            self.limiter.record_end(0, 0)


@pytest.mark.parametrize("rate", [1.0, 10.0, 83.0])
@pytest.mark.parametrize("latency", [1.0, 20.0])
@pytest.mark.parametrize("burst", [1.0, 10.0])
@pytest.mark.parametrize("names_wait", [True, False])
def test_hidden_limit_is_found_and_kept(rate, latency, burst, names_wait):
    """At least 90% of the allowed calls and at most 3% refused, after the first minute."""
    simulation = Simulation(rate, burst, latency, names_wait, concurrency=4000).run(400)
    done = [at for at in simulation.done if 60 + latency <= at < 360]
    refused = [at for at in simulation.refused if 60 <= at < 360]
    assert len(done) >= 0.9 * rate * (300 - latency)
    assert len(refused) <= 0.03 * len(done) + 1


def test_known_limit_is_never_exceeded():
    simulation = Simulation(10.0, 1.0, 1.0, requests_per_minute=600).run(300)
    assert not simulation.refused
    assert len(simulation.done) >= 0.95 * 10 * 299


def test_tokens_per_minute():
    now = [0.0]
    limiter = RateLimiter(tokens_per_minute=60_000, clock=lambda: now[0])
    started = []
    while now[0] < 120:
        if wait := limiter.wait_s():
            now[0] += wait
        else:
            limiter.record_start(5000)
            limiter.record_end(5000, 2500)  # a call takes half of the estimate
            started.append(now[0])
    assert 0.9 * 120_000 <= 2500 * len(started) <= 1.05 * 120_000


def test_burst_of_refusals_cuts_once():
    now = [0.0]
    limiter = RateLimiter(clock=lambda: now[0])
    begun = [limiter.record_start(0) for _ in range(PROBE_CALLS)]
    now[0] = 1.0
    for at in begun[8:]:
        limiter.record_refusal(at, 0)
    rate = limiter._adaptive.rate
    assert rate == pytest.approx(0.9 * 15)  # calls not refused at the first refusal
    now[0] = 1.0 + 2 * REFUSAL_BURST_S
    begun = limiter.record_start(0)
    grown = limiter._adaptive.rate
    assert grown > rate  # the first rate is a guess and grows fast
    limiter.record_refusal(begun, 0)
    assert limiter._adaptive.rate == grown / 2  # far too fast: no call was accepted


def test_one_pause_after_the_probe_calls():
    now, started = [0.0], []
    limiter = RateLimiter(clock=lambda: now[0])
    while len(started) < 256:
        if wait := limiter.wait_s():
            now[0] += wait
        else:
            limiter.record_start(0)
            started.append(now[0])
    assert started[PROBE_CALLS] - started[PROBE_CALLS - 1] == pytest.approx(PROBE_PAUSE_S)
    assert started[-1] < 0.6


def test_random_refusals_do_not_lower_the_rate_for_good():
    """At 2% of the calls the server refuses everything for 50 ms, at any rate."""
    rng, now, burst_until, done = random.Random(0), [0.0], 0.0, 0
    limiter = RateLimiter(clock=lambda: now[0])
    while now[0] < 300:
        if wait := limiter.wait_s():
            now[0] += wait
            continue
        begun = limiter.record_start(0)
        burst_until = now[0] + 0.05 if rng.random() < 0.02 else burst_until
        if now[0] < burst_until:
            limiter.record_refusal(begun, 0.05)
        else:
            done += 1
    assert done / 300 > 5


def test_pause_holds_for_all_and_calls_start_in_order():
    async def main():
        limiter, order = RateLimiter(), []

        async def call(number):
            await limiter.acquire(0)
            order.append((number, asyncio.get_running_loop().time()))

        begun = asyncio.get_running_loop().time()
        limiter.pause(0.2)
        await asyncio.gather(*(call(n) for n in range(5)))
        assert [number for number, _ in order] == list(range(5))
        assert all(at >= begun + 0.19 for _, at in order)

    asyncio.run(main())
