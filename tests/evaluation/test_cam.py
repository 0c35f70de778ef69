"""Class activation maps against sums written out, on networks that are known to see."""

import math

import pytest
import torch
from torch import nn

from hybridgen.evaluation.cam import ROWS, cam, class_activation, load_networks, present_classes, share_inside
from hybridgen.evaluation.mixing_studies import Inputs
from hybridgen.networks.classifiers import Classifier, save_classifier
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}


def classifier(name: str = "cifar-resnet18", width: float = 1 / 8, classes: int = 5) -> Classifier:
    torch.manual_seed(0)
    made = Classifier(make_network(name, classes, width=width), **STATISTICS).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize(
    ("name", "width", "head"),
    [("cifar-resnet18", 1 / 8, "fc"), ("cifar-densenet121", 1 / 8, "classifier"), ("pvt_v2_b0", 1, "head")],
)
def test_maps_are_the_last_features_weighted_by_the_class(name, width, head):
    made = classifier(name, width)
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    classes = torch.tensor([[0, 4], [1, 1], [3, 2]])
    maps, probabilities = class_activation(made, images, classes)
    assert not maps.requires_grad and not probabilities.requires_grad
    assert all(parameter.grad is None for parameter in made.parameters())

    features, linear = made.features(images).detach(), getattr(made.network, head)
    for i in range(3):
        for j in range(2):
            c = int(classes[i, j])
            by_hand = sum(linear.weight[c, k].item() * features[i, k] for k in range(features.shape[1]))
            torch.testing.assert_close(maps[i, j], by_hand)
            logits = linear.weight @ features[i].mean(dim=(1, 2)) + linear.bias
            torch.testing.assert_close(maps[i, j].mean() + linear.bias[c], logits[c])
            exponents = [math.exp(logit) for logit in logits.tolist()]
            assert probabilities[i, j].item() == pytest.approx(exponents[c] / sum(exponents))


def test_maps_are_made_where_gradients_are_off():
    made, images, classes = classifier(), torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.tensor([[1], [2]])
    with torch.no_grad():
        within = class_activation(made, images, classes)[0]
    torch.testing.assert_close(within, class_activation(made, images, classes)[0])


def test_share_inside_is_of_what_is_above_zero():
    maps = torch.tensor([[[[3.0, -9.0], [1.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]], [[-1.0, -2.0], [0.0, -1.0]]]])
    region = torch.zeros(1, 3, 2, 2)
    region[..., 0, :] = 1
    torch.testing.assert_close(share_inside(maps, region), torch.tensor([[0.75, 0.5, 0.0]]))
    large = torch.zeros(1, 3, 8, 8)
    large[..., :4, :] = 1
    inside = share_inside(maps, large)[0]
    assert inside[1] == 0.5 and 0.5 < inside[0] < 0.75  # bilinearly, some of it crosses the border


def test_what_is_below_zero_takes_nothing_from_its_neighbours():
    """Clamped before it is resized: 4 and -8 become 4, 3, 1 and 0 (clamped afterwards 4, 1, 0 and 0)."""
    left = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]] * 3]])
    for maps, region in (
        (torch.tensor([[[[4.0, -8.0]]]]), left),
        (torch.tensor([[[[4.0], [-8.0]]]]), left.mT),
    ):
        torch.testing.assert_close(share_inside(maps, region), torch.tensor([[7 / 8]]))


def test_classes_of_an_image_are_the_largest_three_unless_told():
    targets = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.0, 0.5, 0.5, 0.0]])
    inputs = Inputs(torch.rand(2, 3, 4, 4), targets, None)
    assert present_classes(inputs).tolist() == [[1, 3, 2], [1, 2, -1]]
    assert present_classes(inputs, 1).tolist() == [[1], [1]] and present_classes(inputs, 9).shape == (2, 4)


