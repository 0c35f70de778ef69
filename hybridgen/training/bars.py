"""Progress bars that tell the time in long steps, too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TypeVar

from accelerate import Accelerator
from tqdm import tqdm

T = TypeVar("T")

EVERY = 3.0
"""Seconds between two drawings of a bar at most."""


@contextmanager
def alive(bar: tqdm) -> Iterator[None]:
    """In this block a bar is drawn again and again, whether it goes on or not."""
    ended = Event()

    def redraw() -> None:
        while not ended.wait(EVERY):
            bar.refresh()

    thread = Thread(target=redraw, name="bar", daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def counted(items: Sequence[T], what: str, accelerator: Accelerator, **how: Any) -> Iterator[T]:
    """The items one by one, beside a bar of the first process that goes when they end; `how` is tqdm's."""
    bar = tqdm(items, what, leave=False, disable=not accelerator.is_main_process, **how)
    with alive(bar):
        yield from bar
