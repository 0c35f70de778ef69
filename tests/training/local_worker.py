"""What the tests of two processes that write one run compute: `local_worker.py FOLDER`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.ema import EMA
from hybridgen.training.engine import agree, make_accelerator
from hybridgen.training.record import Run, by_first, claim
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError


@dataclass(frozen=True)
class Config:
    out: Path
    resume: bool = True


class History(nn.Module):
    """The process's number and the step, where each process has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))


def run(folder: Path, late: int, until: int) -> dict[str, torch.Tensor]:
    """A run of this process's part: its history at the beginning and in the end. The process `late` comes last."""
    number = accelerator.process_index
    claim(folder, Config(folder), accelerator, resume=True, fresh_ok=True)
    history, shared = History(), nn.Linear(1, 1)
    with Run(
        folder, Config(folder), accelerator, Clock(steps=until, steps_per_epoch=1),
        modules={"shared": shared}, local={"history": history}, optimizers={}, split_hash="", record_every=5,
        save_every=2, images_per_step=1, resume=True, keep=2,
    ) as going:  # fmt: skip
        if going.clock.step == 0 and number == late:
            time.sleep(0.5)
        began = history.seen.clone()
        while not going.clock.done and going.clock.step < until:
            going.clock.step += 1
            history.seen.copy_(torch.tensor([number, going.clock.step]))
            if number == late:
                time.sleep(0.05)
            going.step({"loss": torch.tensor(1.0)})
    return {"began": began, "ended": history.seen}


def late_to_the_folder(folder: Path, late: int) -> dict[str, torch.Tensor]:
    """The same, where the process comes late to `Run` itself."""
    enter = Run.__enter__

    def waiting(self: Run) -> Run:
        if accelerator.process_index == late:
            time.sleep(1)
        return enter(self)

    Run.__enter__ = waiting
    try:
        return run(folder, late, 4)
    finally:
        Run.__enter__ = enter


def saved_in_order(folder: Path) -> bool:
    """Whether the second process's file was there whenever the first one made a checkpoint whole, though it is slow."""
    there: list[bool] = []
    save, save_local = Checkpoints.save, Checkpoints.save_local

    def looking(self: Checkpoints, clock: Clock, seconds: float) -> Path:
        there.append((self.folder / f"step-{clock.step:08d}.process-1.pt").exists())
        return save(self, clock, seconds)

    def slow(self: Checkpoints, clock: Clock) -> None:
        time.sleep(0.5)
        save_local(self, clock)

    Checkpoints.save, Checkpoints.save_local = looking, slow
    try:
        run(folder, 1, 4)
    finally:
        Checkpoints.save, Checkpoints.save_local = save, save_local
    return all(there)


def averages() -> dict[str, dict[str, torch.Tensor]]:
    """The buffers of an average whose network saw another batch in each process, before and after they agree."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).double())
    network.register_buffer("empty", torch.zeros(0))
    network.register_buffer("flag", torch.tensor(accelerator.process_index == 0))
    average = EMA(network, 0.9)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    for _ in range(2 + 3 * accelerator.process_index):
        network[1](network[0](torch.randn(5, 3, 4, 4, generator=generator)))
        network[2](torch.randn(5, 4, 4, 4, generator=generator).double())
    average.update(network)
    copied = lambda: {name: tensor.clone() for name, tensor in average.state_dict().items()}
    before = copied()
    agree(average, accelerator)
    return {"before": before, "after": copied()}


def told() -> str:
    """What one process alone meets, the first or the second."""

    def meet() -> str:
        raise InputError(f"met by process {accelerator.process_index}")

    try:
        return by_first(accelerator, meet)
    except InputError as error:
        return str(error)


if __name__ == "__main__":
    accelerator = make_accelerator(precision="fp32", threads=1)
    folder = Path(sys.argv[1])
    found = {
        "late second": late_to_the_folder(folder / "second", 1),
        "late first": late_to_the_folder(folder / "first", 0),
        "resumed": run(folder / "second", 1, 4),
        "in order": saved_in_order(folder / "order"),
        "averages": averages(),
        "told": told(),
        "found": by_first(accelerator, lambda: accelerator.process_index + 10),
    }
    torch.save(found, folder / f"process-{accelerator.process_index}.pt")
