"""Bad input, and how a process ends: what even `--help` needs, and so without torch."""

import atexit
import gc
import os
import sys
import time
from contextlib import suppress
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: the field or file, what is wrong, what would be right.

    Commands and recipes print it to standard error and exit with code 2.
    """


PATIENCE = 10.0
"""Seconds for which the other processes leave the word to the machine's first."""


CPU = "can't allocate memory: "
"""In torch's word for it on a CPU, which has no class of its own."""


class exit_codes:
    """Context in which an InputError ends the process with one line and exit code 2, a diverged loss and a lack of
    memory with code 1.

    Ctrl-C needs no line (code 130), and neither does a reader of standard output who has gone, as `head` does (code
    141, that of the signal).
    What all processes of a machine meet is told by the first of them, whose end makes the launcher end the others. One
    that is still there after that met it alone, and names itself. Where nothing went wrong a process takes leave of the
    others: threads between them that outlive the interpreter would abort it. And the interpreter does not search for
    garbage in all that torch has made before it goes, which would take it seconds.
    """

    def __enter__(self) -> None:
        atexit.register(gc.freeze)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        broken = isinstance(error, BrokenPipeError)
        if (broken or error is None or isinstance(error, SystemExit)) and _has_no_reader("\n" if broken else ""):
            sys.exit(141)
        if error is None:
            _leave_others()
            return False
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        told = str(error)
        if _lacks_memory(error):
            said = " ".join(told.split())
            told = f"not enough memory: {(said.partition(CPU)[2] or said)[:200] or 'no more is to be had'}"
        elif not isinstance(error, InputError | FloatingPointError):
            return False
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        first = alone or int(os.environ.get("LOCAL_RANK", 0)) == 0
        if not first:
            time.sleep(PATIENCE)
        process = "" if first else f" (process {os.environ.get('RANK', '?')})"
        print(f"error: {told}{process}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _leave_others() -> None:
    """End the group of processes that this one is in, if it is in one."""
    distributed = sys.modules.get("torch.distributed")  # not imported for it: who has not is in none
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _lacks_memory(error: BaseException | None) -> bool:
    """Python's error, and both of torch's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and CPU in str(error))
    )


def _has_no_reader(more: str) -> bool:
    """Whether what was printed last cannot leave, or, where nothing is held back, `more`. If so, standard output is
    given up: the interpreter would try once more at its end, and say so."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    except (OSError, ValueError, AttributeError):  # a full disk, a closed or absent stream: another matter
        return False
    return False
