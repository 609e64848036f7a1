import asyncio
from collections import Counter
from dataclasses import dataclass

from data.generation.call_queue import CACHE_LIFE_S, ROUND, CallQueue, DocumentQueue


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


def make_by_document(documents=3, sizes=(4, 2), lists=True):
    """A DocumentQueue whose passages exist once the document's list is known, and the set of known lists."""
    known = set()
    queue = DocumentQueue(
        [f"d{n}" for n in range(documents)],
        lambda uid: Asked(f"{uid}/list", uid, -1) if lists else None,
        lambda uid, kind: (Asked(f"{uid}/{kind}/{n}", uid, kind) for n in range(sizes[kind] if uid in known else 0)),
        len(sizes),
    )
    known |= set() if lists else {f"d{n}" for n in range(documents)}
    return queue, known


def work(queue, known, workers, failing=()):
    """Requests in the order in which workers got them. The calls in flight end in turn, each list then known."""
    handed_out, in_flight = [], []

    async def main():
        waiting = [asyncio.create_task(queue.next()) for _ in range(workers)]
        while waiting or in_flight:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                if request := task.result():
                    handed_out.append(request)
                    in_flight.append(request)
            if in_flight:
                ended = in_flight.pop(0)
                success = ended.id not in failing
                known.update({ended.uid} if ended.kind == -1 and success else ())
                queue.call_ended(ended, ended.uid, success)
                waiting.append(asyncio.create_task(queue.next()))

    asyncio.run(asyncio.wait_for(main(), 5))
    return handed_out


def test_by_document_one_worker_finishes_a_document_before_the_next():
    handed_out = work(*make_by_document(), workers=1)
    assert [request.id for request in handed_out] == [
        f"d{document}/{call}" for document in range(3) for call in ("list", "0/0", "0/1", "0/2", "0/3", "1/0", "1/1")
    ]


def test_by_document_each_worker_has_its_own_document():
    handed_out = work(*make_by_document(documents=4), workers=2)
    assert len({request.id for request in handed_out}) == len(handed_out) == 4 * 7
    assert [request.uid for request in handed_out] == ["d0", "d1"] * 7 + ["d2", "d3"] * 7


def test_by_document_the_last_document_is_shared_after_its_first_call():
    async def main():
        queue, known = make_by_document(documents=1)
        first = await queue.next()
        waiting = [asyncio.create_task(queue.next()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)  # the prefix is not cached, and the list not known
        known.add("d0")
        queue.call_ended(first, "d0")
        return [(await task).id for task in waiting]

    assert asyncio.run(main()) == ["d0/0/0", "d0/0/1"]


def test_by_document_two_last_documents_are_shared_equally():
    async def main():
        queue, _ = make_by_document(documents=2, lists=False, sizes=(9, 9))
        first, second = await queue.next(), await queue.next()
        queue.call_ended(first, "d0")
        queue.call_ended(second, "d1")
        return Counter([(await queue.next()).uid for _ in range(4)])

    assert asyncio.run(main()) == {"d0": 2, "d1": 2}


def test_by_document_a_failed_list_leaves_its_document_out():
    handed_out = work(*make_by_document(), workers=2, failing={"d1/list"})
    assert Counter(request.uid for request in handed_out) == {"d0": 7, "d1": 1, "d2": 7}


def test_by_document_documents_without_requests_end_the_run():
    queue, _ = make_by_document(documents=2, sizes=(0, 0), lists=False)
    assert asyncio.run(queue.next()) is None


def test_by_document_stop():
    async def main():
        queue, _ = make_by_document(documents=1)
        await queue.next()
        waiting = asyncio.create_task(queue.next())
        await asyncio.sleep(0)
        queue.stop()
        assert await waiting is None

    asyncio.run(main())
