"""Classifiers that were written for deployment, against the network and its standardisation by hand."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from hybridgen.networks import deployment
from hybridgen.networks.classifiers import About, Classifier
from hybridgen.networks.deployment import write_onnx, write_program
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError

MEAN, STD = (0.4, 0.5, 0.7), (0.2, 0.25, 0.35)
ABOUT = About("fast-8x1", 1.0, ("ant", "bee"), MEAN, STD, 8, None, False, "5eed", None)


@pytest.fixture
def network() -> torch.nn.Module:
    """Whose statistics and filters are those of no new network."""
    torch.manual_seed(0)
    made = make_network("fast-8x1", 2).eval().requires_grad_(False)
    for buffer in made.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return made


@pytest.fixture
def classifier(network) -> Classifier:
    return Classifier(network, mean=MEAN, std=STD).eval()


def test_onnx_takes_images_as_they_are_and_any_number_of_them(unchecked, network, classifier, tmp_path):
    apart = write_onnx(classifier, ABOUT, tmp_path / "model.onnx")
    assert 0 <= apart < 1e-5 and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(float)", [3, 8, 8])
    assert (given.name, given.shape[1:]) == ("logits", [2]) and taken.shape[0] == given.shape[0] == "n"
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for count in (1, 6):
        images = torch.rand(count, 3, 8, 8)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network((images - mean) / std), rtol=1e-4, atol=1e-4)
    told = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert {key: json.loads(told.pop(key)) for key in ("classes", "mean", "std")} == {
        "classes": ["ant", "bee"], "mean": list(MEAN), "std": list(STD),
    }  # fmt: skip
    seen = "the central square, brought to 8×8"
    assert told == {"network": "fast-8x1", "image_size": "8", "seen": seen, "split_hash": "5eed"}


def test_what_computes_something_else_is_not_written(unchecked, network, classifier, tmp_path, monkeypatch):
    bare = Classifier(network, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    made = deployment._program(bare, ABOUT)
    monkeypatch.setattr(deployment, "_program", lambda classifier, about: made)
    with pytest.raises(InputError, match=r"model\.pt2: not written, since its logits differ by .* of the largest"):
        write_program(classifier, ABOUT, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_finite_or_too_few_are_not_written(classifier):
    for run in (lambda images: classifier(images) * torch.nan, lambda images: classifier(images)[:, :1]):
        with pytest.raises(
            InputError, match=r"^m\.pt2: not written, since it gives other than finite logits \[\d, 2\]"
        ):
            deployment._compared(run, classifier, ABOUT, Path("m.pt2"))


def test_missing_packages_are_told_with_what_brings_them(monkeypatch, classifier):
    monkeypatch.setattr(deployment, "ONNX", ("onnx", "a_package_of_no_one"))
    with pytest.raises(InputError, match=r"m\.onnx: ONNX needs a_package_of_no_one; pip install 'hybridgen\[onnx\]'"):
        write_onnx(classifier, ABOUT, Path("m.onnx"))
