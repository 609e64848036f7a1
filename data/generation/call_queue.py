"""The order of calls: documents in rounds, or one after the other; and a single call while a document's prompt prefix
is not cached.

Knows documents by their uid and requests by their id, nothing of prompts or replies.
"""

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

ROUND = 50  # consecutive calls about one document; an exhausted budget leaves documents at most one round apart
CACHE_LIFE_S = 240.0  # servers keep an unused prefix for about five minutes


class Round(NamedTuple):
    """Up to ROUND requests for one kind of passage about one document; kind and document are indices."""

    kind: int
    number: int
    document: int


class CallQueue:
    """Hands out requests to workers and is told when their calls end.

    The list requests of all documents come first (`list_request(uid)`, None if the list is known or not
    needed), then passages kind by kind: ROUND requests about one document, ROUND about the next, and again,
    so that all documents have progressed equally when a budget is exhausted. A later kind starts when
    every list is known. A round about a document without a call in the last CACHE_LIFE_S starts with a single
    call; the others follow when it has ended and the server has cached their common prefix.

    `requests(uid, kind)` yields the missing requests; `kinds` is the number of kinds.
    """

    def __init__(
        self,
        uids: list[str],
        list_request: Callable[[str], Any],
        requests: Callable[[str, int], Iterator[Any]],
        kinds: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._uids, self._requests, self._kinds, self._clock = uids, requests, kinds, clock
        self._indices = {uid: index for index, uid in enumerate(uids)}
        self._streams: dict[int, Iterator[Any]] = {}  # remaining requests of a document's current kind
        self._waiting: list[Round] = []  # heap
        self._open: deque[tuple[Round, Iterator[Any]]] = deque()
        self._cold: set[Round] = set()  # rounds that start with a single call
        self._suspended: dict[str, tuple[Round, Iterator[Any]]] = {}  # by the id of that single call
        self._last_call_s: dict[int, float] = {}  # by document
        self._list_requests: deque[Any] = deque()
        self._listing: set[str] = set()  # ids of list requests in flight
        self._changed = asyncio.Event()
        self._stopped = False
        for index, uid in enumerate(uids):
            if request := list_request(uid):
                self._list_requests.append(request)
            else:
                self._start_kind(index, 0)

    async def next(self) -> Any | None:
        """The next request, after a wait if only calls in flight can make one available; None at the end."""
        while not self._stopped:
            if request := self._next_available():
                return request
            if not (self._listing or self._suspended):
                return None
            self._changed.clear()
            await self._changed.wait()
        return None

    def call_ended(self, request: Any, uid: str, success: bool = True) -> None:
        """Note the end of a call. A document whose list request has no `success` gets no further requests."""
        index = self._indices[uid]
        self._last_call_s[index] = self._clock()
        if request.id in self._listing:
            self._listing.remove(request.id)
            if success:
                self._start_kind(index, 0)
        elif request.id in self._suspended:
            self._open.append(self._suspended.pop(request.id))
        self._changed.set()

    def stop(self) -> None:
        """Hand out no more requests."""
        self._stopped = True
        self._changed.set()

    def _next_available(self) -> Any | None:
        if self._list_requests:
            request = self._list_requests.popleft()
            self._listing.add(request.id)
            return request
        while self._open or self._open_round():
            current, requests = self._open[0]
            if request := next(requests, None):
                if current in self._cold:
                    self._cold.remove(current)
                    self._suspended[request.id] = self._open.popleft()
                return request
            self._open.popleft()
            heapq.heappush(self._waiting, current._replace(number=current.number + 1))
        return None

    def _open_round(self) -> bool:
        """Open the next round; False if there is none or it has to wait for a list."""
        while self._waiting:
            if self._waiting[0].kind and self._listing:
                return False
            current = heapq.heappop(self._waiting)
            stream = self._streams[current.document]
            if first := next(stream, None):
                self._open.append((current, chain([first], islice(stream, ROUND - 1))))
                if self._clock() - self._last_call_s.get(current.document, float("-inf")) > CACHE_LIFE_S:
                    self._cold.add(current)
                return True
            if current.kind + 1 < self._kinds:
                self._start_kind(current.document, current.kind + 1)
        return False

    def _start_kind(self, document: int, kind: int) -> None:
        self._streams[document] = self._requests(self._uids[document], kind)
        heapq.heappush(self._waiting, Round(kind, 0, document))


class DocumentQueue:
    """As CallQueue, for a server that holds one prompt per slot (llama.cpp): the calls of a document follow each
    other, so that its prefix is computed once.

    A worker gets the next request of an open document without a call in flight, or opens the next document. With as
    many workers as slots, each document stays in its own slot. Only when no document is left do several workers share
    one, after its first call has ended.
    """

    def __init__(
        self,
        uids: list[str],
        list_request: Callable[[str], Any],
        requests: Callable[[str, int], Iterator[Any]],
        kinds: int,
    ):
        self._list_request, self._requests, self._kinds = list_request, requests, kinds
        self._remaining = deque(uids)
        self._open: dict[str, Iterator[Any]] = {}  # remaining requests, in the order in which documents were opened
        self._in_flight: Counter[str] = Counter()  # calls by document
        self._cached: set[str] = set()  # documents of which a call has ended
        self._changed = asyncio.Event()
        self._stopped = False

    async def next(self) -> Any | None:
        """As CallQueue.next."""
        while not self._stopped:
            if request := self._next_available():
                return request
            if not self._open:
                return None
            self._changed.clear()
            await self._changed.wait()
        return None

    def call_ended(self, request: Any, uid: str, success: bool = True) -> None:
        """As CallQueue.call_ended; without a list, `requests` yields none."""
        self._in_flight[uid] -= 1
        self._cached.add(uid)
        self._changed.set()

    def stop(self) -> None:
        """Hand out no more requests."""
        self._stopped = True
        self._changed.set()

    def _next_available(self) -> Any | None:
        idle = [uid for uid in self._open if not self._in_flight[uid]]
        shared = sorted(self._open.keys() & self._cached, key=lambda uid: (self._in_flight[uid], uid))
        for uid in chain(idle, self._newly_opened(), shared):
            if uid in self._open and (request := next(self._open[uid], None)):
                self._in_flight[uid] += 1
                return request
            self._open.pop(uid, None)
        return None

    def _newly_opened(self) -> Iterator[str]:
        """Open documents, one by one."""
        while self._remaining:
            uid = self._remaining.popleft()
            self._open[uid] = self._stream(uid)
            yield uid

    def _stream(self, uid: str) -> Iterator[Any]:
        """The list request, then passages kind by kind. Since the first call ends before another begins, the list is
        known when passages are asked for."""
        if request := self._list_request(uid):
            yield request
        for kind in range(self._kinds):
            yield from self._requests(uid, kind)
