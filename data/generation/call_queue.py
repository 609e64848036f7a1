"""Which call comes next: documents in turn, in rounds, and one call alone where a cache is cold.

It knows documents by their uid, and requests by their id.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

ROUND = 50  # calls of a document in a row; a budget that ends leaves documents no further apart
CACHE_LIFE_S = 240.0  # servers keep an unused prefix for five minutes or so


class CallQueue:
    """Gives requests to workers and hears how they ended.

    First the call that lists (`list_request(uid)`, None where the list is known or none is needed),
    of every document; then passages, kind by kind: ROUND requests of one document, ROUND of the next,
    and again, so that all documents are equally far when a budget ends. A later kind begins when
    every list is there. A round of a document that was not asked about in the last CACHE_LIFE_S
    begins with one call alone: when it has ended, the server knows the prefix that the others share.

    `requests(uid, kind)` gives what is missing; `kinds` is their number.
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
        self._ready: list[tuple[int, int, int]] = []  # heap of kind, round, document
        self._streams: dict[int, Iterator[Any]] = {}  # by document: what is left of its kind
        self._rounds: deque[tuple[tuple[int, int, int], Iterator[Any]]] = deque()  # begun
        self._alone: dict[str, tuple[tuple[int, int, int], Iterator[Any]]] = {}  # by request id
        self._cold: set[tuple[int, int, int]] = set()  # rounds whose first call goes alone
        self._used_at: dict[int, float] = {}
        self._number = {uid: number for number, uid in enumerate(uids)}
        self._to_list: deque[Any] = deque()
        self._listing: set[str] = set()  # request ids
        self._changed = asyncio.Event()
        self._stopped = False
        for number, uid in enumerate(uids):
            request = list_request(uid)
            if request:
                self._to_list.append(request)
            else:
                self._begin(number, 0)

    async def next(self) -> Any | None:
        """The next request, waiting for one where calls under way may make some possible; None
        where there is none to come."""
        while not self._stopped:
            if request := self._take():
                return request
            if not (self._listing or self._alone):
                return None
            self._changed.clear()
            await self._changed.wait()
        return None

    def ended(self, request: Any, uid: str, goes_on: bool = True) -> None:
        """A call has ended; after one that lists, `goes_on` says whether there is a list."""
        number = self._number[uid]
        self._used_at[number] = self._clock()
        if request.id in self._listing:
            self._listing.remove(request.id)
            if goes_on:
                self._begin(number, 0)
        elif request.id in self._alone:
            self._rounds.append(self._alone.pop(request.id))
        self._changed.set()

    def stop(self) -> None:
        """Give out no more."""
        self._stopped = True
        self._changed.set()

    def _take(self) -> Any | None:
        if self._to_list:
            request = self._to_list.popleft()
            self._listing.add(request.id)
            return request
        while self._rounds or self._open_round():
            key, requests = self._rounds[0]
            if request := next(requests, None):
                if key in self._cold:
                    self._cold.remove(key)
                    self._alone[request.id] = self._rounds.popleft()
                return request
            self._rounds.popleft()
            kind, number_of_round, document = key
            heapq.heappush(self._ready, (kind, number_of_round + 1, document))
        return None

    def _open_round(self) -> bool:
        """Put the next round into `_rounds`; whether there was one."""
        while self._ready:
            kind, number_of_round, document = self._ready[0]
            if kind and self._listing:
                return False
            heapq.heappop(self._ready)
            first = next(self._streams[document], None)
            if first:
                rest = islice(self._streams[document], ROUND - 1)
                key = (kind, number_of_round, document)
                self._rounds.append((key, chain([first], rest)))
                used_at = self._used_at.get(document)
                if used_at is None or self._clock() - used_at > CACHE_LIFE_S:
                    self._cold.add(key)
                return True
            if kind + 1 < self._kinds:
                self._begin(document, kind + 1)
        return False

    def _begin(self, document: int, kind: int) -> None:
        self._streams[document] = self._requests(self._uids[document], kind)
        heapq.heappush(self._ready, (kind, 0, document))
