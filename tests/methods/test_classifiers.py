"""The classifier that a run leaves, and who may start from it."""

from dataclasses import replace

import pytest
import torch

from hybridgen.data.splits import Split
from hybridgen.methods import fixmatch, hybrids, mean_teacher, mixmatch, supervised
from hybridgen.methods.classifiers import finished_classifier
from hybridgen.networks.classifiers import about_classifier
from hybridgen.types import InputError

METHODS = {"fixmatch": fixmatch, "mean_teacher": mean_teacher, "mixmatch": mixmatch, "supervised": supervised}
SMALL = dict(labelled_batch=4, unlabelled_batch=4)
NETWORK = "leaky-wrn-10-1"


def left(context, run, name: str = "fixmatch"):
    """A run's folder with the classifier that its plan leaves, which is not the last one."""
    module = METHODS[name]
    plan = module.plan(module.Settings(**SMALL), context, 0)
    torch.manual_seed(3)
    heads = 2 if name == "mean_teacher" else 1
    chosen = context.classifier(NETWORK, heads=heads).eval()
    for tensor in chosen.buffers():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.5)
    plan.finish(run, chosen)
    return plan, chosen


@pytest.mark.parametrize("name", METHODS)
def test_every_classifier_leaves_the_chosen_network_and_tells_where_it_is_from(name, context, tmp_path):
    plan, chosen = left(context, tmp_path, name)
    about = about_classifier(tmp_path / "network.safetensors")
    assert (about.network, about.width, about.classes, about.image_size) == (NETWORK, 1, ("a", "b", "c"), 16)
    assert about.split_hash == context.split.hash
    assert (about.mean, about.std) == (pytest.approx(context.dataset.mean), pytest.approx(context.dataset.std))
    found, images = finished_classifier(tmp_path, NETWORK, context), torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found(images), plan.classify(chosen, images))
    digest = context.read["classifier"]
    with torch.no_grad():
        next(chosen.parameters()).mul_(2)
    plan.finish(tmp_path, chosen)
    finished_classifier(tmp_path, NETWORK, context)
    assert context.read["classifier"] != digest  # a resumed run would see it


def test_so_it_does_with_hybrids(context, tmp_path):
    plan = fixmatch.plan(fixmatch.Settings(**SMALL), context, 0)
    wrapped = hybrids.with_hybrids(plan, hybrids.Mixer("mixup"), hybrids.Teaching())
    wrapped.finish(tmp_path, wrapped.judged)
    assert about_classifier(tmp_path / "network.safetensors").split_hash == context.split.hash


def refused(run, context, network: str = NETWORK) -> str:
    with pytest.raises(InputError) as error:
        finished_classifier(run, network, context)
    said = str(error.value)
    assert "\n" not in said and said.startswith("classifier: ")
    return said


def test_what_does_not_fit_is_named_with_what_would_be_right(context, tmp_path):
    run = tmp_path / "runs" / "fixmatch-seed0"
    left(context, run)
    dataset, split = context.dataset, context.split

    renamed = replace(context, dataset=replace(dataset, classes=("a", "b", "d")))
    said = refused(run, renamed)
    assert f"{run} has 3 (a, b, c) classes, noise 3 (a, b, d); give a run on these data" in said

    for size in (8, 32):
        said = refused(run, replace(context, dataset=replace(dataset, image_size=size)))
        assert f"is for images of 16×16, these have {size}×{size}; --image-size 16" in said

    assert f"has a {NETWORK}, the encoders are leaky-wrn-16-1; one --network" in refused(run, context, "leaky-wrn-16-1")

    other = Split(split.dataset, split.fingerprint, 1, split.labelled, split.unlabelled, split.validation)
    said = refused(run, replace(context, split=other))
    assert f"trained on split {split.hash}, this is {other.hash}: its labels would leak" in said and "--split" in said

    finished_classifier(run, NETWORK, context)


def test_a_folder_without_one_is_named_with_those_in_it(context, tmp_path):
    said = refused(tmp_path / "nowhere", context)
    assert said.endswith(f"in {tmp_path / 'nowhere'}, with a network.safetensors")
    for name in ("scimix-seed0", "fixmatch-seed0"):
        left(context, tmp_path / name)
    said = refused(tmp_path, context)
    assert said.endswith(f"; give one of {tmp_path / 'fixmatch-seed0'}, {tmp_path / 'scimix-seed0'}")


def test_a_file_of_an_unknown_split_or_another_width_is_none_to_start_from(context, tmp_path):
    from hybridgen.networks.classifiers import save_classifier

    made = context.classifier(NETWORK)
    save_classifier(made, tmp_path / "network.safetensors", name=NETWORK, classes=("a", "b", "c"), image_size=16)
    assert "trained on split unknown" in refused(tmp_path, context)
    about = dict(name=NETWORK, width=0.5, classes=("a", "b", "c"), image_size=16, split_hash=context.split.hash)
    save_classifier(made, tmp_path / "network.safetensors", **about)
    assert f"has a {NETWORK} of width 0.5, the encoders are {NETWORK}" in refused(tmp_path, context)
    content = (tmp_path / "network.safetensors").read_bytes()
    (tmp_path / "network.safetensors").write_bytes(content[:-9])
    with pytest.raises(InputError, match=r"network\.safetensors: damaged"):
        finished_classifier(tmp_path, NETWORK, context)
