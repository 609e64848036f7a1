import asyncio
from collections import Counter
from dataclasses import dataclass

from data.generation.call_queue import CACHE_LIFE_S, ROUND, CallQueue


@dataclass(frozen=True)
class Asked:
    id: str
    uid: str
    kind: int  # -1: it lists


def make(documents=3, sizes=(120, 200), lists=True, now=lambda: 0.0):
    uids = [f"d{n}" for n in range(documents)]
    return CallQueue(
        uids,
        lambda uid: Asked(f"{uid}/list", uid, -1) if lists else None,
        lambda uid, kind: (Asked(f"{uid}/{kind}/{n}", uid, kind) for n in range(sizes[kind])),
        len(sizes),
        clock=now,
    )


def drain(queue, ends_late=()):
    """All requests in the order in which one worker gets them; those of `ends_late` never end."""

    async def main():
        found = []
        while True:
            try:
                request = await asyncio.wait_for(queue.next(), 0.05)
            except TimeoutError:
                return found
            if request is None:
                return found
            found.append(request)
            if request.id not in ends_late:
                queue.call_ended(request, request.uid)

    return asyncio.run(main())


def test_everything_is_asked_once():
    found = drain(make())
    assert len({request.id for request in found}) == len(found) == 3 * 321


def test_lists_first_then_rounds_kind_by_kind():
    found = drain(make())
    assert [request.kind for request in found] == [-1] * 3 + [0] * 360 + [1] * 600
    runs = [found[3 + i : 3 + i + ROUND] for i in range(0, 6 * ROUND, ROUND)]
    assert [{request.uid for request in run} for run in runs] == [{"d0"}, {"d1"}, {"d2"}] * 2


def test_no_document_is_a_round_ahead_of_another():
    counts = Counter()
    for request in drain(make()):
        if request.kind == 1:
            counts[request.uid] += 1
            assert max(counts.values()) - min(counts[f"d{n}"] for n in range(3)) <= ROUND


def test_a_later_kind_waits_for_every_list():
    found = drain(make(), ends_late={"d1/list"})
    assert {request.kind for request in found} == {-1, 0}
    assert Counter(request.uid for request in found) == {"d0": 121, "d2": 121, "d1": 1}


def test_a_cold_document_begins_with_one_call_alone():
    queue = make(documents=1, lists=False)
    (first,) = drain(queue, ends_late={"d0/0/0"})
    queue.call_ended(first, "d0")
    assert len(drain(queue)) == 319


def test_a_warm_document_does_not_and_one_that_has_cooled_does():
    now = [0.0]
    queue = make(documents=1, sizes=(2 * ROUND,), now=lambda: now[0])

    async def take(count):
        return [await queue.next() for _ in range(count)]

    (listing,) = asyncio.run(take(1))
    queue.call_ended(listing, "d0")
    for request in asyncio.run(take(ROUND)):  # all at once: the call that listed was the first
        queue.call_ended(request, "d0")
    now[0] += CACHE_LIFE_S + 1
    assert len(drain(queue, ends_late={f"d0/0/{ROUND}"})) == 1


def test_a_list_that_does_not_come_leaves_its_document_out():
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
