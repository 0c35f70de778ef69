"""Pictures that a run drew over its training."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridgen.data.sources import one_line
from hybridgen.types import InputError

PICTURE = "grid.png"
"""Of hybrids, as last drawn, in the folder of a run or of a comparison."""

Pictures = list[tuple[int | None, bytes]]
"""PNG files by the steps of training at which they were drawn; None where that is not known."""


def read_png(folder: Path) -> Pictures:
    """The picture that a folder holds, if it does. InputError where it is no PNG file or cannot be read."""
    path = folder / PICTURE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.startswith(b"\x89PNG\r\n"):
        raise InputError(f"{path}: no PNG file")
    return [(None, content)]


def pictures_of(run: Path, *, most: int) -> Pictures:
    """Those of hybrids, as a run's TensorBoard folder has them: the last, the first, and evenly between them, so many
    at most; its `grid.png` alone where that folder has none. Empty for a run without a picture. InputError, naming the
    file, for what cannot be read."""
    last = read_png(run)
    if not last:
        return []
    tag, drawn = Path(PICTURE).stem, {}
    files = (run / "tensorboard").rglob("events.out.tfevents.*")
    for file in sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)]):
        for event in _events(file):
            if event.HasField("session_log"):  # a run that is continued does these steps again
                drawn = {step: png for step, png in drawn.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == tag and value.HasField("image"):
                    drawn[event.step] = value.image.encoded_image_string
    if not drawn:
        return last
    steps = sorted(drawn)
    count, end = min(most, len(steps)), len(steps) - 1
    chosen = {end - round(place * end / max(1, count - 1)) for place in range(count)}
    return [(steps[place], drawn[steps[place]]) for place in sorted(chosen)]


def _events(file: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # which takes its time

    try:
        yield from LegacyEventFileLoader(str(file)).Load()
    except Exception as error:  # a damaged file raises what its reader happens to raise
        raise InputError(f"{file}: not readable records ({one_line(error)})") from error