class Seeing(Classifier):
    """Three classes, red, green and blue: the features are the colours themselves."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def features(self, images):
        return nn.functional.avg_pool2d(images, 2)

    def classify(self, features):
        return features.mean(dim=(2, 3))


class Blind(Seeing):
    """Sees the same everywhere."""

    def features(self, images):
        return torch.ones_like(images[..., ::2, ::2])


class Signed(Seeing):
    """For the first class to the left, against it to the right."""

    def features(self, images):
        return torch.tensor([[[4.0, -8.0]], [[0.0, 0.0]]]).expand(len(images), 2, 1, 2)


def test_maps_are_drawn_as_they_are_measured():
    inputs = Inputs(torch.rand(1, 3, 2, 4), torch.tensor([[1.0, 0.0]]), None)
    finding = cam({"signed": Signed()}, inputs, torch.zeros(1, 1, dtype=torch.int64), ("a", "b"), ("image",))
    (heat,) = [axis.images[1].get_array() for axis in finding.figure.axes if len(axis.images) == 2]
    assert heat.tolist() == [[4.0, 3.0, 1.0, 0.0]] * 2


def halves(count: int = 8) -> Inputs:
    """Red to the left, blue to the right; the object of each are its rows from the fifth on."""
    images = torch.zeros(count, 3, 8, 8)
    images[:, 0, :, :4] = images[:, 2, :, 4:] = 1
    places = torch.zeros(count, 8, 8, dtype=torch.int64)
    places[..., 4:] = 2
    objects = torch.zeros(count, 8, 8, dtype=torch.bool)
    objects[:, 4:] = True
    return Inputs(images, torch.tensor([[0.6, 0.0, 0.4]]).expand(count, -1), places, objects)


def test_a_network_that_sees_is_told_from_one_that_does_not():
    inputs = halves()
    chosen = present_classes(inputs)
    assert chosen.tolist() == [[0, 2]] * 8
    names = [f"image {i}" for i in range(8)]
    finding = cam({"seeing": Seeing(), "blind": Blind()}, inputs, chosen, ("red", "green", "blue"), names)
    seeing, blind = (finding.values["networks"][name] for name in ("seeing", "blind"))
    assert seeing["inside_region"] > 0.9
    assert seeing["inside_object"] == pytest.approx(seeing["inside_region"] / 2, rel=1e-5)
    assert blind["inside_region"] == pytest.approx(0.5) == seeing["area_region"]
    assert blind["inside_object"] == pytest.approx(0.25) == seeing["area_object"]
    assert len(finding.values["images"]) == 8
    first = finding.values["images"][0]
    assert first["image"] == "image 0" and [each["class"] for each in first["classes"]] == ["red", "blue"]
    logits = [0.5, 0.0, 0.5]
    expected = math.exp(0.5) / sum(map(math.exp, logits))
    assert first["classes"][1]["networks"]["seeing"]["probability"] == pytest.approx(expected)
    assert len(finding.figure.axes) == ROWS * (1 + 2 * 2)
    assert "16 maps of 8 images" in finding.table
    keys = ("probability", "inside_region", "area_region", "inside_object", "area_object")
    head, *rows = finding.table.splitlines()[:3]
    assert head.split("  ")[-5:] == [key.replace("_", " ") for key in keys]
    for line, (name, of) in zip(rows, (("seeing", seeing), ("blind", blind)), strict=True):
        assert line.split() == [name, *(f"{of[key]:.3f}" for key in keys)]
    titles = ["image", "seeing", "", "blind", ""]
    assert [axis.get_title() for axis in finding.figure.axes[:5]] == titles
    for row, image in enumerate(finding.values["images"][:ROWS]):
        axes = finding.figure.axes[5 * row : 5 * row + 5]
        assert axes[0].get_ylabel() == f"image {row}" and len(axes[0].images) == 1
        told = [(c["class"], c["networks"][name]) for name in ("seeing", "blind") for c in image["classes"]]
        for axis, (name, of) in zip(axes[1:], told, strict=True):
            assert axis.get_xlabel() == f"{name}: p = {of['probability']:.2f}\ninside {of['inside_region']:.2f}"
        red, blue = (axis.images[1].get_array() for axis in axes[1:3])
        assert red[:, :2].min() == 1 == blue[:, 6:].min() and not red[:, 6:].any() and not blue[:, :2].any()


def test_an_image_may_have_fewer_classes_and_no_regions():
    inputs = halves(2)
    targets = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]])
    inputs = Inputs(inputs.images, targets, None)
    chosen = present_classes(inputs, 2)
    assert chosen.tolist() == [[0, 2], [1, -1]]
    finding = cam({"seeing": Seeing()}, inputs, chosen, ("red", "green", "blue"), ("a", "b"))
    assert [len(image["classes"]) for image in finding.values["images"]] == [2, 1]
    assert finding.values["networks"]["seeing"].keys() == {"probability"}
    assert "3 maps of 2 images" in finding.table
    axes = finding.figure.axes
    assert [axis.get_xlabel().split(":")[0] for axis in axes] == ["", "red", "blue", "", "green", ""]
    assert "\n" not in axes[1].get_xlabel() and not axes[5].images  # nothing is inside; a gap
    probabilities = [c["networks"]["seeing"]["probability"] for i in finding.values["images"] for c in i["classes"]]
    assert finding.values["networks"]["seeing"]["probability"] == pytest.approx(sum(probabilities) / 3)


def test_whole_images_have_objects_but_no_regions():
    inputs = halves(2)
    whole = inputs._replace(places=torch.zeros_like(inputs.places))
    chosen = torch.zeros(2, 1, dtype=torch.int64)
    finding = cam({"seeing": Seeing()}, whole, chosen, ("red", "green", "blue"), ("a", "b"))
    assert finding.values["networks"]["seeing"].keys() == {"probability", "inside_object", "area_object"}


def test_images_of_one_name_are_refused():
    with pytest.raises(InputError, match="names: a, b, a; each image needs one of its own"):
        cam({"seeing": Seeing()}, halves(3), torch.zeros(3, 1, dtype=torch.int64), ("r", "g", "b"), ("a", "b", "a"))


def test_networks_of_several_files(tmp_path):
    def saved(name: str, classes: tuple[str, ...] = ("a", "b"), image_size: int = 16):
        made = Classifier(make_network("wrn-10-1", len(classes)), **STATISTICS)
        path = tmp_path / name / "network.safetensors"
        save_classifier(made, path, name="wrn-10-1", classes=classes, image_size=image_size)
        return path

    one, two = saved("run-one"), saved("run-two")
    networks, classes, image_size = load_networks([one, two])
    assert list(networks) == ["run-one", "run-two"] and classes == ("a", "b") and image_size == 16
    assert list(load_networks([one])[0]) == ["run-one"]
    for paths, says in (
        ([], "none; one or more"),
        ([one, one], "each once"),
        ([one, saved("c", ("a", "c"))], r"c/network.safetensors knows the classes a, c"),
        ([one, saved("d", image_size=32)], r"images of 32; the first one for 16"),
        ([one, tmp_path / "nowhere"], "nowhere: cannot be read"),
    ):
        with pytest.raises(InputError, match=says):
            load_networks(paths)
