"""What subnetworks share, against norms and variances written out."""

from math import isnan

import pytest
import torch
from torch import nn

from hybridgen.evaluation.sharing import (
    THRESHOLDS,
    Sharing,
    active_filters,
    encoder_norms,
    head_norms,
    influence,
    shared_by,
    sharing_rate,
    study,
)
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.multi_input import MultiInputClassifier
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError


def network(inputs: int = 2, name: str = "wrn-10-1", width: float = 1) -> MultiInputClassifier:
    torch.manual_seed(0)
    made = [make_network(name, 3, width=width) for _ in range(inputs)]
    return MultiInputClassifier(made, mean=(0.5,) * 3, std=(0.25,) * 3, ensemble="logits").eval()


def images(count: int = 7) -> torch.Tensor:
    return torch.rand(count, 3, 16, 8, generator=torch.Generator().manual_seed(1))


def test_norms_of_kernels_and_of_columns():
    made = network()
    for subnetwork in (0, 1):
        kernels, matrix = made.encoders[subnetwork].weight.tolist(), made.heads[subnetwork].weight.tolist()
        for place, kernel in enumerate(kernels):
            expected = sum(abs(value) for plane in kernel for row in plane for value in row)
            assert encoder_norms(made)[subnetwork, place].item() == pytest.approx(expected)
        for place in range(len(matrix[0])):
            expected = sum(abs(row[place]) for row in matrix)
            assert head_norms(made)[subnetwork, place].item() == pytest.approx(expected)
    assert encoder_norms(made).shape == (2, 16) and head_norms(made).shape == (2, 64)


@pytest.mark.parametrize(
    ("uses", "rate"),
    [
        ([[1, 0, 2], [2, 0, 2]], 0.75),  # what none uses does not count
        ([[1, 0], [0, 5]], 0.0),
        ([[3, 4], [3, 4]], 1.0),
        ([[1, 8], [2, 4], [4, 2]], 0.25),  # of three
    ],
)
def test_rates_are_least_over_largest(uses, rate):
    assert sharing_rate(torch.tensor(uses, dtype=torch.float64)) == rate


def test_nothing_is_shared_by_one_or_where_nothing_is():
    assert isnan(sharing_rate(torch.ones(1, 3, dtype=torch.float64)))
    assert isnan(sharing_rate(torch.zeros(2, 3, dtype=torch.float64)))


def test_filters_are_active_from_their_part_of_the_largest_of_their_layer_on():
    first, second = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 2, (1, 2), bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -9.0], [2.0, 2.0], [-1.0, 1.0], [0.0, 0.0]]).view(4, 2, 1, 1))
        second.weight.copy_(torch.tensor([1.0, 0.25]).view(2, 1, 1, 1).expand(2, 4, 1, 2))
    # L1 norms of 10, 4, 2 and 0, and of 8 and 2
    found = active_filters(nn.Sequential(first, nn.ReLU(), second), (0.2, 0.25, 0.3, 0.4, 0.5))
    assert found == pytest.approx((5 / 6, 4 / 6, 3 / 6, 3 / 6, 2 / 6))
    with pytest.raises(InputError, match="no convolution"):
        active_filters(nn.Linear(2, 2))


