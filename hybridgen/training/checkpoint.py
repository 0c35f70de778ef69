"""Checkpoints that are whole or absent, and resuming that equals never stopping."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from hybridgen.files import writing, written_aside
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

FORMAT = 1


class Checkpoints:
    """The last few checkpoints of a run: `step-00000500.pt` in a folder.

    A checkpoint holds the states of `modules` and `optimizers`, the step, and `identity`: what a run has to have in
    common with the one that wrote it (configuration, split hash). Draws are functions of the step and schedules of
    the clock, so nothing else is state.

    All processes have the same state but for that of `local` modules (a history of what each one saw). The first
    process writes the checkpoint, the others what they have of these into `step-00000500.process-1.pt`, before it.
    """

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        identity: Mapping[str, Any],
        *,
        local: Mapping[str, nn.Module] | None = None,
        process: int = 0,
        keep: int = 3,
    ) -> None:
        self.folder, self.local, self.process = folder, dict(local or {}), process
        self.modules, self.optimizers = {**modules, **self.local}, optimizers
        self.identity, self.keep = dict(identity), keep
        self.seconds = 0.0
        """How long the run had trained when the checkpoint was written from which it goes on."""

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))

    def save(self, clock: Clock, seconds: float = 0.0) -> Path:
        """Write the checkpoint of this step, after so many seconds of training, aside, rename it, drop the oldest.

        Raises InputError where it cannot be written, FloatingPointError for parameters that are not finite: the
        checkpoints that are there stay good.
        """
        tensors: list[Tensor] = [p for module in self.modules.values() for p in module.parameters()]
        if not all(torch.isfinite(norm) for norm in torch._foreach_norm(tensors)):
            raise FloatingPointError(f"parameters are not finite at step {clock.step}")
        path = self.folder / f"step-{clock.step:08d}.pt"
        state = {
            "format": FORMAT,
            "step": clock.step,
            "seconds": seconds,
            "identity": self.identity,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        _write(state, path)
        self._drop_old()
        return path

    def _drop_old(self) -> None:
        """Also what a process that was killed while it did so, or between the files of one step, has left."""
        kept = {path.stem for path in self.paths()[-self.keep :]}
        for path in self.folder.glob("step-*.pt"):
            name = re.fullmatch(r"(step-\d{8})(\.process-\d+)?\.pt", path.name)
            if name and name[1] not in kept:
                with writing(path):
                    path.unlink(missing_ok=True)

    def save_local(self, clock: Clock) -> None:
        """What this process, not the first one, has of the local modules: before the first one saves this step."""
        path = self._local_path(self.folder / f"step-{clock.step:08d}.pt")
        _write({name: module.state_dict() for name, module in self.local.items()}, path)

    def _local_path(self, path: Path) -> Path:
        return path.with_name(f"{path.stem}.process-{self.process}.pt")

    def resume(self, clock: Clock) -> Path:
        """Continue from the newest checkpoint: states and clock.

        Raises InputError where there is none, where it is damaged, and where it belongs to another configuration or
        split, naming the first field that differs.
        """
        if not self.paths():
            raise InputError(f"resume: no checkpoint in {self.folder}; start without --resume in a new folder")
        path = self.paths()[-1]
        state = read_checkpoint(path)
        if not {"format", "identity"} <= state.keys():
            raise InputError(f"{path}: damaged checkpoint (KeyError)")
        version, identity = state["format"], state["identity"]
        if version != FORMAT:
            raise InputError(f"{path}: format {version}; this version reads format {FORMAT}")
        for field, then, now in differences(identity, self.identity):
            raise InputError(f"{path}: checkpoint of another run: {field} was {then!r}, is {now!r}")
        states = state.get("modules", {})
        if self.local and self.process:
            if not self._local_path(path).exists():
                raise InputError(f"{path}: of another number of processes; nothing in it is process {self.process}'s")
            states = states | read_checkpoint(self._local_path(path))
        try:
            step = state["step"]
            if type(step) is not int or not 0 <= step <= clock.steps:
                raise ValueError(f"step {step!r} is none of 0 to {clock.steps}")
            for name, optimizer in self.optimizers.items():
                _check_shapes(name, optimizer, state["optimizers"][name])
            for name, module in self.modules.items():
                module.load_state_dict(states[name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            clock.step, self.seconds = step, float(state.get("seconds", 0.0))
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else "empty"
            raise InputError(f"{path}: does not fit this run ({type(error).__name__}: {reason})") from error
        if self.process == 0:
            self._drop_old()
        return path


def differences(then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ, those of groups as `method.rate`, with both values; what is missing counts as None."""
    old, new = _flat(then), _flat(now)
    for name in [*new, *(name for name in old if name not in new)]:
        if (before := old.get(name)) != (after := new.get(name)):
            yield name, before, after


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A field that is a group gives way to its fields."""
    flat: dict[str, Any] = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    """Tuples as the lists that they come back as from files."""
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


OF_ITS_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""What optimizers keep of each parameter, in its shape: torch looks at no shape when it loads them."""


def _check_shapes(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """ValueError for a state that is not one of these parameters."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    for group, saved in groups:
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            kept = state["state"].get(number, {})
            for key in OF_ITS_PARAMETER:
                value = kept.get(key)
                if value is not None and getattr(value, "shape", None) != parameter.shape:
                    there = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                    raise ValueError(f"optimizer {name}: {key} of {there} for a parameter of {tuple(parameter.shape)}")


def _write(state: Mapping[str, Any], path: Path) -> None:
    with written_aside(path) as aside, aside.open("wb") as file:
        torch.save(state, file)  # opened here: by its name, torch would not tell why it failed


def read_checkpoint(path: Path) -> dict[str, Any]:
    """InputError for a damaged file."""
    try:
        with ZipFile(path) as archive:  # torch reads past a flipped bit without a word
            if (part := archive.testzip()) is not None:
                raise BadZipFile(part)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(f"{path}: damaged checkpoint ({type(error).__name__})") from error
