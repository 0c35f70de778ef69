"""Writing files so that a reader never meets half of one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torchvision.utils import save_image

from hybridgen.types import InputError


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


LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of what killed processes leave of files that they wrote aside."""


def is_vacant(folder: Path) -> bool:
    """Whether a folder is not there or holds nothing but such leftovers."""
    return not folder.exists() or all(LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def remove_leftovers(folder: Path) -> None:
    """Remove them, at any depth. Nothing may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


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


def save_picture(path: str | Path, image: Float[Tensor, "3 height width"]) -> None:
    """Write a whole PNG of an image in [0, 1] or nothing."""
    with written_aside(path) as aside:
        save_image(image, aside, format="png")
