"""Writing files so that a reader never meets half of one, and folders that one process at a time writes into.

Without torch: what reads and writes text starts at once.
"""

import atexit
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hybridgen.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    import torch


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends and removed if the block fails.

    A process killed at any moment leaves the old file or the new one. Raises InputError, naming the file, where it
    cannot be written: a missing permission, a full disk.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def printable(path: str | Path) -> str:
    """A path for text that is printed or written: its bytes that are not UTF-8 are told as `\\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")


LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of what killed processes leave of files that they wrote aside."""

LOCK = ".lock"
"""The file that tells who writes into a folder."""


def is_vacant(folder: Path) -> bool:
    """Whether a folder is not there or holds nothing but such leftovers and a lock."""
    try:
        return not folder.exists() or all(
            path.name == LOCK or LEFTOVER.fullmatch(path.name) for path in folder.iterdir()
        )
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove them, at any depth. Nothing may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


_held: dict[Path, int] = {}
"""The folders that this process holds, and the open files of their locks."""


def hold(folder: Path) -> None:
    """Hold a folder for this process alone, until `release` or the end of the process, however it ends.

    InputError, naming who, while another process holds it. A process that holds it already goes on to do so; its
    children never do. Where there is nothing to lock with (Windows, some network file systems), nobody is kept out.
    """
    path = folder.resolve() / LOCK
    if fcntl is None or path.parent in _held:
        return
    with writing(path):
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(file, path):  # removed by who held it before, after it was opened here
                    os.close(file)
                    continue
            except (BlockingIOError, PermissionError):
                holder = os.pread(file, 500, 0).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise InputError(f"out: {folder} is in use by {holder}; wait for its end, or end it") from None
            except OSError:
                os.close(file)
                return
            break
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        _held[path.parent] = file


def release(folder: Path) -> None:
    """Hold it no longer."""
    folder = folder.resolve()
    if (file := _held.pop(folder, None)) is not None:
        with suppress(OSError):
            if _is_at(file, folder / LOCK):
                (folder / LOCK).unlink()
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _release_all() -> None:
    for folder in list(_held):
        release(folder)


def _let_go() -> None:
    """In a process that was forked: an open file, and so its lock, would live on in it after its parent's death."""
    for file in _held.values():
        os.close(file)
    _held.clear()


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the system says against writing in this block becomes an InputError that names the file."""
    try:
        yield
    except FileExistsError as error:  # so `mkdir` calls a file in the place of the folder
        raise InputError(f"{path}: cannot be written: {Path(path).parent} is not a folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:  # torch.save's zip writer fails once more over what the system said
        said = error.__context__
        reason = said.strerror if isinstance(said, OSError) else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written: {reason}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file or nothing."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_picture(path: str | Path, image: "torch.Tensor") -> None:
    """Write a whole PNG of an image `[3, height, width]` in [0, 1] or nothing."""
    with written_aside(path) as aside:
        aside.write_bytes(png(image))


def png(image: "torch.Tensor") -> bytes:
    """An image `[3, height, width]`, uint8 or in [0, 1], as a PNG file, in the pixels of torchvision's `save_image`."""
    from PIL import Image

    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = pixels.mul(255).add(0.5).clamp(0, 255).byte()
    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return file.getvalue()
