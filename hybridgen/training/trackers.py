"""Where a run's curves are followed: TensorBoard in its folder, and any other tracker that accelerate knows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from jaxtyping import Float
from torch import Tensor

from hybridgen.files import writing
from hybridgen.settings import flat, plain
from hybridgen.types import InputError

PROJECT = "hybridgen"
"""What other trackers than TensorBoard, which writes into the run's folder, file runs under."""
NAMED = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "clearml": "task_name", "swanlab": "experiment_name"}
"""What those who name the runs of a project call a run's name."""


def check_trackers(names: Sequence[str]) -> None:
    """InputError for a tracker that accelerate does not know, and for one whose package is not installed."""
    available = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"log_with: {name!r} is none of {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name in LoggerType.list() and name not in available:
            raise InputError(f"log_with: {name} needs the package {name}, which is not installed: pip install {name}")


class Trackers:
    """These trackers of one run, begun; the first process's alone.

    They are told the configuration: TensorBoard as a text, once a run, the others as its fields, each time that they
    begin, for which a run that is continued is one more. TensorBoard forgets steps beyond `step`, which are done again.
    InputError, naming the tracker, for one that does not begin or does not take what it is told.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Any, *, step: int) -> None:
        check_trackers(names)
        self.folder = folder
        self._trackers: dict[str, GeneralTracker] = {}
        told = (folder / "tensorboard").exists()
        for name in dict.fromkeys(names):
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            given = (folder,) if kind.requires_logging_directory else ()
            with self._telling(name):
                if name == "tensorboard":
                    tracker = kind(name, *given, purge_step=step + 1)
                else:
                    tracker = kind(PROJECT, *given, **({NAMED[name]: folder.name} if name in NAMED else {}))
                tracker.start()
                if name != "tensorboard":
                    tracker.store_init_configuration(fields_of(config))
                elif not told:
                    text = yaml.safe_dump(plain(config), sort_keys=False)
                    tracker.log({"configuration": "".join(f"    {line}\n" for line in text.splitlines())}, step=0)
            self._trackers[name] = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        for name, tracker in self._trackers.items():
            with self._telling(name):
                tracker.log(dict(values), step=step)

    def show(self, name: str, grid: Float[Tensor, "3 height width"], step: int) -> None:
        """A picture in [0, 1], to those who take pictures."""
        image = grid.detach().clamp(0, 1).mul(255).add(0.5).byte().permute(1, 2, 0).cpu().numpy()
        for kind, tracker in self._trackers.items():
            with self._telling(kind):
                if not hasattr(tracker, "log_images"):
                    continue
                if kind == "tensorboard":
                    tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")
                else:
                    tracker.log_images({name: image if kind == "aim" else [image]}, step=step)

    def finish(self) -> None:
        """Nothing more follows."""
        for name, tracker in self._trackers.items():
            with self._telling(name):
                tracker.finish()

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        if name == "tensorboard":
            with writing(self.folder / name):
                yield
            return
        try:
            yield
        except Exception as error:  # what each of them happens to raise: no key, no network
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"log_with: {name} fails ({reason}); leave it out with --log-with") from error


def fields_of(config: Any) -> dict[str, Any]:
    """The settings' fields under dotted names; lists, which trackers do not take, as text."""
    return {name: str(value) if isinstance(value, list) else value for name, value in flat(plain(config))}
