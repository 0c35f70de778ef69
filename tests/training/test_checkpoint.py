"""Checkpoints are whole or absent; a run resumes as itself or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.ema import EMA
from hybridgen.training.objective import adam, sgd
from hybridgen.training.schedules import Clock
from hybridgen.types import InputError

IDENTITY = {"rate": 0.1, "channels": [8, 16], "split_hash": "abc"}


class State:
    """Two networks, an average and two optimizers, which learn by fixed steps."""

    def __init__(self, folder: Path, identity: dict = IDENTITY, keep: int = 3) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.critic = nn.Linear(3, 1)
        self.average = EMA(self.network, 0.9)
        self.optimizers = {"network": sgd(self.network), "critic": adam(self.critic)}
        self.clock = Clock(steps=100, steps_per_epoch=10)
        modules = {"network": self.network, "critic": self.critic, "average": self.average}
        self.checkpoints = Checkpoints(folder, modules, self.optimizers, identity, keep=keep)

    def train(self, steps: int) -> "State":
        for _ in range(steps):
            images = torch.rand(5, 3, generator=torch.Generator().manual_seed(self.clock.step))
            for network, optimizer in zip((self.network, self.critic), self.optimizers.values(), strict=True):
                optimizer.param_groups[0]["lr"] = 0.01
                optimizer.zero_grad()
                network(images).square().sum().backward()
                optimizer.step()
            self.average.update(self.network)
            self.clock.step += 1
        return self

    def saved(self, *steps: int) -> "State":
        for step in steps:
            self.train(step - self.clock.step).checkpoints.save(self.clock)
        return self

    def resumed(self) -> "State":
        self.checkpoints.resume(self.clock)
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{key}": value for name, module in self.checkpoints.modules.items()
                for key, value in module.state_dict().items()}  # fmt: skip


def assert_equal(first: State, second: State) -> None:
    assert first.clock == second.clock
    theirs = second.tensors()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, theirs[name]), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saving_and_resuming_equals_going_on(tmp_path):
    whole = State(tmp_path / "a").train(11)
    State(tmp_path / "b").saved(7)
    resumed = State(tmp_path / "b").resumed()
    assert resumed.clock.step == 7
    assert_equal(resumed.train(4), whole)


def test_the_newest_is_resumed(tmp_path):
    State(tmp_path).saved(2, 30, 4)
    state = State(tmp_path)
    assert state.checkpoints.resume(state.clock).name == "step-00000030.pt"
    assert state.clock.step == 30


def test_the_last_three_are_kept(tmp_path):
    State(tmp_path).saved(0, 1, 5, 10, 12)
    assert names(tmp_path) == ["step-00000005.pt", "step-00000010.pt", "step-00000012.pt"]


def test_other_files_are_neither_read_nor_removed(tmp_path):
    others = ["notes.txt", "step-99999999.pt.bak", ".step-00000050.pt.77.tmp", "step-mine.pt"]
    for name in others:
        (tmp_path / name).write_text("x")
    State(tmp_path).saved(1, 2, 3, 4)
    assert State(tmp_path).resumed().clock.step == 4
    assert set(others) < set(names(tmp_path))


def refused(folder: Path, state: State | None = None) -> str:
    """The message, and a look that the refused state was left as it was."""
    state = state or State(folder)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    with pytest.raises(InputError) as caught:
        state.resumed()
    assert state.clock.step == 0
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before[name]), name
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_checkpoint(tmp_path):
    assert f"no checkpoint in {tmp_path}" in refused(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_never_passed_over(tmp_path, damage):
    State(tmp_path).saved(3, 6)
    path = tmp_path / "step-00000006.pt"
    content = bytearray(path.read_bytes())
    weights = State(tmp_path).train(6).network[0].weight.detach().numpy().tobytes()
    content[content.index(weights) + 2] ^= 4
    path.write_bytes(
        {"truncated": path.read_bytes()[:-300], "one byte": content, "empty": b"", "text": b"hello\n" * 50}[damage]
    )
    assert refused(tmp_path).startswith(f"{path}: damaged checkpoint")


def changed(path: Path, change) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_another_format(tmp_path):
    State(tmp_path).saved(3)
    changed(tmp_path / "step-00000003.pt", lambda state: state.update(format=9))
    assert refused(tmp_path) == f"{tmp_path / 'step-00000003.pt'}: format 9; this version reads format 1"


@pytest.mark.parametrize("part", ["format", "identity", "modules", "optimizers", "step"])
def test_a_part_is_missing(tmp_path, part):
    State(tmp_path).saved(3)
    changed(tmp_path / "step-00000003.pt", lambda state: state.pop(part))
    with pytest.raises(InputError, match=r"step-00000003.pt: .*(damaged|does not fit)"):
        State(tmp_path).resumed()


def test_another_network(tmp_path):
    State(tmp_path).saved(3)
    changed(tmp_path / "step-00000003.pt", lambda state: state["modules"]["network"].pop("0.weight"))
    with pytest.raises(InputError, match=r"step-00000003.pt: does not fit this run"):
        State(tmp_path).resumed()


@pytest.mark.parametrize(
    "identity, said",
    [
        (IDENTITY | {"rate": 0.2}, "rate was 0.1, is 0.2"),
        (IDENTITY | {"split_hash": "xyz"}, "split_hash was 'abc', is 'xyz'"),
        (IDENTITY | {"more": 1}, "more was None, is 1"),
        ({"rate": 0.1, "split_hash": "abc"}, "channels was [8, 16], is None"),
    ],
)
def test_the_checkpoint_of_another_run(tmp_path, identity, said):
    State(tmp_path).saved(3)
    message = refused(tmp_path, State(tmp_path, identity))
    assert message == f"{tmp_path / 'step-00000003.pt'}: checkpoint of another run: {said}"


def test_nothing_that_a_checkpoint_carries_is_executed(tmp_path):
    State(tmp_path).saved(3)
    changed(tmp_path / "step-00000003.pt", lambda state: state.update(identity=Path("/")))  # any class of Python's
    assert "damaged checkpoint (UnpicklingError)" in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["network", "critic", "average"])
def test_parameters_that_are_not_finite_are_never_saved(tmp_path, value, where):
    state = State(tmp_path).saved(3).train(1)
    with torch.no_grad():
        next(state.checkpoints.modules[where].parameters()).view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match="step 4"):
        state.checkpoints.save(state.clock)
    assert names(tmp_path) == ["step-00000003.pt"]


def test_a_full_disk_leaves_the_old_ones_and_nothing_half_written(tmp_path, monkeypatch):
    state = State(tmp_path).saved(3, 4, 5).train(1)
    save = torch.save

    def half(content, file):
        save(content, file)
        file.truncate(1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(InputError, match=r"step-00000006.pt: cannot be written: No space left on device"):
        state.checkpoints.save(state.clock)
    assert names(tmp_path) == ["step-00000003.pt", "step-00000004.pt", "step-00000005.pt"]
    assert State(tmp_path).resumed().clock.step == 5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_is_really_full(small_disk):
    state = State(small_disk / "checkpoints", keep=100)
    saved = []
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        for _ in range(100):
            saved.append(state.train(1).checkpoints.save(state.clock).name)
    assert len(saved) > 1 and names(small_disk / "checkpoints") == saved
    assert State(small_disk / "checkpoints").resumed().clock.step == len(saved)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from hybridgen.training.checkpoint import Checkpoints
from hybridgen.training.schedules import Clock
clock, network = Clock(steps=9, steps_per_epoch=3, step=3), nn.Linear(2, 2)
checkpoints = Checkpoints(Path(sys.argv[1]), {"network": network}, {}, {})
checkpoints.save(clock)
clock.step = 4
end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "renaming":
    os.replace = end
else:
    save = torch.save
    torch.save = lambda state, file: (save(state, file), file.flush(), file.truncate(700), end())
checkpoints.save(clock)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_process_killed_while_saving_leaves_the_old_checkpoint(tmp_path, moment):
    if (child := os.fork()) == 0:
        try:
            sys.argv[1:] = [str(tmp_path), moment]
            exec(KILLED, {})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    clock, network = Clock(steps=9, steps_per_epoch=3), nn.Linear(2, 2)
    checkpoints = Checkpoints(tmp_path, {"network": network}, {}, {})
    assert checkpoints.resume(clock).name == "step-00000003.pt"
    assert clock.step == 3
    clock.step = 4
    checkpoints.save(clock)
    assert [path.name for path in checkpoints.paths()] == ["step-00000003.pt", "step-00000004.pt"]


def test_a_field_of_a_group_is_named_with_its_group(tmp_path):
    State(tmp_path, {"method": {"rate": 0.1, "betas": (0.9, 0.99)}, "seed": 0}).saved(3)
    State(tmp_path, {"method": {"rate": 0.1, "betas": [0.9, 0.99]}, "seed": 0}).resumed()
    message = refused(tmp_path, State(tmp_path, {"method": {"rate": 0.2, "betas": (0.9, 0.99)}, "seed": 0}))
    assert message.endswith("method.rate was 0.1, is 0.2")


def of(kind: str, key: str, value):
    """Puts a value into the state that an optimizer has of its first parameter."""
    return lambda state: state["optimizers"][kind]["state"][0].update({key: value})


@pytest.mark.parametrize(
    "change, said",
    [
        (of("network", "momentum_buffer", torch.zeros(2, 3)), "momentum_buffer of (2, 3) for a parameter of (4, 3)"),
        (of("network", "momentum_buffer", "x"), "momentum_buffer of str"),
        (of("critic", "exp_avg", torch.zeros(())), "exp_avg of () for a parameter of (1, 3)"),
        (of("critic", "exp_avg_sq", torch.zeros(9)), "exp_avg_sq of (9,)"),
        (lambda state: state["optimizers"]["critic"].update(param_groups=[]), "shorter"),
        (lambda state: state["optimizers"]["critic"]["param_groups"][0].update(params=[0]), "shorter"),
        (lambda state: state["optimizers"].update(critic=[1]), "Type"),
        (lambda state: state.update(optimizers=3), "TypeError"),
        (lambda state: state.update(modules=3), "TypeError"),
        (lambda state: state.update(step="3"), "step '3' is none of 0 to 100"),
        (lambda state: state.update(step=-1), "step -1 is none of 0 to 100"),
        (lambda state: state.update(step=101), "step 101 is none of 0 to 100"),
        (lambda state: state.update(step=True), "step True"),
    ],
)
def test_a_state_of_another_shape(tmp_path, change, said):
    State(tmp_path).saved(3)
    changed(tmp_path / "step-00000003.pt", change)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'step-00000003.pt'}: does not fit this run (") and said in message


def test_what_a_killed_process_has_not_dropped_is_dropped_when_its_run_is_resumed(tmp_path):
    State(tmp_path, keep=9).saved(1, 2, 3, 4, 5)
    others = ["step-00000001.process-1.pt", "step-00000005.process-1.pt", "step-00000006.process-1.pt", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("x")
    State(tmp_path, keep=2).resumed()
    assert names(tmp_path) == ["notes.txt", "step-00000004.pt", "step-00000005.process-1.pt", "step-00000005.pt"]


# --- state of each process's own -----------------------------------------------------------------------------


class OfProcess:
    """One of several processes, whose history holds its own number and the step."""

    def __init__(self, folder: Path, process: int) -> None:
        self.shared, self.history, self.clock = nn.Linear(1, 1), nn.BatchNorm1d(1), Clock(100, 10)
        modules, local = {"shared": self.shared}, {"history": self.history}
        self.checkpoints = Checkpoints(folder, modules, {}, IDENTITY, local=local, process=process, keep=2)
        self.process = process

    def at(self, step: int) -> "OfProcess":
        self.clock.step = step
        with torch.no_grad():
            self.shared.weight.fill_(step)
        self.history.running_mean.fill_(100 * self.process + step)
        return self

    def saved(self, step: int) -> None:
        self.at(step)
        self.checkpoints.save_local(self.clock) if self.process else self.checkpoints.save(self.clock)


def test_every_process_finds_its_own_history_again(tmp_path):
    processes = [OfProcess(tmp_path, process) for process in range(3)]
    for step in (1, 2, 3):
        for process in reversed(processes):
            process.saved(step)
    assert names(tmp_path) == sorted(
        f"step-0000000{step}{who}.pt" for step in (2, 3) for who in ("", ".process-1", ".process-2")
    )
    for process in range(3):
        again = OfProcess(tmp_path, process).at(9)
        again.checkpoints.resume(again.clock)
        assert (again.clock.step, again.shared.weight.item()) == (3, 3)
        assert again.history.running_mean.item() == 100 * process + 3


def test_more_processes_than_there_were_are_refused(tmp_path):
    OfProcess(tmp_path, 0).saved(1)
    with pytest.raises(InputError, match=r"step-00000001\.pt: of another number of processes"):
        OfProcess(tmp_path, 1).checkpoints.resume(Clock(100, 10))


def test_a_damaged_history_is_named(tmp_path):
    for process in (1, 0):
        OfProcess(tmp_path, process).saved(1)
    (tmp_path / "step-00000001.process-1.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"step-00000001\.process-1\.pt: damaged checkpoint"):
        OfProcess(tmp_path, 1).checkpoints.resume(Clock(100, 10))
