"""What a run leaves behind: configuration, metrics, curves, pictures, checkpoints, result."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from hybridgen import configuration
from hybridgen.files import (
    hold,
    is_vacant,
    release,
    remove_leftovers,
    save_picture,
    write_text,
    writing,
    written_aside,
)
from hybridgen.settings import plain
from hybridgen.training.bars import alive
from hybridgen.training.checkpoint import Checkpoints, differences
from hybridgen.training.context import RunSettings
from hybridgen.training.engine import now, peak_memory, precision_of, taken_precision
from hybridgen.training.fit import Diverged
from hybridgen.training.schedules import Clock
from hybridgen.training.trackers import Trackers
from hybridgen.types import InputError, exact

T = TypeVar("T")

LONGEST = 600.0
"""Seconds that a run goes on without a checkpoint, but for the step that it is in."""

UNIDENTIFIED = ("out", "resume", "threads", "workers", "data_root", "download", "record_every", "save_every",
                "log_with")  # fmt: skip
"""Fields in which a resumed run may differ from the one that it continues."""


def claim(
    folder: Path,
    config: Any,
    accelerator: Accelerator,
    *,
    resume: bool,
    fresh_ok: bool = False,
    chosen: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make a run's folder and write the configuration into it, with what was `chosen` where it leaves something open,
    or check that the run there is this one; hold it.

    With `resume`, a folder that was made and holds nothing yet, as a process killed at its beginning leaves it, is
    begun anew; so is one that is not there, if `fresh_ok` (a part of a larger run, which may not have been reached).

    Raises InputError for a folder that holds something and `resume` is off; for one that is not there, holds something
    else or a run of another configuration, and `resume` is on; for one that another process writes into; and for one
    that cannot be written. The first process does all this, and all raise what it meets. It says what precision was
    taken where that was left open, of a part of a larger run no more.
    """
    taken = with_precision(config, accelerator)
    by_first(accelerator, lambda: _claim(folder, taken, chosen, resume=resume, fresh_ok=fresh_ok))
    if taken != config and not fresh_ok:
        accelerator.print(f"precision: {taken.precision}, for {taken_precision('auto').why}")


def _claim(folder: Path, config: Any, chosen: Mapping[str, Any], *, resume: bool, fresh_ok: bool) -> None:
    path = folder / "config.yaml"

    def check() -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out: {folder} is not a folder")
        if resume and not fresh_ok and not folder.exists():
            raise InputError(f"resume: no run in {folder} ({path.name} is missing); start it without --resume")
        if is_vacant(folder):
            return
        if not resume:
            raise InputError(f"out: {folder} is not empty; --resume continues a run, another --out starts one")
        if not path.exists():
            raise InputError(
                f"resume: no run in {folder} ({path.name} is missing), which holds something else; give another --out"
            )
        then = {name: value for name, value in configuration.load(path).items() if name not in UNIDENTIFIED}
        for field, before, after in differences(then, identity(config)):
            raise InputError(f"resume: {folder} has {field} = {before!r}, this run {after!r}")

    check()
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    try:
        check()  # once more, now that nobody else writes here
        remove_leftovers(folder)
        configuration.save(replace(config, resume=False) if resume else config, path, chosen)
    except BaseException:
        release(folder)
        raise