def test_influence_is_the_variance_over_the_images_of_an_input():
    made, some, fixed = network(3), images(), images(9)[8:]
    found = influence(made, some, fixed, batch=3)
    assert {name: uses.shape for name, uses in found.items()} == {f"stage {k}": (3, 8 * 2**k) for k in (1, 2, 3)}
    blocks = made.core.encoder.trunk.blocks  # one a stage
    for place in range(3):
        shown = [fixed.expand(7, -1, -1, -1)] * 3
        shown[place] = some
        with torch.no_grad():
            seen = sum(encoder(made.normalize(each)) for encoder, each in zip(made.encoders, shown, strict=True))
            maps = [seen := block(seen) for block in blocks[:2]]
            maps.append(made.core.forward_features(sum(made.encode(shown))))
        for uses, stage in zip(found.values(), maps, strict=True):
            torch.testing.assert_close(uses[place], stage.double().var(dim=0).mean(dim=(1, 2)), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("name", ["preact-resnet18", "fast-16-32x2", "cifar-densenet121"])
def test_stages_are_those_behind_which_maps_are_mixed(name):
    made = network(2, name, 1 if name.startswith("fast") else 0.25)
    if name.startswith("fast"):
        made.before.whiten(torch.eye(12, dtype=torch.float64))
    found = influence(made, images(), images(1))
    assert list(found) == [f"stage {k}" for k in range(1, len(found) + 1)] and len(found) > 1
    assert found[f"stage {len(found)}"].shape == (2, made.core.num_features)
    assert all((uses > 0).any(dim=1).all() for uses in found.values())


def test_an_input_that_is_not_encoded_has_no_influence_and_shares_nothing():
    made = network()
    with torch.no_grad():
        made.encoders[1].weight.zero_()
    found = shared_by(made, images(), images(1))
    for place, uses in found.uses.items():
        if place != "classifiers":
            assert not uses[1].any() and uses[0].any() and sharing_rate(uses) == 0
    assert 0 < sharing_rate(found.uses["classifiers"]) < 1
    assert not any(stage._forward_pre_hooks for stage in made.core.modules())


def test_equal_encoders_share_all_but_the_answers():
    made = network()
    made.encoders[1].load_state_dict(made.encoders[0].state_dict())
    found = shared_by(made, images(), images(1))
    for place, uses in found.uses.items():
        assert place == "classifiers" or sharing_rate(uses) == pytest.approx(1.0, abs=1e-6)


def test_a_map_varies_over_two_images_at_least():
    with pytest.raises(InputError, match="images: 1; two"):
        influence(network(), images(1), images(1))


def test_the_study_says_all_of_it():
    torch.manual_seed(0)
    alone = Classifier(make_network("wrn-10-1", 3), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    plain, one, several = (shared_by(made, images(), images(1)) for made in (alone, network(1), network(2)))
    assert plain.active == one.active and torch.equal(plain.uses["stage 2"], one.uses["stage 2"])
    found = study({"plain": plain, "two": several})
    assert found.values["thresholds"] == list(THRESHOLDS) == [0.2, 0.3, 0.4, 0.5]
    own = found.values["networks"]["two"]
    for place, uses in several.uses.items():
        assert own["uses"][place] == uses.tolist() and own["sharing"][place] == sharing_rate(uses)
    assert own["active_filters"] == list(several.active)
    assert set(found.values["networks"]["plain"]["sharing"].values()) == {None}
    (head, first, second) = (line.split() for line in found.table.splitlines()[:3])
    assert (head[0], first[0], second[0]) == ("%", "plain", "two")
    assert first[1:6] == ["–"] * 5 and first[6:] == [f"{100 * share:.1f}" for share in plain.active]
    assert second[1] == f"{100 * own['sharing']['encoders']:.1f}"
    titles = [axis.get_title() for sub in found.figure.subfigs for axis in sub.axes]
    assert titles[0] == f"encoders: {own['sharing']['encoders']:.0%} shared" and len(titles) == 6
    heads = ["encoders", "stage 1", "stage 2", "stage 3", "classifiers"]
    heads = ", ".join([*(f"shared {place}" for place in heads), *(f"active {bound:g}" for bound in THRESHOLDS)])
    assert " ".join(head[1:]).replace(",", "") == heads.replace(",", "")
    assert second[1:] == [f"{100 * share:.1f}" for share in (*own["sharing"].values(), *several.active)]
    *bars, curves = [axis for sub in found.figure.subfigs for axis in sub.axes]
    for axis, uses in zip(bars, several.uses.values(), strict=True):
        heights = torch.tensor([bar.get_height() for bar in axis.patches], dtype=torch.float64).view(2, -1)
        assert torch.equal(heights.sort(dim=1).values, uses.sort(dim=1).values)
        first = heights[0] / heights.amax(dim=0) - heights[1] / heights.amax(dim=0)
        assert (first.diff() <= 1e-12).all()  # features of the first subnetwork come first
    assert bars[0].get_ylabel() == "two" and curves.get_title() == "active filters of the core"
    for line, name, each in zip(curves.get_lines(), ("plain", "two"), (plain, several), strict=True):
        assert (line.get_label(), list(line.get_xdata())) == (name, list(THRESHOLDS))
        assert list(line.get_ydata()) == list(each.active)
    assert curves.yaxis.get_major_formatter()(0.125, 0) == "12.5 %"
    with pytest.raises(InputError, match="other: has the stages"):
        study({"two": several, "other": Sharing({"encoders": several.uses["encoders"]}, several.active)})
