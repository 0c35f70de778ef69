"""Classifiers against the networks inside, torchvision's classes and those of the semi-supervised half; their files."""

import copy
from functools import partial

import jaxtyping
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from hybridgen.networks.cifar import cifar_resnet
from hybridgen.networks.classifiers import Classifier, about_classifier, load_classifier, save_classifier
from hybridgen.networks.fast import FastClassifier, Whitening
from hybridgen.networks.registry import NETWORKS, make_network
from hybridgen.networks.wide_resnet import Normalize, TwoHeadClassifier, WideResNetClassifier
from hybridgen.types import InputError

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}

SMALL = (
    ("cifar-resnet18", 1 / 8),
    ("cifar-resnet50", 1 / 8),
    ("cifar-densenet121", 1 / 8),
    ("preact-resnet18", 1 / 8),
    ("pyramidnet11-8", 1),
    ("wrn-10-1", 1),
    ("fast-8-16-24", 1),
)


def small(name: str, width: float, classes: int = 5, heads: int = 1) -> Classifier:
    network = make_network(name, classes, width=width)
    if isinstance(network, FastClassifier):
        network.whiten(torch.randn(4, 3, 16, 12))
    return Classifier(network, **STATISTICS, heads=heads)


def varied(module: nn.Module) -> nn.Module:
    """Batch-norms with statistics and weights of their own, so that one left out or in the wrong place shows."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize(
    ("name", "channels", "side", "stages"),
    [
        ("cifar-resnet18", 512, 4, 4),
        ("cifar-resnet50", 2048, 4, 4),
        ("cifar-densenet121", 1024, 4, 3),
        ("cifar-densenet161", 2208, 4, 3),
        ("pyramidnet164-270", 4 * 286, 8, 3),
        ("wrn-28-10", 640, 8, 3),
        ("preact-resnet18", 512, 2, 4),
        ("pvt_v2_b1", 512, 1, 4),
        ("fast", 128, 4, 3),
    ],
)
def test_feature_maps_at_32_pixels(name, channels, side, stages):
    with torch.device("meta"):
        classifier = Classifier(make_network(name, 10), **STATISTICS).eval()
        images = torch.empty(2, 3, 32, 32)
    assert classifier.channels == channels
    features = classifier.features(images)
    assert features.shape == (2, channels, side, side)
    assert classifier.classify(features).shape == (2, 10)
    assert len(classifier.stages) == stages


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_stages_are_entered_one_after_the_other_with_maps_of_the_listed_size(name, width):
    classifier = small(name, width)
    listed = {classifier.network.get_submodule(i["module"]): i for i in classifier.network.feature_info}
    entered = []
    for stage in classifier.stages:
        stage.register_forward_hook(lambda module, inputs, output: entered.append((module, inputs[0], output)))
    classifier(torch.rand(2, 3, 32, 32))
    assert [module for module, _, _ in entered] == list(classifier.stages)
    for module, before, after in entered:
        assert before.ndim == 4
        assert after.shape[1] == listed[module]["num_chs"]
        assert after.shape[2] == 32 // listed[module]["reduction"]


@pytest.mark.parametrize(
    ("name", "made", "after"),
    [
        ("cifar-resnet18", ["layer1", "layer2"], [(64, 40, 24), (128, 20, 12)]),
        ("wrn-28-10", ["encoder.trunk.blocks.3", "encoder.trunk.blocks.7"], [(160, 40, 24), (320, 20, 12)]),
        ("leaky-wrn-28-2", ["encoder.trunk.blocks.3", "encoder.trunk.blocks.7"], [(32, 40, 24), (64, 20, 12)]),
        ("preact-resnet18", ["layer1", "layer2"], [(64, 20, 12), (128, 10, 6)]),
        ("pyramidnet11-270", ["layer1", "layer2"], [(4 * 106, 40, 24), (4 * 196, 20, 12)]),
        ("cifar-densenet121", ["features.transition1", "features.transition2"], [(128, 20, 12), (256, 10, 6)]),
        ("resnet50", ["layer1", "layer2"], [(256, 10, 6), (512, 5, 3)]),
        ("fast", ["encoder.trunk.blocks.0", "encoder.trunk.blocks.1"], [(32, 20, 12), (64, 10, 6)]),
        ("pvt_v2_b1_li", ["stages.0", "stages.1"], [(64, 10, 6), (128, 5, 3)]),
        ("regnety_002", ["s1", "s2"], [(24, 10, 6), (56, 5, 3)]),  # timm lists their stems
        ("resnetv2_50", ["stages.0", "stages.1"], [(256, 10, 6), (512, 5, 3)]),
    ],
)
def test_places_after_the_first_and_the_second_stage(name, made, after):
    """What goes into `stages[1:3]` is what the two first stages have made of 40×24 pixels."""
    with torch.device("meta"):
        classifier = Classifier(make_network(name, 10), **STATISTICS).eval()
        outputs, inputs = [], []
        for module in made:
            classifier.network.get_submodule(module).register_forward_hook(lambda _, i, output: outputs.append(output))
        for stage in classifier.stages[1:3]:
            stage.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        again = Classifier(classifier.network, **STATISTICS)
        assert again.channels and len(outputs) == len(inputs) == 0  # looking at it calls nobody
        classifier(torch.empty(2, 3, 40, 24))
    assert [each.shape[1:] for each in inputs] == after
    assert len(inputs) == len(outputs) == 2 and all(a is b for a, b in zip(inputs, outputs, strict=True))


def test_a_network_that_lists_what_it_has_not_is_refused():
    """Timm's HRNets and CoaTs."""
    network = small("wrn-10-1", 1).network
    network.feature_info = [dict(module="stage1")]
    with pytest.raises(InputError, match=r"network: .* lists stages that it has not .*stage1"):
        _ = Classifier(network, **STATISTICS).stages