def by_first(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What the first process finds, on every process: they wait for it. An InputError that it meets, all raise."""
    if accelerator.num_processes == 1:
        return act()
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = act()
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise InputError(found[1])
    return found[0]


def with_precision(config: Any, accelerator: Accelerator) -> Any:
    """The settings of a run with the precision that its accelerator took; others as they are."""
    return replace(config, precision=precision_of(accelerator)) if isinstance(config, RunSettings) else config


def identity(config: Any) -> dict[str, Any]:
    """The fields that two halves of one run have in common."""
    return {k: v for k, v in plain(config).items() if k not in UNIDENTIFIED}


_running: set[Path] = set()
"""Folders whose run is going on in this process."""


class Run:
    """The folder of one training run, as a context around the training loop.

    `step` after every step: records every `record_every` steps (means over the interval) to `metrics.jsonl` and the
    trackers `log_with`, these also what the process does (`measured`), saves a checkpoint every `save_every` steps, ten
    minutes after the last one at the latest, and on SIGTERM or Ctrl-C, upon which it exits with 128 + signal. A
    diverged loss ends the run with the name of the last good checkpoint.

    A run is resumed on its split, by as many processes, and with the networks that it `read`, by their digests.

    The bar is of all runs `among` which this one is, by their folders, and their steps: it goes on where those that are
    finished end. It shows the last recorded loss and validation accuracy.
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
        images_per_step: int,
        log_with: Sequence[str] = ("tensorboard",),
        local: Mapping[str, nn.Module] | None = None,
        resume: bool = False,
        keep: int = 3,
        among: Mapping[Path, int] = MappingProxyType({}),
        read: Mapping[str, str] = MappingProxyType({}),
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
            identity(with_precision(config, accelerator))
            | {"split_hash": split_hash, "processes": accelerator.num_processes}
            | ({"read": dict(read)} if read else {}),
            local=local,
            process=accelerator.process_index,
            keep=keep,
        )
        self.resume, self.split_hash = resume, split_hash
        self.among = {folder: clock.steps} | dict(among)
        self.images_per_step, self.log_with = images_per_step, log_with
        self._signal = 0

    def __enter__(self) -> "Run":
        self._began = time.perf_counter()
        try:
            if by_first(self.accelerator, self._is_begun):
                self.checkpoints.resume(self.clock)
            else:
                self._save()
            self.accelerator.wait_for_everyone()  # before the first one saves or drops what another still reads
            by_first(self.accelerator, self._open_records)
        except BaseException:
            self._let_go()
            raise
        finished = [place for place in self.among if place != self.folder and (place / "result.json").exists()]
        several = f" ({len(finished) + 1} of {len(self.among)})" if len(self.among) > 1 else ""
        self._bar = tqdm(
            total=sum(self.among.values()), initial=sum(self.among[place] for place in finished) + self.clock.step,
            desc=self.folder.name + several, unit="step", disable=not self.accelerator.is_main_process,
            mininterval=1.0, dynamic_ncols=True, leave=len(finished) + 1 == len(self.among),
        )  # fmt: skip
        self._shown: dict[str, str] = {}
        self._alive = alive(self._bar)
        self._alive.__enter__()
        self._saved = time.perf_counter()
        self._since, self._steps = now(self.accelerator.device), 0
        self._handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _is_begun(self) -> bool:
        """Whether there is something to resume: asked once for all, before any of them writes."""
        with writing(self.folder / "checkpoints"):
            self.folder.mkdir(parents=True, exist_ok=True)
        hold(self.folder)
        _running.add(self.folder.resolve())
        for name in ("checkpoints", "tensorboard"):
            if (path := self.folder / name).exists() and not path.is_dir():
                raise InputError(f"{path}: a file, where the run needs a folder; move it away")
        for name in ("metrics.jsonl", "curves.png", "result.json"):
            if (path := self.folder / name).is_dir():
                raise InputError(f"{path}: a folder, where the run needs a file; move it away")
        return self.resume and bool(self.checkpoints.paths())

    def _open_records(self) -> None:
        """Those of steps that are to be done again are dropped."""
        metrics = self.folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.folder) if row["step"] <= self.clock.step]
        write_text(metrics, "".join(json.dumps(row) + "\n" for row in kept))
        with writing(metrics):
            self._metrics = metrics.open("a", encoding="utf-8")
        self._trackers = Trackers(self.log_with, self.folder, self.config, step=self.clock.step)

    def _save(self) -> Path | None:
        """A checkpoint: what each process has of its own, and then the first one's, which makes it whole."""
        main, path = self.accelerator.is_main_process, None
        if self.checkpoints.local:
            if not main:
                self.checkpoints.save_local(self.clock)
            self.accelerator.wait_for_everyone()
        if main:
            path = self.checkpoints.save(self.clock, self.seconds)
        self.accelerator.wait_for_everyone()
        self._saved = time.perf_counter()
        return path

    def _let_go(self) -> None:
        _running.discard(self.folder.resolve())
        release(self.folder)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._alive.__exit__(kind, error, trace)
        self._bar.close()
        try:
            if self.accelerator.is_main_process:
                for finish in (self._metrics.close, self._trackers.finish, lambda: _draw_missing(self.folder)):
                    # What ended the run is what the user has to read, not what it brought about
                    with suppress(OSError, InputError) if error else writing(self.folder):
                        finish()
        finally:
            self._let_go()
        if isinstance(error, Diverged):
            paths = self.checkpoints.paths()
            raise FloatingPointError(f"{error}; the last good checkpoint is {paths[-1]}") from error
        if self._signal and error is None:  # it came after the last step
            sys.exit(128 + self._signal)

    @property
    def seconds(self) -> float:
        """Of training, with those of earlier processes until the checkpoint from which this one went on."""
        return self.checkpoints.seconds + time.perf_counter() - self._began

    def step(self, scalars: Mapping[str, Tensor]) -> None:
        """After every training step."""
        self._means.add(scalars)
        self._bar.update()
        self._steps += 1
        if self.clock.every(self.record_every):
            self.log(**with_accuracy(self._means.taken()))
            if self.accelerator.is_main_process:
                self._trackers.log(self.measured(), self.clock.step)
            self._since, self._steps = now(self.accelerator.device), 0
        stop, due = self._agreed()
        if self.clock.every(self.save_every) or stop or due:
            with self.aside():
                path = self._save()
            if stop and not self.clock.done:
                if path is not None:
                    print(f"\nstopped by signal {stop} after {path}; --resume continues", file=sys.stderr)
                sys.exit(128 + stop)

    def measured(self) -> dict[str, float]:
        """Since the last record: the learning rate of each optimizer in the step just done, and of its groups with
        factors; the images of all processes a second, evaluations and checkpoints aside; the most memory that this
        process has taken so far, in GiB, on its device or, training on a CPU, at all."""
        rates = {
            f"learning_rate/{name}" + (f"/x{group['factor']:g}" if "factor" in group else ""): group["lr"]
            for name, optimizer in self.checkpoints.optimizers.items()
            for group in optimizer.param_groups
        }
        device = self.accelerator.device
        return rates | {
            "speed/images_per_second": self._steps * self.images_per_step / (now(device) - self._since),
            "memory/peak_gib": peak_memory(device) / 2**30,
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens in this block counts as no time of training."""
        began = now(self.accelerator.device)
        yield
        self._since += now(self.accelerator.device) - began

    def log(self, **values: float) -> None:
        """Record values at this step."""
        if self.accelerator.is_main_process:
            if losses := [value for name, value in values.items() if name.endswith("/total")]:
                self._shown["loss"] = f"{losses[0]:.3g}"
            if isfinite(values.get("validation/accuracy", nan)):  # nan: of no image
                self._shown["validation"] = f"{values['validation/accuracy']:.1%}"
            self._bar.set_postfix(self._shown, refresh=False)
            row = {"step": self.clock.step, "epoch": round(self.clock.epoch, 4)} | values
            with writing(self.folder / "metrics.jsonl"):
                self._metrics.write(json.dumps(row) + "\n")
                self._metrics.flush()
            self._trackers.log(values, self.clock.step)

    def picture(self, name: str, grid: Float[Tensor, "3 height width"]) -> None:
        """Write NAME.png and show it in the trackers."""
        if self.accelerator.is_main_process:
            save_picture(self.folder / f"{name}.png", grid)
            self._trackers.show(name, grid, self.clock.step)

    def _interrupt(self, number: int, frame: Any) -> None:
        self._signal = number

    def _agreed(self) -> tuple[int, bool]:
        """The signal that any process got, and whether the last checkpoint is LONGEST ago for any; several processes
        ask one another every ten steps."""
        due = time.perf_counter() - self._saved > LONGEST
        if self.accelerator.num_processes == 1:
            return self._signal, due
        if self.clock.step % 10:
            return 0, False
        own = torch.tensor([[self._signal, due]], device=self.accelerator.device)
        stop, any_due = self.accelerator.gather(own).amax(dim=0).tolist()
        return stop, bool(any_due)


def with_accuracy(means: Mapping[str, float]) -> dict[str, float]:
    """The means, in which each `pseudo_right` and `pseudo_counted` became the accuracy of pseudo-labels, in [0, 1],
    where any of them counted."""
    values = dict(means)
    for name in [name for name in means if name.endswith("/pseudo_right")]:
        task = name.removesuffix("/pseudo_right")
        right, counted = values.pop(name), values.pop(f"{task}/pseudo_counted")
        if counted:
            values[f"{task}/pseudo_label_accuracy"] = right / counted
    return values


class Means(nn.Module):
    """Sums of scalars since the last record. A part of checkpoints: a run that is stopped between two records and
    resumed records what one that never stopped would."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._restored = False

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """One step's scalars: always the same names."""
        if self._restored:
            if missing := self._sums.keys() - scalars.keys():
                raise InputError(f"resume: the checkpoint has means of {', '.join(sorted(missing))}, this run has none")
            self._sums = {name: kept.to(scalars[name].device) for name, kept in self._sums.items()}
            self._restored = False
        if self._sums:
            torch._foreach_add_(list(self._sums.values()), [exact(scalars[name]) for name in self._sums])
        else:
            self._sums = {name: exact(scalar).clone() for name, scalar in scalars.items()}
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
        sums, count = dict(state["sums"]), state["count"]
        scalars = all(isinstance(kept, Tensor) and kept.shape == () for kept in sums.values())
        if not scalars or type(count) is not int or (count < 1 if sums else count != 0):
            raise ValueError("recorded means: each is one number, of at least one step")
        self._sums = {name: exact(kept) for name, kept in sums.items()}
        self._count, self._restored = count, bool(sums)


def write_result(folder: Path, accelerator: Accelerator, **values: Any) -> dict[str, Any]:
    """Write `result.json`, the last thing a run does, and return it. Its curves are drawn before: a run with a result
    is not begun again for them."""
    if accelerator.is_main_process:
        _draw_missing(folder)
        write_text(folder / "result.json", json.dumps(values, indent=2) + "\n")
        if folder.resolve() not in _running:
            release(folder)
    return values


def read_result(folder: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none yet.

    InputError, naming the file, for one that cannot be read or is none: cut off, empty, or without a number for each
    of the `needed` names.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({reason}); remove it to train this run again") from error
    if not isinstance(result, dict) or not result:
        raise InputError(f"{path}: not the result of a run; remove it to train this run again")
    for name in needed:
        if not _is_number(result.get(name)):
            raise InputError(f"{path}: {name} is missing or no number; remove it to train this run again")
    return result


def finished_inside(folder: Path) -> list[Path]:
    """The folders of the finished runs in that of several, as a comparison's, in the order of their names."""
    return sorted(path.parent for path in folder.glob("*/result.json"))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`. What is none is dropped: a line that a killed process left unfinished or that a
    damaged disk changed, one without a step or with anything but numbers. Nothing but curves is made of them."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_number, row.values()))
    return row if whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _draw_missing(folder: Path) -> None:
    """Draw the curves unless they are there and younger than what they show."""
    metrics, curves = folder / "metrics.jsonl", folder / "curves.png"
    if metrics.exists() and not (curves.exists() and curves.stat().st_mtime_ns > metrics.stat().st_mtime_ns):
        draw_curves(folder)


def draw_curves(folder: Path) -> None:
    """Draw every recorded term over the steps into `curves.png`, validation first: weighted losses are left to
    TensorBoard."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    names = sorted({name for row in rows for name in row if "/weighted/" not in name} - {"step", "epoch"})
    names.sort(key=lambda name: not name.startswith("validation/"))
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    # Margins in inches: matplotlib's own layouts would draw everything twice, which takes seconds
    width, height = 4.0 * columns, 2.4 * lines
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=0.5 / width, right=1 - 0.15 / width, bottom=0.45 / height, top=1 - 0.25 / height, wspace=0.16, hspace=0.32
    )
    for place, name in enumerate(names, start=1):
        axis = figure.add_subplot(lines, columns, place)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) < 30 else None)
        axis.set_title(name.replace("_", " "), fontsize=9, y=1.0)  # where it is put unless given, after a long look
        if place + columns > len(names):
            axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=4)
        axis.grid(alpha=0.3)
    with written_aside(folder / "curves.png") as aside:
        figure.savefig(aside, dpi=110, format="png")
