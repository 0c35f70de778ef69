"""Bars are drawn in long steps, and by the first process alone."""

import gc
import io
import threading
import time
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from hybridgen.training import bars


def threads() -> int:
    """tqdm has one of its own."""
    return sum(thread.name == "bar" for thread in threading.enumerate())


def drawn(text: io.StringIO) -> list[str]:
    return [line for line in text.getvalue().split("\r") if "step" in line]


def test_a_bar_is_drawn_while_nothing_happens(monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.02)
    text = io.StringIO()
    bar = tqdm(total=3, desc="step", file=text, mininterval=0)
    with bars.alive(bar):
        before = len(drawn(text))
        time.sleep(0.3)
        assert len(drawn(text)) >= before + 3
    assert threads() == 0
    after = len(drawn(text))
    time.sleep(0.1)
    assert len(drawn(text)) == after


def test_a_bar_that_is_off_has_no_thread():
    with bars.alive(tqdm(total=3, disable=True)):
        assert threads() == 0


@pytest.mark.parametrize("main", [True, False])
def test_counted_items_are_all_there_beside_a_bar_of_the_first_process(main, capsys, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.02)
    seen = []
    for item in bars.counted([3, 1, 2], "steps", SimpleNamespace(is_main_process=main)):
        seen.append(item)
        assert threads() == main
        time.sleep(0.05)
    assert seen == [3, 1, 2] and threads() == 0
    assert ("2/3" in (said := capsys.readouterr().err)) is main and ("steps" in said) is main


def test_an_error_ends_the_bar():
    with pytest.raises(ZeroDivisionError):
        for item in bars.counted([0], "steps", SimpleNamespace(is_main_process=True)):
            print(1 // item)
    gc.collect()
    assert threads() == 0
