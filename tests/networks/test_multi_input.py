"""Multi-input networks against the thesis's counts, against the plain networks that they are made of, and against sums
written out."""

from copy import deepcopy

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.members import ensembled
from hybridgen.networks.multi_input import MultiInputClassifier, SourceAttribution, unmix
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError

STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
KINDS = {
    "wrn-10-1": 1.0, "leaky-wrn-10-1-normalized": 1.0, "preact-resnet18": 0.125, "cifar-resnet18": 0.125,
    "cifar-densenet121": 0.25, "pyramidnet20-16": 1.0, "fast-16-32x2": 1.0, "resnet10t": 1.0,
    "resnet18": 0.125,
}  # fmt: skip
"""Names of networks and their widths."""


def networks(name: str, inputs: int, classes: int = 5, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    made = [make_network(name, classes, width=KINDS.get(name, 1.0)) for _ in range(inputs)]
    if name.startswith("fast"):
        images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for network in made:
            network.whiten(images)
    return made


def classifier(name: str, inputs: int, ensemble: str = "logits", **more) -> MultiInputClassifier:
    return MultiInputClassifier(networks(name, inputs, **more), **STATISTICS, ensemble=ensemble).double()


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def of_size(name: str, inputs: int, classes: int, width: float = 1) -> int:
    with torch.device("meta"):
        made = [make_network(name, classes, width=width) for _ in range(inputs)]
        return parameters(MultiInputClassifier(made, **STATISTICS, ensemble="logits"))


# --- sizes ------------------------------------------------------------------------------------------------------


def test_parameters_of_the_authors_code():
    """Of MixMo's code: WRN-28-10 with 100 classes."""
    assert of_size("wrn-28-10", 1, 100) == 36_536_884
    assert of_size("wrn-28-10", 2, 100) == 36_601_416


@pytest.mark.parametrize(
    ("width", "plain", "mixmo"),
    [
        (2, 1.48, 1.49), (3, 3.31, 3.33), (4, 5.87, 5.89), (5, 9.16, 9.19), (7, 17.92, 17.97), (10, 36.53, 36.60),
        (14, 71.55, 71.64),
    ],
)  # fmt: skip
def test_parameters_of_table_a17(width, plain, mixmo):
    """In millions; the table cuts some of them off, 36.536884 to 36.53 and 5.895 to 5.89."""
    for inputs, told in ((1, plain), (2, mixmo)):
        assert of_size(f"wrn-28-{width}", inputs, 100) / 1e6 == pytest.approx(told, abs=0.0101)


def test_parameters_of_resnet18_for_imagenet():
    """A.5.6: a second input adds a 7×7 convolution and a last layer."""
    one, two = (of_size("resnet18", inputs, 1000, 5) for inputs in (1, 2))
    assert two - one == 147 * 320 + (2560 + 1) * 1000


@pytest.mark.parametrize(("width", "told"), [(1, 11.2), (2, 44.9), (3, 100.5)])
def test_parameters_of_table_35(width, told):
    """PreActResNet-18-w with 200 classes, in millions; a second input adds a convolution and a last layer."""
    one, two = (of_size("preact-resnet18", inputs, 200, width) for inputs in (1, 2))
    assert one / 1e6 == pytest.approx(told, abs=0.3 if width == 3 else 0.1)
    assert two - one == 27 * 64 * width + (512 * width + 1) * 200


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_nothing_but_first_and_last_layers_is_there_several_times(name, inputs):
    made, (plain, *_) = classifier(name, inputs), networks(name, 1)
    again = sum(parameters(part) for part in (made.encoders[0], made.heads[0]))
    assert parameters(made) == parameters(plain) + (inputs - 1) * again
    assert made.inputs == inputs and all(encoder.bias is None for encoder in made.encoders)


# --- one input is the plain network -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_one_input_is_the_plain_network(name, training):
    """Output for output and gradient for gradient, from the same seed."""
    made = classifier(name, 1).train(training)
    plain = Classifier(networks(name, 1)[0], **STATISTICS).double().train(training)
    ours, theirs = images().requires_grad_(), images().requires_grad_()
    first, second = made(ours), plain(theirs)
    assert torch.equal(first, second) and torch.equal(made.members(images())[0], plain(images()))
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for outputs in (first, second):
        (outputs * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    there = sorted(p.grad.flatten().tolist() for p in made.parameters())
    assert there == sorted(p.grad.flatten().tolist() for p in plain.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_the_core_is_the_plain_networks_and_each_end_is_drawn_for_itself(name):
    made, (plain, *_) = classifier(name, 3), networks(name, 1)
    ours, theirs = dict(made.core.named_parameters()), dict(plain.double().named_parameters())
    assert ours and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert theirs.keys() - ours.keys() == {f"{made.places[0]}.weight", f"{made.places[1]}.weight",
                                           f"{made.places[1]}.bias"}  # fmt: skip
    for ends in (made.encoders, made.heads):
        kernels = [end.weight for end in ends]
        assert not any(torch.equal(kernels[a], kernels[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    # As far apart as two that are drawn independently
    flat = torch.stack([encoder.weight.flatten() for encoder in made.encoders])
    assert torch.corrcoef(flat).triu(1).abs().max() < 0.2


# --- several ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("name", ["wrn-10-1", "preact-resnet18", "cifar-resnet18"])
def test_inference_is_one_forward_of_the_sum_of_the_encodings(name, inputs):
    made = classifier(name, inputs).eval()
    shown = (images() - made.normalize.mean) / made.normalize.std
    stride = made.encoders[0].stride
    encoded = sum(F.conv2d(shown, encoder.weight, stride=stride, padding=1) for encoder in made.encoders)
    pooled = made.core.forward_features(encoded).mean((2, 3))
    expected = torch.stack([pooled @ head.weight.T + head.bias for head in made.heads])
    calls = []
    made.core.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(made.members(images()), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made(images()), expected.mean(0), rtol=1e-10, atol=1e-10)
    alike = made.encode([images()] * inputs)
    torch.testing.assert_close(made.decode(sum(alike)), expected, rtol=1e-10, atol=1e-10)


def test_each_input_has_its_own_encoder():
    made = classifier("wrn-10-1", 3)
    each = [images() * scale for scale in (1.0, 0.5, 0.25)]
    for encoded, encoder, own in zip(made.encode(each), made.encoders, each, strict=True):
        shown = (own - made.normalize.mean) / made.normalize.std
        torch.testing.assert_close(encoded, F.conv2d(shown, encoder.weight, padding=1))


def test_the_inputs_of_a_fast_network_share_its_whitening():
    made = classifier("fast-16-32x2", 2).eval()
    whitened = networks("fast-16-32x2", 1)[0].double().encoder.trunk.stem(made.normalize(images()))
    for encoded, encoder in zip(made.encode([images()] * 2), made.encoders, strict=True):
        torch.testing.assert_close(encoded, F.conv2d(whitened, encoder.weight, padding=1))


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_ensembles_by_hand(of):
    members = torch.tensor([[[2.0, 0.0, -1.0]], [[0.0, 3.0, 1.0]], [[-4.0, 0.0, 8.0]]], dtype=torch.float64)
    if of == "logits":
        expected = torch.tensor([[-2 / 3, 1.0, 8 / 3]], dtype=torch.float64)
        torch.testing.assert_close(ensembled(members, of), expected)
    else:
        each = [row.exp() / row.exp().sum() for row in members[:, 0]]
        torch.testing.assert_close(ensembled(members, of).exp()[0], sum(each) / 3)
    made = classifier("wrn-10-1", 2, of).eval()
    torch.testing.assert_close(made(images()), ensembled(made.members(images()), of))


def test_the_two_ensembles_differ():
    """One sure member against two that are a little for the other class."""
    members = torch.tensor([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    assert ensembled(members, "logits").argmax() == 0 and ensembled(members, "probabilities").argmax() == 0
    members = torch.tensor([[[9.0, 0.0]], [[0.0, 4.0]], [[0.0, 4.0]]])
    assert ensembled(members, "logits").argmax() == 0 and ensembled(members, "probabilities").argmax() == 1


def test_probabilities_of_nearly_nothing_stay_numbers():
    members = torch.tensor([[[1e4, 0.0]], [[1e4, 0.0]]], requires_grad=True)
    logits = ensembled(members, "probabilities")
    logits.sum().backward()
    assert logits.isfinite().all() and members.grad.isfinite().all()


# --- what each last layer sees ----------------------------------------------------------------------------------


def patch(rows: int = 32, columns: int = 16) -> torch.Tensor:
    """Masks of two members: of four images the upper three eighths of the rows, and the rest."""
    mask = (torch.arange(rows) < 3 * rows // 8).double()[:, None].expand(4, 1, rows, columns)
    return torch.stack([mask, 1 - mask])


@pytest.mark.parametrize("name", ["wrn-10-1", "fast-16-32x2", "resnet10t"])
def test_unmixing_with_a_full_mask_changes_nothing(name):
    made = classifier(name, 2).eval()
    mixed = sum(made.encode([images()] * 2))
    assert torch.equal(made.decode(mixed, torch.ones(2, 4, 1, 32, 16, dtype=torch.float64)), made.decode(mixed))
    assert torch.equal(made.decode(mixed, patch(), part=0.0), made.decode(mixed))
    assert not torch.allclose(made.decode(mixed, patch()), made.decode(mixed))


@pytest.mark.parametrize(("part", "touched"), [(0.0, 0), (0.25, 3), (0.3, 4), (0.5, 6), (1.0, 12)])
def test_partial_unmixing_touches_its_part_of_the_channels_alone(part, touched):
    features = torch.randn(4, 12, 8, 4, generator=torch.Generator().manual_seed(4))
    seen = unmix(features, patch(), part)
    assert seen.shape == (2, 4, 12, 8, 4) and seen.dtype == features.dtype
    for member, mask in enumerate(patch(8, 4)):
        assert torch.equal(seen[member, :, touched:], features[:, touched:])
        torch.testing.assert_close(seen[member, :, :touched], features[:, :touched] * mask.float(), rtol=0, atol=0)
    torch.testing.assert_close(seen[:, :, :touched].sum(dim=0), features[:, :touched])


def test_masks_are_brought_to_the_map_by_the_mean_over_each_place():
    """Whatever the sides; a single place is the same everywhere."""
    masks = torch.rand(2, 4, 1, 12, 10, generator=torch.Generator().manual_seed(5))
    seen = unmix(torch.ones(4, 3, 4, 2), masks, 1.0)
    for y in range(4):
        for x in range(2):
            expected = masks[..., 3 * y : 3 * y + 3, 5 * x : 5 * x + 5].mean(dim=(3, 4))
            torch.testing.assert_close(seen[..., y, x], expected.expand(2, 4, 3))
    everywhere = unmix(torch.ones(4, 3, 4, 2), masks[..., :1, :1], 1.0)
    torch.testing.assert_close(everywhere, masks[..., :1, :1].expand(2, 4, 3, 4, 2))
    with pytest.raises(InputError, match=r"^part: 1.5 is outside"):
        unmix(torch.ones(4, 3, 4, 2), masks, 1.5)


def test_no_gradient_comes_from_places_that_are_hidden():
    made, kept = classifier("wrn-10-1", 2).eval(), []
    whole = made.core.forward_features
    made.core.forward_features = lambda mixed: kept.append(whole(mixed)) or kept[-1].retain_grad() or kept[-1]
    for member in (0, 1):
        made.decode(sum(made.encode([images()] * 2)), patch(), part=0.25)[member].square().sum().backward()
        gradient, hidden = kept[-1].grad, patch(8, 4)[member].expand(4, 16, 8, 4) == 0
        assert not gradient[:, :16][hidden].any() and (gradient[:, :16][~hidden] != 0).all()
        assert (gradient[:, 16:] != 0).all() and gradient.shape[1] == 64


@pytest.mark.parametrize("name", ["wrn-10-1", "fast-16-32x2", "preact-resnet18"])
def test_the_size_of_the_last_map_is_known_beforehand(name):
    made = classifier(name, 2).eval()
    for shape in ((32, 16), (24, 40)):
        shown = torch.rand(1, 3, *shape, dtype=torch.float64)
        seen = made.core.forward_features(sum(made.encode([shown] * 2)))
        assert made.map_size(shown.to("meta")) == tuple(seen.shape[2:]) and len(set(seen.shape[2:])) == 2
    assert all(parameter.device.type == "cpu" for parameter in made.parameters())


@pytest.mark.parametrize("name", ["wrn-10-1", "preact-resnet18", "tf_mobilenetv3_small_minimal_100"])
def test_the_size_of_encodings_is_known_beforehand(name):
    """Also where the first convolution pads by the size of the images."""
    made = classifier(name, 2).eval()
    for shape in ((32, 16), (15, 24)):
        shown = torch.rand(1, 3, *shape, dtype=torch.float64)
        assert made.encoded_size(shown.to("meta")) == tuple(made.encode([shown] * 2)[0].shape[2:])


def test_kernels_of_no_length_stay_such():
    made = classifier("wrn-10-1", 2)
    with torch.no_grad():
        made.encoders[0].weight[3] = 0
    made.align("collinear")
    assert made.encoders[1].weight.isfinite().all() and not made.encoders[1].weight[3].any()


# --- one encoder, one head (table 3.4) ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn-10-1", "fast-16-32x2"])
@pytest.mark.parametrize(("encoder", "head"), [(True, True), (True, False), (False, True)])
def test_one_encoder_or_head_for_all_is_the_first_ones(name, encoder, head):
    made = MultiInputClassifier(networks(name, 3), **STATISTICS, ensemble="logits", one_encoder=encoder, one_head=head)
    made = made.double().eval()
    each = classifier(name, 3)
    assert parameters(each) - parameters(made) == 2 * (
        encoder * parameters(each.encoders[0]) + head * parameters(each.heads[0])
    )
    assert made.inputs == 3 and len(made.heads) == (1 if head else 3)
    shown = made.before((images() - made.normalize.mean) / made.normalize.std)
    kernel = 3 * made.encoders[0].weight if encoder else sum(one.weight for one in made.encoders)
    pooled = made.core.forward_features(F.conv2d(shown, kernel, padding=1)).mean((2, 3))
    expected = torch.stack([pooled @ one.weight.T + one.bias for one in made.heads])
    torch.testing.assert_close(made.members(images()), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.plain()(images()), expected.mean(0), rtol=1e-10, atol=1e-10)
    again = MultiInputClassifier(networks(name, 3, seed=1), **STATISTICS, ensemble="logits", one_encoder=encoder,
                                 one_head=head).double().eval()  # fmt: skip
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again(images()), made(images()))


# --- source attribution (4.3.3.1, 5.2) ---------------------------------------------------------------------------


def attributed(name: str, inputs: int, attribution: str) -> MultiInputClassifier:
    more = dict(ensemble="logits", one_encoder=True, attribution=attribution)
    return MultiInputClassifier(networks(name, inputs), **STATISTICS, **more).double()


def maps(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("encoding", [False, True])
def test_equations_45_and_46_place_by_place(encoding):
    torch.manual_seed(0)
    made = SourceAttribution(3, 4, encoding=encoding).double()
    features, masks = maps(2, 4, 3, 5), maps(3, 2, 1, 6, 10, seed=4).softmax(dim=0)
    expected = features.clone()
    for i in range(3):
        for row in range(3):
            for column in range(5):
                here = features[:, :, row, column]
                s = made.bias[i] + (here @ made.weight[i].T if encoding else 0)
                share = masks[i, :, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2))
                expected[:, :, row, column] += share[:, None] * s
    torch.testing.assert_close(made(features, masks), expected)


def test_an_embedding_is_an_encoding_of_no_weight():
    torch.manual_seed(0)
    encoding, embedding = (SourceAttribution(2, 4, encoding=each).double() for each in (True, False))
    with torch.no_grad():
        encoding.weight.zero_()
        encoding.bias.copy_(embedding.bias)
    features, masks = maps(2, 4, 3, 5), maps(2, 2, 1, 3, 5).softmax(dim=0)
    torch.testing.assert_close(encoding(features, masks), embedding(features, masks))
    torch.testing.assert_close(encoding.each(features), embedding.each(features))


def test_attributions_are_drawn_as_linear_layers():
    torch.manual_seed(5)
    made = SourceAttribution(2, 16, encoding=True)
    torch.manual_seed(5)
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    assert torch.equal(made.weight, torch.stack([first.weight, second.weight]))
    assert torch.equal(made.bias, torch.stack([first.bias, second.bias]))


@pytest.mark.parametrize("attribution", ["embedding", "encoding"])
@pytest.mark.parametrize("name", ["wrn-10-1", "fast-16-32x2", "cifar-densenet121"])
def test_each_last_layer_sees_an_image_as_its_own_inputs(name, attribution):
    """By as many forwards as inputs, each with the mask of one input alone; and by the plain network."""
    made = attributed(name, 3, attribution)
    made(images())  # running statistics of its own
    made.eval()
    mixed = 3 * made.encode([images()] * 3)[0]
    expected = []
    for i in range(3):
        whole = torch.zeros(3, 4, 1, 1, 1, dtype=torch.float64)
        whole[i] = 1
        expected.append(made.decode(mixed, masks=whole)[i])
    torch.testing.assert_close(made.members(images()), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected[0], made.decode(mixed, masks=whole)[0])
    torch.testing.assert_close(made.plain()(images()), made(images()), rtol=1e-9, atol=1e-9)
    kept = made.state_dict()
    again = attributed(name, 3, attribution).eval()
    again.load_state_dict(kept)
    torch.testing.assert_close(again(images()), made(images()))


def test_each_input_is_told_apart_by_gradient_of_its_own():
    made = attributed("wrn-10-1", 2, "encoding").eval()
    masks = torch.zeros(2, 4, 1, 1, 1, dtype=torch.float64)
    masks[1] = 1
    made.decode(made.encode([images()] * 2)[0], masks=masks).sum().backward()
    assert not made.attribution.weight.grad[0].any() and made.attribution.weight.grad[1].any()
    assert not made.attribution.bias.grad[0].any() and made.attribution.bias.grad[1].any()


def test_maps_that_are_not_averaged_have_no_attribution():
    class Largest(Tokens):
        def forward_head(self, features):
            return self.last(features.amax((2, 3)))

    made = Largest(nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 5))
    with pytest.raises(InputError, match=r"^network: Largest does not average its last map"):
        MultiInputClassifier([made], **STATISTICS, ensemble="logits", attribution="encoding")


def test_one_last_layer_has_no_attribution():
    with pytest.raises(InputError, match=r"^attribution: encoding, but one last layer answers for all"):
        MultiInputClassifier(
            networks("wrn-10-1", 2), **STATISTICS, ensemble="logits", one_head=True, attribution="encoding"
        )


# --- the plain network that computes the same -------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_an_ensemble_of_logits_is_a_plain_network_too(name, inputs):
    made = classifier(name, inputs)
    made(images())  # running statistics of its own
    before = deepcopy(made.state_dict())
    plain = made.plain()
    assert (
        isinstance(plain, Classifier) and not plain.training and parameters(plain) == parameters(networks(name, 1)[0])
    )
    assert plain.network.state_dict().keys() == networks(name, 1)[0].state_dict().keys()
    torch.testing.assert_close(plain(images()), made.eval()(images()), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_copies_and_compiled_ones_compute_the_same(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # compiled code cannot look into the tests' checks
    torch._dynamo.reset()
    made = classifier("wrn-10-1", 2).eval()
    expected = made(images())
    made.compile(backend="eager")
    torch.testing.assert_close(made(images()), expected)
    assert deepcopy(made)._compiled is None
    torch.testing.assert_close(deepcopy(made)(images()), expected)


# --- what cannot be ---------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    num_classes = 5

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward_features(self, images): ...

    def forward_head(self, features): ...


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Tokens(nn.Linear(3, 4), nn.Linear(4, 5)), "the first layer of Tokens is no convolution, but 'first.weight'"),
        (Tokens(nn.Conv2d(3, 4, 1), nn.Linear(4, 5)), "the first layer of Tokens is a convolution with a bias"),
        (Tokens(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1)), "the last layer of Tokens, 'last', is no linear"),
        (Tokens(nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 6)), "the last layer of Tokens, 'last', is no linear"),
        (nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)), "Sequential has no forward_features, forward_head"),
    ],
)
def test_networks_of_other_shapes_are_refused(network, words):
    with pytest.raises(InputError, match=f"^network: {words}"):
        MultiInputClassifier([network], **STATISTICS, ensemble="logits")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pvt_v2_b1_li", "convnext_atto"])
def test_so_are_timms_without_such_a_convolution(name):
    with torch.device("meta"), pytest.raises(InputError, match=r"^network: the first layer of "):
        MultiInputClassifier([make_network(name, 5)], **STATISTICS, ensemble="logits")


def test_other_numbers_of_networks_and_batches_are_refused():
    for given in ([], [*networks("wrn-10-1", 1), *networks("fast-16-32x2", 1)]):
        with pytest.raises(InputError, match=r"^inputs: .* of one kind|^inputs: 0 networks"):
            MultiInputClassifier(given, **STATISTICS, ensemble="logits")
    with pytest.raises(InputError, match=r"^inputs: 3 batches for 2 encoders"):
        classifier("wrn-10-1", 2).encode([images()] * 3)
    with pytest.raises(InputError, match=r"^ensemble: of probabilities"):
        classifier("wrn-10-1", 2, "probabilities").plain()
