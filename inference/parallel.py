"""Calls in parallel."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from utils.errors import UserError


async def for_each(items: Iterable, work: Callable[..., Awaitable[None]], concurrency: int) -> None:
    """Run `await work(item)` for every item, in order, at most `concurrency` at a time.

    Items are taken from the iterable only when a worker is free. The first exception cancels the other workers and
    is raised.
    """
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except* UserError as errors:
        raise errors.exceptions[0] from None