def test_stages_of_a_wide_resnet_are_its_groups():
    classifier = small("wrn-22-1", 1)
    blocks = classifier.network.encoder.trunk.blocks
    assert classifier.stages == (blocks[0], blocks[3], blocks[6])


def test_a_map_mixed_before_a_stage_reaches_the_logits():
    """Zeros put in the place of every stage's input make all images alike."""
    images = torch.rand(3, 3, 32, 32)
    for name, width in SMALL:
        classifier = varied(small(name, width)).eval()
        assert not torch.allclose(*classifier(images)[:2])
        for stage in classifier.stages:
            handle = stage.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
            alike = classifier(images)
            handle.remove()
            torch.testing.assert_close(alike[0], alike[1])


@pytest.mark.parametrize(("name", "width"), SMALL)
@pytest.mark.parametrize("size", [(64, 48), (33, 27)])
def test_images_of_any_size_in_any_layout(name, width, size):
    """The logits are the head's of the features, those of the bare network on standardised images, in both layouts."""
    classifier = varied(small(name, width)).eval()
    images = torch.rand(2, 3, *size)
    logits = classifier(images)
    assert logits.shape == (2, 5)
    assert torch.equal(classifier.classify(classifier.features(images)), logits)
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(classifier.network((images - mean) / std), logits)
    last = classifier.to(memory_format=torch.channels_last)
    features = last.features(images.contiguous(memory_format=torch.channels_last))
    assert features.shape[1] == classifier.channels
    torch.testing.assert_close(last.classify(features), logits, rtol=1e-4, atol=1e-5)


def test_images_are_standardised_once():
    for name, width in SMALL:
        classifier = small(name, width)
        assert sum(isinstance(module, Normalize) for module in classifier.modules()) == 1
        assert not any(isinstance(module, Normalize) for module in classifier.network.modules())


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_gradient_reaches_images_and_all_parameters(name, width):
    classifier = small(name, width)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    dead = [name for name, parameter in classifier.named_parameters() if parameter.grad is None]
    assert not dead
    assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())


