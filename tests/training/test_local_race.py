"""Two processes that write one run, each with a history of its own, whichever comes late."""

import importlib.util
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("recipes_as_processes", Path(__file__).parents[1] / "test_recipes.py")
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
recipes = processes.recipes  # fixture


@pytest.fixture(scope="module")
def of_two(recipes) -> tuple[Path, list[dict]]:
    """The folder, and what each process found."""
    recipes.succeed(Path(__file__).with_name("local_worker.py"), recipes.folder, processes=2)
    return recipes.folder, [torch.load(recipes.folder / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("who", ["second", "first"])
def test_a_fresh_folder_is_fresh_for_the_process_that_comes_late(of_two, who):
    """And not something to resume because the other has written the checkpoint of step 0."""
    folder, processes = of_two
    for rank, each in enumerate(processes):
        assert each[f"late {who}"]["began"].tolist() == [0, 0]
        assert each[f"late {who}"]["ended"].tolist() == [rank, 4]
    names = {path.name for path in (folder / who / "checkpoints").iterdir()}
    assert names == {f"step-0000000{step}{of}.pt" for step in (2, 4) for of in ("", ".process-1")}


def test_a_checkpoint_is_whole_once_the_first_process_has_written_it(of_two):
    assert of_two[1][0]["in order"]


def test_each_process_resumes_with_its_own_history(of_two):
    for rank, each in enumerate(of_two[1]):
        assert each["resumed"]["began"].tolist() == [rank, 4]


def test_averages_agree_on_what_the_first_process_has(of_two):
    """Which is what checkpoints hold."""
    first, second = (each["averages"] for each in of_two[1])
    assert not torch.equal(first["before"]["network.1.running_mean"], second["before"]["network.1.running_mean"])
    for name, after in first["after"].items():
        assert torch.equal(after, first["before"][name]) and torch.equal(after, second["after"][name]), name
    assert second["before"]["network.1.num_batches_tracked"] == 5 and after.dtype == first["before"][name].dtype
    assert (first["before"]["network.flag"], second["before"]["network.flag"]) == (True, False)


def test_what_the_first_process_finds_or_meets_all_do(of_two):
    for each in of_two[1]:
        assert (each["found"], each["told"]) == (10, "met by process 0")
