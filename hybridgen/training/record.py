"""What a run leaves behind: configuration, metrics, curves, pictures, checkpoints, result."""

import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from hybridgen import configuration
from hybridgen.files import is_vacant, remove_leftovers, save_picture, write_text, writing, written_aside
from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.fit import Diverged
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

UNIDENTIFIED = ("out", "resume", "threads", "workers", "data_root", "download", "record_every", "save_every")
"""Fields in which a resumed run may differ from the one that it continues."""


def claim(folder: Path, config: Any, accelerator: Accelerator, *, resume: bool) -> None:
    """Make a run's folder and write the configuration into it, or check that the run there is this one.

    Raises InputError for a folder that holds something and `resume` is off; for one without a run, or with a run of
    another configuration, and `resume` is on; and for one that cannot be written.
    """
    path = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is not a folder")
    if not resume and not is_vacant(folder):
        raise InputError(f"out: {folder} is not empty; --resume continues a run, another --out starts one")
    if resume and not path.exists():
        raise InputError(f"resume: no run in {folder} ({path.name} is missing); start it without --resume")
    if resume:
        then, now = configuration.load(path), identity(config)
        for field in now:
            if then.get(field) != now[field]:
                raise InputError(f"resume: {folder} has {field} = {then.get(field)!r}, this run {now[field]!r}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remove_leftovers(folder)
        configuration.save(replace(config, resume=False) if resume else config, path)
    accelerator.wait_for_everyone()


def identity(config: Any) -> dict[str, Any]:
    """The fields that two halves of one run have in common."""
    return {k: v for k, v in configuration.to_plain(config).items() if k not in UNIDENTIFIED}


class Run:
    """The folder of one training run, as a context around the training loop.

    `step` after every step: records every `record_every` steps (means over the interval) to `metrics.jsonl` and
    TensorBoard, saves a checkpoint every `save_every` steps, and on SIGTERM or Ctrl-C saves one and exits with
    128 + signal. A diverged loss ends the run with the name of the last good checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        accelerator: Accelerator,
        clock: Clock,
        *,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        split_hash: str,
        record_every: int,
        save_every: int,
        local: Mapping[str, nn.Module] | None = None,
        resume: bool = False,
        keep: int = 3,
    ) -> None:
        for field, interval in (("record_every", record_every), ("save_every", save_every)):
            if interval < 1:
                raise InputError(f"{field}: {interval} is below 1")
        self.folder, self.accelerator, self.clock, self.config = folder, accelerator, clock, config
        self.record_every, self.save_every = record_every, save_every
        self._means = Means()
        self.checkpoints = Checkpoints(
            folder / "checkpoints",
            {**modules, "means": self._means},
            optimizers,
            identity(config) | {"split_hash": split_hash},
            local=local,
            process=accelerator.process_index,
            keep=keep,
        )
        self.resume, self.split_hash = resume, split_hash
        self._signal = 0

    def __enter__(self) -> "Run":
        folder, main = self.folder, self.accelerator.is_main_process
        if self.resume and self.checkpoints.paths():
            self.checkpoints.resume(self.clock)
        elif main:
            self.checkpoints.save(self.clock)
        elif self.checkpoints.local:
            self.checkpoints.save_local(self.clock)
        metrics = folder / "metrics.jsonl"
        if main:
            kept = [r for r in read_metrics(folder) if r["step"] <= self.clock.step]
            write_text(metrics, "".join(json.dumps(row) + "\n" for row in kept))
            self._metrics = metrics.open("a", encoding="utf-8")
            self._tensorboard = TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=self.clock.step + 1)
            self._tensorboard.start()
        self._bar = tqdm(
            total=self.clock.steps, initial=self.clock.step, desc=folder.name, unit="step", disable=not main,
            mininterval=1.0, dynamic_ncols=True,
        )  # fmt: skip
        self._began = time.perf_counter()
        self._handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._bar.close()
        if self.accelerator.is_main_process:
            for finish in (self._metrics.close, self._tensorboard.finish, lambda: draw_curves(self.folder)):
                # What ended the run is what the user has to read, not what it brought about
                with suppress(OSError, InputError) if error else writing(self.folder):
                    finish()
        if isinstance(error, Diverged):
            paths = self.checkpoints.paths()
            raise FloatingPointError(f"{error}; the last good checkpoint is {paths[-1]}") from error
        if self._signal and error is None:  # it came after the last step
            sys.exit(128 + self._signal)

    @property
    def seconds(self) -> float:
        """Since this process began to train."""
        return time.perf_counter() - self._began

    def step(self, scalars: Mapping[str, Tensor]) -> None:
        """After every training step."""
        self._means.add(scalars)
        self._bar.update()
        if self.clock.every(self.record_every):
            self.log(**self._means.taken())
        stop = self._agreed_signal()
        if self.clock.every(self.save_every) or stop:
            if self.checkpoints.local:
                if not self.accelerator.is_main_process:
                    self.checkpoints.save_local(self.clock)
                self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                path = self.checkpoints.save(self.clock)
                if stop and not self.clock.done:
                    print(f"\nstopped by signal {stop} after {path}; --resume continues", file=sys.stderr)
            self.accelerator.wait_for_everyone()
            if stop and not self.clock.done:
                sys.exit(128 + stop)

    def log(self, **values: float) -> None:
        """Record values at this step."""
        if self.accelerator.is_main_process:
            row = {"step": self.clock.step, "epoch": round(self.clock.epoch, 4)} | values
            with writing(self.folder / "metrics.jsonl"):
                self._metrics.write(json.dumps(row) + "\n")
                self._metrics.flush()
            with writing(self.folder / "tensorboard"):
                self._tensorboard.log(values, step=self.clock.step)

    def picture(self, name: str, grid: Float[Tensor, "3 height width"]) -> None:
        """Write NAME.png and show it in TensorBoard."""
        if self.accelerator.is_main_process:
            save_picture(self.folder / f"{name}.png", grid)
            images = {name: grid.clamp(0, 1)[None].cpu().numpy()}
            with writing(self.folder / "tensorboard"):
                self._tensorboard.log_images(images, step=self.clock.step, dataformats="NCHW")

    def _interrupt(self, number: int, frame: Any) -> None:
        self._signal = number

    def _agreed_signal(self) -> int:
        """The signal that any process got; several processes ask one another every ten steps."""
        if self.accelerator.num_processes == 1:
            return self._signal
        if self.clock.step % 10:
            return 0
        got = torch.tensor(self._signal, device=self.accelerator.device)
        return int(self.accelerator.gather(got).max())


class Means(nn.Module):
    """Sums of scalars since the last record. A part of checkpoints: a run that is stopped between two records and
    resumed records what one that never stopped would."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """One step's scalars: always the same names."""
        if self._sums:
            torch._foreach_add_(list(self._sums.values()), [scalars[name].double() for name in self._sums])
        else:
            self._sums = {name: scalar.double().clone() for name, scalar in scalars.items()}
        self._count += 1

    def taken(self) -> dict[str, float]:
        """The means, and a new beginning."""
        means = (torch.stack(list(self._sums.values())) / self._count).tolist()
        named = dict(zip(self._sums, means, strict=True))
        self._sums, self._count = {}, 0
        return named

    def get_extra_state(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]


def write_result(folder: Path, accelerator: Accelerator, **values: Any) -> dict[str, Any]:
    """Write `result.json`, the last thing a run does, and return it."""
    if accelerator.is_main_process:
        write_text(folder / "result.json", json.dumps(values, indent=2) + "\n")
    return values


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none yet."""
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`; one that a killed process left unfinished is dropped."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curves(folder: Path) -> None:
    """Draw every recorded term over the steps into `curves.png`: weighted losses are left to TensorBoard."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    names = sorted({name for row in rows for name in row if "/weighted/" not in name} - {"step", "epoch"})
    if not names:
        return
    columns = min(4, len(names))
    figure = Figure(figsize=(4 * columns, 2.4 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat
    for name, axis in zip(names, axes, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) < 30 else None)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes:
        axis.set_visible(False)
    with written_aside(folder / "curves.png") as aside:
        figure.savefig(aside, dpi=110, format="png")