def test_wide_resnet_without_standardisation_is_the_same_network():
    torch.manual_seed(0)
    bare = varied(make_network("wrn-10-1", 5)).eval()
    whole = WideResNetClassifier(10, 1, 5, slope=0.0, **STATISTICS).eval()
    missing = whole.load_state_dict(bare.state_dict(), strict=False)
    assert missing.missing_keys == ["encoder.trunk.normalize.mean", "encoder.trunk.normalize.std"]
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(whole(images), Classifier(bare, **STATISTICS).eval()(images))
    with pytest.raises(InputError, match=r"^mean: None beside the other"):
        WideResNetClassifier(10, 1, 5, mean=None, std=STATISTICS["std"])


def test_torchvision_loads_resnet50_and_builds_a_detector_on_it():
    ours = varied(Classifier(make_network("resnet50", 1000), **STATISTICS)).eval()
    theirs = torchvision.models.resnet50()
    theirs.load_state_dict(ours.network.state_dict(), strict=True)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(ours.normalize(images)), ours(images), rtol=1e-4, atol=1e-4)

    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d
    )
    unused = backbone.body.load_state_dict(ours.network.state_dict(), strict=False)
    assert not unused.missing_keys
    assert sorted(unused.unexpected_keys) == ["fc.bias", "fc.weight"]
    last = backbone.eval().body(ours.normalize(images))["3"]
    torch.testing.assert_close(last, ours.features(images), rtol=1e-4, atol=1e-4)


