import asyncio
import heapq
import random

import pytest

from inference.rate_limiter import BURST_S, FIRST_LOOK, FIRST_LOOK_S, RateLimiter


class Simulation:
    """Calls through a Pace to a server with a token bucket, in simulated time: what is let through
    takes `latency`, what is refused comes back at once."""

    def __init__(self, rate=10.0, burst=1.0, latency=1.0, names_wait=False, concurrency=256, **limits):
        self.now, self.rate, self.level, self.filled_at = 0.0, rate, burst, 0.0
        self.burst, self.latency, self.names_wait = burst, latency, names_wait
        self.pace = RateLimiter(**limits, clock=lambda: self.now)
        self.free = concurrency
        self.done: list[float] = []
        self.refused: list[float] = []

    def run(self, seconds):
        ends = []
        while self.now < seconds:
            while ends and ends[0] <= self.now:
                heapq.heappop(ends)
                self.pace.end(0, 0)
                self.done.append(self.now)
                self.free += 1
            wait = self.pace.wait_s() if self.free else 1e9
            if wait == 0:
                self.start(ends)
            else:
                self.now = min([self.now + wait, *ends[:1]])
        return self

    def start(self, ends):
        begun = self.pace.begin(0)
        self.level = min(self.burst, self.level + (self.now - self.filled_at) * self.rate)
        self.filled_at = self.now
        if self.level >= 1:
            self.level -= 1
            self.free -= 1
            heapq.heappush(ends, self.now + self.latency)
        else:
            self.refused.append(self.now)
            self.pace.refuse(begun, (1 - self.level) / self.rate if self.names_wait else 0)
            self.pace.end(0, 0)


@pytest.mark.parametrize("rate", [1.0, 10.0, 83.0])
@pytest.mark.parametrize("latency", [1.0, 20.0])
@pytest.mark.parametrize("burst", [1.0, 10.0])
@pytest.mark.parametrize("names_wait", [True, False])
def test_a_hidden_limit_is_found_and_kept(rate, latency, burst, names_wait):
    """At least 90% of what is allowed and at most 3% refused, once a first minute is over."""
    simulation = Simulation(rate, burst, latency, names_wait, concurrency=4000).run(400)
    done = [at for at in simulation.done if 60 + latency <= at < 360]
    refused = [at for at in simulation.refused if 60 <= at < 360]
    assert len(done) >= 0.9 * rate * (300 - latency)
    assert len(refused) <= 0.03 * len(done) + 1


def test_a_known_limit_is_never_passed():
    simulation = Simulation(10.0, 1.0, 1.0, requests_per_minute=600).run(300)
    assert not simulation.refused
    assert len(simulation.done) >= 0.95 * 10 * 299


def test_tokens_a_minute():
    now = [0.0]
    pace = RateLimiter(tokens_per_minute=60_000, clock=lambda: now[0])
    started = []
    while now[0] < 120:
        if wait := pace.wait_s():
            now[0] += wait
        else:
            pace.begin(5000)
            pace.end(5000, 2500)  # a call takes half of what was thought
            started.append(now[0])
    assert 0.9 * 120_000 <= 2500 * len(started) <= 1.05 * 120_000


def test_a_burst_of_refusals_cuts_once():
    now = [0.0]
    pace = RateLimiter(clock=lambda: now[0])
    begun = [pace.begin(0) for _ in range(FIRST_LOOK)]
    now[0] = 1.0
    for at in begun[8:]:
        pace.refuse(at, 0)
    rate = pace._learnt.rate
    assert rate == pytest.approx(0.9 * 15)  # those not refused when the first refusal came
    now[0] = 1.0 + 2 * BURST_S
    begun = pace.begin(0)
    grown = pace._learnt.rate
    assert grown > rate  # the first rate is a guess, and grows fast
    pace.refuse(begun, 0)
    assert pace._learnt.rate == grown / 2  # too fast by far: nothing got through


def test_after_the_first_calls_there_is_a_look_and_then_all_go():
    now, started = [0.0], []
    pace = RateLimiter(clock=lambda: now[0])
    while len(started) < 256:
        if wait := pace.wait_s():
            now[0] += wait
        else:
            pace.begin(0)
            started.append(now[0])
    assert started[FIRST_LOOK] - started[FIRST_LOOK - 1] == pytest.approx(FIRST_LOOK_S)
    assert started[-1] < 0.6


def test_refusals_at_random_do_not_bring_the_rate_down_for_good():
    """At two calls of a hundred a server refuses everything for 50 ms, whatever the rate is."""
    rng, now, burst_until, done = random.Random(0), [0.0], 0.0, 0
    pace = RateLimiter(clock=lambda: now[0])
    while now[0] < 300:
        if wait := pace.wait_s():
            now[0] += wait
            continue
        begun = pace.begin(0)
        burst_until = now[0] + 0.05 if rng.random() < 0.02 else burst_until
        if now[0] < burst_until:
            pace.refuse(begun, 0.05)
        else:
            done += 1
    assert done / 300 > 5


def test_a_pause_holds_for_all_and_calls_start_in_order():
    async def main():
        pace, order = RateLimiter(), []

        async def call(number):
            await pace.start(0)
            order.append((number, asyncio.get_running_loop().time()))

        begun = asyncio.get_running_loop().time()
        pace.pause(0.2)
        await asyncio.gather(*(call(n) for n in range(5)))
        assert [number for number, _ in order] == list(range(5))
        assert all(at >= begun + 0.19 for _, at in order)

    asyncio.run(main())
