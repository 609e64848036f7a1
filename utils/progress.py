"""How far a long run is: a bar on a terminal, a line a minute in a log."""

import asyncio
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LINE_EVERY_S = 60.0
BAR_EVERY_S = 0.5


class Progress:
    """Shows `done` of `total`, and `figures()` beside it, on stderr, while the block runs.

    async with Progress("call", lambda: f"${usd:.2f}") as progress:
        progress.total = 100
        progress.done += 1
    """

    def __init__(self, unit: str, figures: Callable[[], str]):
        self.total = self.done = 0
        self._unit, self._figures = unit, figures

    async def __aenter__(self) -> "Progress":
        self._begun = time.monotonic()
        show = self._bar if sys.stderr.isatty() else self._lines
        self._task = asyncio.create_task(show())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _bar(self) -> None:
        with tqdm(unit=self._unit, dynamic_ncols=True, initial=self.done) as bar:
            try:
                while True:
                    self._draw(bar)
                    await asyncio.sleep(BAR_EVERY_S)
            finally:
                self._draw(bar)

    def _draw(self, bar: tqdm) -> None:
        bar.total, bar.n = self.total, self.done
        bar.set_postfix_str(self._figures(), refresh=False)
        bar.refresh()

    async def _lines(self) -> None:
        at_begin = self.done
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            passed = time.monotonic() - self._begun
            rate = (self.done - at_begin) / passed
            left = f"{(self.total - self.done) / rate / 60:.0f} min left" if rate else "no end in sight"
            print(
                f"{self.done:,} of {self.total:,} {self._unit}s · {rate:.1f} {self._unit}s/s · "
                f"{self._figures()} · {left}",
                file=sys.stderr,
                flush=True,
            )