def test_timm_loads_its_own():
    ours = make_network("pvt_v2_b0", 7)
    timm.create_model("pvt_v2_b0", num_classes=7).load_state_dict(ours.state_dict(), strict=True)
    assert Classifier(ours, **STATISTICS)(torch.rand(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vit_tiny_patch16_224", r"\(1, 197, 192\)"), ("swin_tiny_patch4_window7_224", r"\(1, 7, 7, 768\)")],
)
def test_networks_without_a_spatial_map_classify_all_the_same(name, shape):
    with torch.device("meta"):
        classifier = Classifier(make_network(name, 10), **STATISTICS, heads=2)
        images = torch.empty(1, 3, 224, 224)
        assert [logits.shape for logits in classifier(images)] == [(1, 10), (1, 10)]
        for use in (
            lambda: classifier.channels,
            lambda: classifier.stages,
            lambda: classifier.features(images),
        ):
            with pytest.raises(InputError, match=rf"^network: \w+ gives features of shape {shape}; a map \[batch, "):
                use()


def test_networks_without_timms_convention_are_refused():
    for heads, missing in ((1, "forward_features, forward_head, num_features;"), (2, ".*, num_features, num_classes;")):
        with pytest.raises(InputError, match=rf"^network: ResNet has no {missing}"):
            Classifier(torchvision.models.resnet18(), **STATISTICS, heads=heads)


@pytest.mark.parametrize(("suffix", "options"), [("", {}), ("-normalized", {"normalized_resampling": True})])
def test_under_one_seed_it_is_the_classifier_of_fixmatch_and_of_mean_teacher(suffix, options):
    """The same draws, so the same weights; the same operations, so the same bits."""
    images = torch.rand(3, 3, 24, 16)

    def made(make):
        torch.manual_seed(5)
        return make()

    ours = made(lambda: Classifier(make_network(f"leaky-wrn-10-1{suffix}", 5), **STATISTICS))
    theirs = made(lambda: WideResNetClassifier(10, 1, 5, **STATISTICS, **options))
    assert torch.equal(ours(images), theirs(images)) and torch.equal(ours.eval()(images), theirs.eval()(images))

    ours = made(lambda: Classifier(make_network(f"leaky-wrn-10-1{suffix}", 5), **STATISTICS, heads=2))
    after = torch.rand(1)
    theirs = made(lambda: TwoHeadClassifier(10, 1, 5, **STATISTICS, **options))
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(ours.network.head.weight, theirs.heads.predictions.weight)
    assert torch.equal(ours.consistency.weight, theirs.heads.consistency.weight)
    for train in (True, False):
        for own, other in zip(ours.train(train)(images), theirs.train(train)(images), strict=True):
            assert torch.equal(own, other)
    assert (ours.heads, made(lambda: small("wrn-10-1", 1)).heads) == (2, 1)


@pytest.mark.parametrize(
    ("name", "width"), [*SMALL, ("pvt_v2_b0", 1), ("mobilenetv3_small_050", 1), ("vit_tiny_patch16_224", 1)]
)
def test_both_heads_see_the_same(name, width):
    """With the weights of the network's last layer, consistency says what predictions say; gradient reaches both."""
    torch.manual_seed(0)
    classifier = small(name, width, heads=2).eval()
    last = next(part for part in reversed(list(classifier.network.modules())) if isinstance(part, nn.Linear))
    nn.init.normal_(last.weight)
    images = torch.rand(2, 3, *((224, 224) if name.startswith("vit") else (64, 48)))
    predictions, consistency = classifier(images)
    assert predictions.shape == consistency.shape == (2, 5) and not torch.allclose(predictions, consistency)
    consistency.square().sum().backward()
    first = next(classifier.network.parameters())
    assert first.grad.abs().sum() > 0 and classifier.consistency.weight.grad.abs().sum() > 0
    assert last.weight.grad is None
    assert not classifier.consistency.bias.any()
    classifier.consistency.load_state_dict(last.state_dict())
    again = classifier(images)
    torch.testing.assert_close(again[1], again[0])
    torch.testing.assert_close(again[0], predictions)


def test_the_head_of_consistency_is_initialised_as_fixmatchs():
    torch.manual_seed(0)
    weight = Classifier(make_network("cifar-resnet18", 100), **STATISTICS, heads=2).consistency.weight
    assert weight.std().item() == pytest.approx((2 / (512 + 100)) ** 0.5, rel=0.02)


def test_a_new_classifier_leaves_its_network_as_it_was():
    network = varied(make_network("cifar-resnet18", 5, width=1 / 8)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier = Classifier(network, **STATISTICS)
    assert classifier.network is network and classifier.training and network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in classifier.state_dict().values())


# --- compiled -------------------------------------------------------------------------------------------


class Counting:
    """A backend that runs graphs as they are, and counts convolutions in them and their calls."""

    def __init__(self):
        self.convolutions = 0

    def __call__(self, graph, inputs):
        held = sum("conv2d" in str(node.target) for node in graph.graph.nodes)

        def run(*given):
            self.convolutions += held
            return graph(*given)

        return run


@pytest.fixture
def compiling():
    """Without the tests' checks of annotations, which compiled code cannot look into; nothing left for others."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def shallow(monkeypatch):
    """One block a stage: each is looked into."""
    monkeypatch.setitem(NETWORKS, "cifar-resnet18", partial(cifar_resnet, "basic", (1, 1, 1, 1)))


COMPILED = [each for each in SMALL if each[0] in ("cifar-resnet18", "wrn-10-1", "fast-8-16-24")]


@pytest.mark.parametrize(("name", "width"), COMPILED)
def test_every_way_through_a_compiled_classifier_is_compiled(compiling, shallow, name, width):
    torch.manual_seed(0)
    plain = small(name, width, heads=2)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend=compiling)
    count = sum(isinstance(module, nn.Conv2d | Whitening) for module in plain.modules())
    images = torch.rand(3, 3, 24, 16)
    for use, convolutions in (
        (lambda made: made(images), count),
        (lambda made: made.classify(made.features(images)), count),
        (lambda made: (made.features(images),), count),
    ):
        compiling.convolutions = 0
        for own, expected in zip(use(compiled), use(plain), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
        assert compiling.convolutions == convolutions


@pytest.mark.parametrize(("name", "width"), [("pyramidnet11-8", 1)])
def test_hooks_that_come_and_go_are_heard_in_a_compiled_classifier(compiling, name, width):
    """Maps exchanged within the batch before a stage, in some steps and not in others, reach logits and gradients; all
    convolutions but a stem run compiled. Stages are parts of the network itself, or lie deeper."""
    torch.manual_seed(0)
    plain = small(name, width)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend=compiling)
    count = sum(isinstance(module, nn.Conv2d) for module in plain.modules())
    images = torch.rand(3, 3, 24, 16)
    unhooked = plain(images)
    for place in (None, 1, None, 2, 1, 0):
        logits, gradients = [], []
        for classifier in (plain, compiled):
            stages, seen = classifier.stages, []

            def change(module, inputs, seen=seen, place=place):
                seen.append(module)
                return (inputs[0].roll(1 + place % 2, 0),)

            compiling.convolutions = 0
            if place is None:
                logits.append(classifier(images))
            else:
                with stages[place].register_forward_pre_hook(change):
                    logits.append(classifier(images))
                assert seen == [stages[place]]
            classifier.zero_grad()
            (logits[-1] * torch.arange(15.0).view(3, 5)).sum().backward()
            gradients.append(next(classifier.network.parameters()).grad)
        assert compiling.convolutions >= count - (place is not None)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)
        assert torch.allclose(logits[0], unhooked, rtol=1e-3, atol=1e-4) == (place is None)
    assert not any("forward" in vars(module) for module in compiled.modules())


def test_a_copy_of_a_compiled_classifier_computes_with_its_own_weights(compiling):
    torch.manual_seed(0)
    compiled = small("wrn-10-1", 1)
    compiled.compile(backend=compiling)
    images = torch.rand(3, 3, 24, 16)
    compiled(images)
    average = copy.deepcopy(compiled)
    for parameter in average.parameters():
        nn.init.zeros_(parameter)
    compiling.convolutions = 0
    assert not average(images).any() and not average.features(images).any() and compiling.convolutions == 0
    assert compiled(images).any() and compiling.convolutions > 0
    assert compiled.state_dict().keys() == average.state_dict().keys()


class Tiny(nn.Module):
    """A stem and a stage, in timm's convention."""

    num_features = 4
    feature_info = ({"module": "stage"},)

    def __init__(self):
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward_features(self, images):
        return self.stage(self.stem(images))

    def forward_head(self, features, pre_logits=False):
        return features.mean((2, 3))


def test_the_default_backend_with_and_without_hooks(compiling):
    plain = Classifier(Tiny(), **STATISTICS)
    compiled = copy.deepcopy(plain)
    compiled.compile()
    images = torch.rand(2, 3, 2, 3)
    for hooked in (False, True):
        if hooked:
            for classifier in (plain, compiled):
                classifier.stages[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].flip(0),))
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)


