"""Progress of a step: bars of counted work, and a clock for work that cannot be counted."""

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from utils.device import is_main_process

LOG_INTERVAL_S = 60.0  # between two lines of progress, where stderr is not a terminal
BAR_INTERVAL_S = 0.5
FIRST_TICK_S = 0.2
TICK_S = 1.0
UNITS = (("", 1), ("k", 1e3), ("M", 1e6), ("B", 1e9))


class Bar(tqdm):
    """A bar on a terminal that is drawn every second, also while nothing is counted; work that takes less than
    FIRST_TICK_S shows none. `waits_for` may return what the work waits for, which then stands first on the line."""

    def __init__(self, *arguments, **settings):
        self.waits_for: Callable[[], str] = lambda: ""
        self._closed, self._text = threading.Event(), settings.get("desc", "")
        super().__init__(*arguments, delay=FIRST_TICK_S, **settings)
        if not self.disable:
            threading.Thread(target=_tick, args=(weakref.ref(self), self._closed), daemon=True).start()

    def tick(self) -> None:
        waiting = self.waits_for()
        self.desc = f"{waiting}: " if waiting else self._text
        self.delay = 0  # it has been drawn, and is erased or finished at the end
        self.refresh()

    def close(self) -> None:
        self._closed.set()
        super().close()


def _tick(bar: "weakref.ref[Bar]", closed: threading.Event) -> None:
    wait = FIRST_TICK_S
    while not closed.wait(wait):
        wait = TICK_S
        if (drawn := bar()) is None:  # its loop was left by an exception
            return
        drawn.tick()
        del drawn


def progress_bar(desc: str = "", **settings: object) -> tqdm:
    """A bar on a terminal, one line a minute elsewhere, nothing on other ranks. Settings are tqdm's (total, unit, …)."""
    desc = f"{desc}: " if desc else ""
    settings = {"disable": not is_main_process()} | settings
    if sys.stderr.isatty():
        return Bar(desc=desc, **{"dynamic_ncols": True, "mininterval": BAR_INTERVAL_S, "leave": False} | settings)
    count = "{n_fmt} of {total_fmt} {unit}s, {remaining} left" if settings.get("total") else "{n_fmt} {unit}s"
    line = f"{{desc}}{count}, {{rate_fmt}}{{postfix}}\n"
    every = {"mininterval": LOG_INTERVAL_S, "maxinterval": LOG_INTERVAL_S, "delay": LOG_INTERVAL_S}
    return tqdm(desc=desc, **{"bar_format": line} | every | settings | {"leave": False})


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal what is done and for how long, while it is done."""
    shown = {"bar_format": "{desc}{elapsed}"} if sys.stderr.isatty() else {}
    with progress_bar(what, **shown):
        yield


def counted(batches: Iterable, desc: str, size: Callable[[object], int], **settings: object) -> Iterator:
    """Yield the batches, and count what `size` says of each on a bar."""
    with progress_bar(desc, unit_scale=True, **settings) as bar:
        for batch in batches:
            yield batch
            bar.update(size(batch))


def short_count(number: float) -> str:
    """`950`, `12.3k`, `4.57M`: three digits."""
    unit, size = next(((unit, size) for unit, size in UNITS if number < 999.5 * size), UNITS[-1])
    value = number / size
    digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"
