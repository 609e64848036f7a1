import asyncio
from collections import Counter
from dataclasses import dataclass

from data.generation.call_queue import CACHE_LIFE_S, ROUND, CallQueue


@dataclass(frozen=True)
class Asked:
    id: str
    uid: str
    kind: int  # -1: a list request


def make(documents=3, sizes=(120, 200), lists=True, now=lambda: 0.0):
    uids = [f"d{n}" for n in range(documents)]
    return CallQueue(
        uids,
        lambda uid: Asked(f"{uid}/list", uid, -1) if lists else None,
        lambda uid, kind: (Asked(f"{uid}/{kind}/{n}", uid, kind) for n in range(sizes[kind])),
        len(sizes),
        clock=now,
    )


def drain(queue, unended=()):
    """All requests in the order of a single worker; the calls of `unended` never end."""

    async def main():
        handed_out = []
        while True:
            try:
                request = await asyncio.wait_for(queue.next(), 0.05)
            except TimeoutError:
                return handed_out
            if request is None:
                return handed_out
            handed_out.append(request)
            if request.id not in unended:
                queue.call_ended(request, request.uid)

    return asyncio.run(main())


def test_every_request_comes_once():
    handed_out = drain(make())
    assert len({request.id for request in handed_out}) == len(handed_out) == 3 * 321


def test_list_requests_first_then_rounds_kind_by_kind():
    handed_out = drain(make())
    assert [request.kind for request in handed_out] == [-1] * 3 + [0] * 360 + [1] * 600
    runs = [handed_out[3 + i : 3 + i + ROUND] for i in range(0, 6 * ROUND, ROUND)]
    assert [{request.uid for request in run} for run in runs] == [{"d0"}, {"d1"}, {"d2"}] * 2


def test_no_document_is_a_round_ahead_of_another():
    counts = Counter()
    for request in drain(make()):
        if request.kind == 1:
            counts[request.uid] += 1
            assert max(counts.values()) - min(counts[f"d{n}"] for n in range(3)) <= ROUND


def test_a_later_kind_waits_for_every_list():
    handed_out = drain(make(), unended={"d1/list"})
    assert {request.kind for request in handed_out} == {-1, 0}
    assert Counter(request.uid for request in handed_out) == {"d0": 121, "d2": 121, "d1": 1}


def test_an_uncached_document_starts_with_a_single_call():
    queue = make(documents=1, lists=False)
    (first,) = drain(queue, unended={"d0/0/0"})
    queue.call_ended(first, "d0")
    assert len(drain(queue)) == 319


def test_a_single_call_again_after_the_cache_has_expired():
    now = [0.0]
    queue = make(documents=1, sizes=(2 * ROUND,), now=lambda: now[0])

    async def take(count):
        return [await queue.next() for _ in range(count)]

    (listing,) = asyncio.run(take(1))
    queue.call_ended(listing, "d0")
    for request in asyncio.run(take(ROUND)):  # all at once: the list request has cached the prefix
        queue.call_ended(request, "d0")
    now[0] += CACHE_LIFE_S + 1
    assert len(drain(queue, unended={f"d0/0/{ROUND}"})) == 1


def test_a_failed_list_request_leaves_its_document_out():
    queue = make(documents=2)

    async def main():
        first, second = await queue.next(), await queue.next()
        queue.call_ended(first, "d0", success=False)
        queue.call_ended(second, "d1")

    asyncio.run(main())
    assert {request.uid for request in drain(queue)} == {"d1"}


def test_stop():
    async def main():
        queue = make(documents=1)
        await queue.next()
        waiting = asyncio.create_task(queue.next())
        await asyncio.sleep(0)
        queue.stop()
        assert await waiting is None

    asyncio.run(main())