# --- files ----------------------------------------------------------------------------------------------


def saved(classifier: Classifier, path, name: str, width: float = 1, classes: int = 5, image_size: int = 24):
    names = [f"class {i}" for i in range(classes)]
    save_classifier(classifier, path, name=name, width=width, classes=names, image_size=image_size)
    return path


def test_a_file_tells_what_it_is_of(tmp_path):
    path = saved(small("cifar-resnet18", 0.125), tmp_path / "network.safetensors", "cifar-resnet18", 0.125)
    about = about_classifier(path)
    assert (about.network, about.width, about.image_size, about.split_hash) == ("cifar-resnet18", 0.125, 24, None)
    assert about.classes == tuple(f"class {i}" for i in range(5))
    assert about.mean == pytest.approx(STATISTICS["mean"]) and about.std == pytest.approx(STATISTICS["std"])
    save_classifier(small("wrn-10-1", 1), path, name="wrn-10-1", classes=["a"], image_size=8, split_hash="0123abcd")
    assert about_classifier(path).split_hash == "0123abcd"


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_a_classifier_comes_back_from_its_file(tmp_path, name, width):
    classifier = varied(small(name, width)).to(memory_format=torch.channels_last)
    state = torch.random.get_rng_state()
    loaded, classes, image_size = load_classifier(saved(classifier, tmp_path / "network.safetensors", name, width))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert classes == tuple(f"class {i}" for i in range(5)) and image_size == 24
    assert not loaded.training
    images = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(loaded(images), classifier.eval()(images), rtol=1e-4, atol=1e-5)
    mine, theirs = classifier.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_head_of_consistency_stays_out_of_the_file(tmp_path):
    classifier = Classifier(varied(make_network("leaky-wrn-10-1", 5)), **STATISTICS, heads=2).eval()
    path = saved(classifier, tmp_path / "network.safetensors", "leaky-wrn-10-1")
    assert load_file(path).keys() == classifier.network.state_dict().keys()
    images = torch.rand(2, 3, 24, 16)
    assert torch.equal(load_classifier(path)[0](images), classifier(images)[0])


