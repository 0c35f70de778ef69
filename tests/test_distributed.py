"""Two processes on one machine compute what one computes, and fail together."""

import importlib.util
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from hybridgen.errors import InputError, exit_codes
from hybridgen.training.engine import make_accelerator

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).with_name("test_recipes.py"))
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes = processes.recipes  # fixture
HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "scimix.py"
WORKER = HERE / "distributed_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
PATIENCE = 600
"""Seconds; all is done in a few tens of them on an idle machine."""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """CPUs only, one thread a process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# --- the same numbers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_two(recipes) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes computed."""
    recipes.succeed(WORKER, recipes.folder, processes=2)
    return [torch.load(recipes.folder / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def of_one() -> dict[str, dict[str, torch.Tensor]]:
    return runpy.run_path(str(WORKER), run_name="imported")["everything"](make_accelerator(precision="fp32", threads=1))


def test_two_processes_share_each_batch(of_one, of_two):
    labelled, unlabelled = of_one["stream"]["images"].split([4, 8], dim=1)
    halves = [each["stream"]["images"].split([2, 4], dim=1) for each in of_two]
    assert torch.equal(torch.cat([half[0] for half in halves], dim=1), labelled)
    assert torch.equal(torch.cat([half[1] for half in halves], dim=1), unlabelled)


def test_gradients_are_those_of_the_whole_batch(of_one, of_two):
    for each in of_two:
        for key in ("parameters", "norms"):
            ours, theirs = each["gradients"][key], of_one["gradients"][key]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(of_two[0]["gradients"]["parameters"], of_two[1]["gradients"]["parameters"])


def test_gradients_in_bf16_are_those_of_the_whole_batch_as_far_as_bf16_goes(of_one, of_two):
    exact, theirs = of_one["gradients"], of_one["in_bf16"]
    for each in of_two:
        ours = each["in_bf16"]
        torch.testing.assert_close(ours["norms"], theirs["norms"], rtol=0.02, atol=0.0)
        torch.testing.assert_close(ours["parameters"], theirs["parameters"], rtol=0.02, atol=2e-3)
        assert not torch.equal(ours["parameters"], each["gradients"]["parameters"])
    assert torch.equal(of_two[0]["in_bf16"]["parameters"], of_two[1]["in_bf16"]["parameters"])
    torch.testing.assert_close(theirs["norms"], exact["norms"], rtol=0.02, atol=0.0)


def test_each_process_draws_for_itself(of_one, of_two):
    drawn = [each["gradients"]["drawn"] for each in of_two]
    assert torch.equal(drawn[0], of_one["gradients"]["drawn"])
    assert not (drawn[0] == drawn[1]).any()


def test_pseudo_labels_are_weighted_and_aligned_by_the_whole_batch(of_one, of_two):
    """By what all processes have seen: thresholds, windows, moving averages, FlexMatch's record, fairness."""
    theirs, ours = of_one["fixmatch"], [each["fixmatch"] for each in of_two]
    for name, tensor in theirs.items():
        if name.endswith("confident"):  # of each process's own images
            assert tensor.mean() > 0 and not torch.equal(ours[0][name], ours[1][name])
            torch.testing.assert_close((ours[0][name] + ours[1][name]) / 2, tensor)
        else:
            assert torch.equal(ours[0][name], ours[1][name]), name
            torch.testing.assert_close(ours[0][name], tensor, rtol=1e-4, atol=1e-6)
    assert {name.partition(".")[0] for name in theirs} == {"flexmatch", "freematch", "softmatch", "adamatch"}
    assert (theirs["flexmatch.labelling.weighting.record"] >= 0).any()


def test_a_student_and_its_teacher_are_those_of_the_whole_batch(of_one, of_two):
    ours, theirs = (each["mean_teacher"]["parameters"] for each in (of_two[0], of_one))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours, of_two[1]["mean_teacher"]["parameters"])


def test_synchronised_batch_norm_is_that_of_the_whole_batch(of_one, of_two):
    ours, theirs = (each["synchronized"] for each in (of_two[0], of_one))
    assert any("running_var" in name for name in theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_synchronised_batch_norm_counts_every_image_once(of_one, of_two):
    theirs, ours = of_one["uneven"], [each["uneven"] for each in of_two]
    for name in ("normalized", "gradient", "half"):
        together = torch.cat([each[name] for each in ours])
        assert together.dtype == theirs[name].dtype
        torch.testing.assert_close(together, theirs[name], rtol=1e-3, atol=1e-3 if name != "half" else 0.05)
    for each in ours:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(each[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scimix", "samosa"])
def test_networks_with_batch_norm_stay_the_same_on_both_processes(of_two, name):
    """Though their draws and, before the first step, their initial parameters were different."""
    first, second = (each[name] for each in of_two)
    assert torch.equal(first["after"], second["after"])
    assert torch.isfinite(first["after"]).all()
    assert (first["after"] != first["before"]).float().mean() > 0.5


def test_each_process_has_a_history_of_its_own_and_all_the_same_network(of_one, of_two):
    """The first step, which has no history, is that of the whole batch; later each process mixes what it saw."""
    first, second = (each["recursivemix"] for each in of_two)
    torch.testing.assert_close(first["first"], of_one["recursivemix"]["first"], rtol=1e-5, atol=1e-6)
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["images"].shape == second["images"].shape == (2, 3, 16, 16)
    assert not torch.equal(first["images"], second["images"])
    assert not torch.equal(first["logits"], second["logits"])


def test_several_inputs_learn_on_two_processes_as_on_one(of_one, of_two):
    """Where nothing is drawn; else each process draws for its images, and both keep the same network."""
    first, second = (each["mixmo"] for each in of_two)
    torch.testing.assert_close(first["mimo"], of_one["mixmo"]["mimo"], rtol=1e-5, atol=1e-6)
    for name in ("mimo", "cut"):
        assert torch.equal(first[name], second[name]) and first[name].isfinite().all()
    assert not torch.equal(first["cut"], first["mimo"])


def test_transformers_of_several_inputs_learn_on_two_processes_as_on_one(of_one, of_two):
    """Also of two inputs, where all see what they would see in the whole batch; else each draws for its images."""
    first, second = (each["mixvit"] for each in of_two)
    for name in ("1", "2-fixed"):
        torch.testing.assert_close(first[name], of_one["mixvit"][name], rtol=1e-4, atol=1e-5)
    for name in ("1", "2", "2-fixed"):
        assert torch.equal(first[name], second[name]) and first[name].isfinite().all()
    assert not torch.allclose(first["2"], first["2-fixed"], rtol=1e-3, atol=1e-3)


def test_predictions_of_two_processes_are_put_in_the_order_of_the_images(of_one, of_two):
    """Also where the one has an image more than the other, or all of them."""
    for name, expected in of_one["accuracies"].items():
        for each in of_two:
            torch.testing.assert_close(each["accuracies"][name], expected, rtol=1e-5, atol=1e-6)
    assert of_one["accuracies"]["logits-53"].shape == (2, 53, 3)
    assert of_one["accuracies"]["labels-53"].tolist() == [index % 3 for index in reversed(range(53))]


def test_hybrids_and_the_average_that_makes_them_are_the_same_on_both_processes(of_two):
    """Statistics of batch-norm included, of which each process has its own."""
    first, second = (each["samosas_hybrids"] for each in of_two)
    assert first["hybrids"].shape == (24, 3, 16, 16) and first["hybrids"].any() and len(first["kept"]) == 1
    assert any("running_var" in name for name in first)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_accuracy_counts_every_image_once(of_one, of_two):
    expected = of_one["accuracies"]["accuracy"]
    assert 0 < expected[0] < 1
    for each in of_two:
        assert torch.equal(each["accuracies"]["accuracy"], expected)


# --- recipes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    images = lambda count: random.integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
    labels = lambda count: np.arange(count) % 2
    np.savez(path, x_train=images(60), y_train=labels(60), x_test=images(12), y_test=labels(12))
    return f"npz:{path}"


def arguments(data: str, out: Path | str, *more: str) -> list[str | Path]:
    return [
        "--preset", "smoke", "--data", data, "--labels", "8", "--validation", "4", "--labelled-batch", "4",
        "--unlabelled-batch", "8", "--epochs", "400", "--threads", "1", "--method.generator-channels", "8", "8",
        "--record-every", "5", "--evaluate-every", "1000", "--save-every", "10", "--out", out, *more,
    ]  # fmt: skip


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*.pt"))


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_batch_that_does_not_divide_is_bad_input(recipes, data):
    code = recipes.run(RECIPE, *arguments(data, "run", "--unlabelled-batch", "9"), processes=2)
    said = [line for line in recipes.stderr().splitlines() if line.startswith("error: ")]
    line = "error: unlabelled_batch = 9: the global batch does not divide among 2 processes"
    # On a crowded machine the second may lose patience
    assert said.count(line) == 1 and set(said) <= {line, f"{line} (process 1)"}, recipes.stderr()
    assert code == 2 and not (recipes.folder / "run").exists()


MET_BY_THE_SECOND = """
import os, time
from hybridgen import errors
errors.PATIENCE = 1.0
with errors.exit_codes():
    if os.environ["RANK"] == "1":
        raise errors.InputError("a.png: not a readable image")
    time.sleep(600)
"""


def test_bad_input_that_one_process_meets_alone_is_told_by_it(recipes):
    script = recipes.folder / "script.py"
    script.write_text(MET_BY_THE_SECOND)
    assert recipes.run(script, processes=2) == 2
    assert recipes.stderr() == "error: a.png: not a readable image (process 1)\n"


def test_two_processes_stop_together_resume_together_and_die_together(recipes, data, tmp_path):
    folder = tmp_path / "run"

    def reached(step: int) -> Callable[[], bool]:
        return lambda: any(int(path.stem[5:]) >= step for path in (folder / "checkpoints").glob("step-*.pt"))

    # Stopped by a signal: both save and end
    recipes.start(RECIPE, *arguments(data, folder), processes=2)
    assert recipes.stop(signal.SIGTERM, reached(10)) == 143
    assert f"stopped by signal 15 after {newest(folder)}; --resume continues" in recipes.stderr()
    assert "Traceback" not in recipes.stderr()
    stopped = int(newest(folder).stem[5:])

    # Resumed, and one of them killed: the other does not wait for ever
    log, began = tmp_path / "log", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen([*TORCHRUN, RECIPE, *arguments(data, folder, "--resume")], stdout=file, stderr=file)
    while not reached(stopped + 10)():
        assert process.poll() is None and time.monotonic() - began < PATIENCE, log.read_text()
        time.sleep(0.05)
    workers = children(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(PATIENCE) != 0
    assert not any(alive(pid) for pid in workers)
    state = torch.load(newest(folder), weights_only=True)
    assert state["step"] == int(newest(folder).stem[5:]) >= stopped + 10
    assert not (folder / "result.json").exists()


def test_accelerate_launches_one_process(data, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command = [*launch, RECIPE, *arguments(data, tmp_path / "run", "--epochs", "0.5", "--oracle", "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()


def test_a_process_takes_leave_of_the_others_at_its_end(tmp_path):
    """Threads of the group that outlive the interpreter abort it now and then."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        with pytest.raises(SystemExit), exit_codes():
            raise InputError("x: bad")
        assert distributed.is_initialized()  # the launcher ends the others
        with exit_codes():
            pass
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