def test_a_file_of_a_pretrained_network_fetches_nothing(tmp_path, monkeypatch):
    classifier = small("resnet18", 1)

    def fetches(*_, **options):
        assert not options["pretrained"]
        return create(*_, **options)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", fetches)
    loaded, *_ = load_classifier(saved(classifier, tmp_path / "network.safetensors", "resnet18.a1_in1k"))
    assert all(torch.equal(*pair) for pair in zip(*map(nn.Module.parameters, (classifier, loaded)), strict=True))


def test_the_file_is_the_plain_network_that_torchvision_loads_strictly(tmp_path):
    classifier = varied(Classifier(make_network("cifar-resnet18", 100), **STATISTICS)).eval()
    weights = load_file(saved(classifier, tmp_path / "network.safetensors", "cifar-resnet18", classes=100))
    theirs = torchvision.models.resnet18(num_classes=100)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(weights, strict=True)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(theirs.eval()(classifier.normalize(images)), classifier(images), rtol=1e-4, atol=1e-4)


def test_detectors_take_all_of_a_resnet50s_file_but_its_last_layer(tmp_path):
    classifier = Classifier(make_network("resnet50", 7), **STATISTICS)
    weights = load_file(saved(classifier, tmp_path / "network.safetensors", "resnet50", classes=7))
    detection = torchvision.models.detection
    with torch.device("meta"):
        bodies = [
            detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet50", weights=None).body,
            detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone.body,
            detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone.body,
        ]
    for body in bodies:
        frozen = isinstance(body["bn1"], torchvision.ops.FrozenBatchNorm2d)
        unused = body.load_state_dict(weights, strict=False, assign=True)
        assert not unused.missing_keys
        assert set(unused.unexpected_keys) == {"fc.bias", "fc.weight"}, frozen
        assert torch.equal(body["layer4"][2].conv3.weight, classifier.network.layer4[2].conv3.weight)


def test_files_that_are_none(tmp_path):
    path = saved(small("wrn-10-1", 1), tmp_path / "network.safetensors", "wrn-10-1")
    content = path.read_bytes()

    def refused(says: str, content: bytes | None = None) -> None:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=says) as error:
            load_classifier(path)
        if not says.startswith(("changed", "does not fit")):  # which the weights tell
            with pytest.raises(InputError, match=says):
                about_classifier(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    changed = bytearray(content)
    changed[-3] ^= 1
    refused("changed: the SHA-256", bytes(changed))
    refused("damaged, or not a safetensors file", content[:-50])
    refused("damaged, or not a safetensors file", b"PK not this")
    refused("does not fit its own metadata .*wrn-11-1|depth", content.replace(b"wrn-10-1", b"wrn-11-1"))
    refused("does not fit its own metadata", content.replace(b"wrn-10-1", b"wrn-16-1"))
    save_file({"fc.weight": torch.zeros(2, 2)}, path)
    refused("its metadata lack network, width, classes, image_size, mean, std, weights_sha256; the network.safetensors")
    path.unlink()
    refused(r"cannot be read \(No such file")
    path.mkdir()
    refused(r"cannot be read \(Is a directory")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "network.safetensors"
    path.write_text("older")

    def fails(weights, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybridgen.networks.classifiers.save_file", fails)
    with pytest.raises(InputError, match=r"network\.safetensors: cannot be written: No space left"):
        saved(small("wrn-10-1", 1), path, "wrn-10-1")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["older"]
