"""The networks of the supervised half against the papers' figures, torchvision's classes and their own convention."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from hybridgen.networks.classifiers import NETWORKS, Classifier, load_classifier, make_network, save_classifier
from hybridgen.networks.wide_resnet import Normalize, WideResNetClassifier
from hybridgen.types import InputError

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}

SMALL = (
    ("cifar-resnet18", 1 / 8),
    ("cifar-resnet50", 1 / 8),
    ("cifar-densenet121", 1 / 8),
    ("preact-resnet18", 1 / 8),
    ("pyramidnet11-8", 1),
    ("wrn-10-1", 1),
)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(name: str, width: float, classes: int = 5) -> Classifier:
    return Classifier(make_network(name, classes, width=width), **STATISTICS)


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
    ("name", "classes", "exact"),
    [
        ("cifar-resnet18", 100, 11_220_132),
        ("cifar-resnet34", 100, 21_328_292),
        ("cifar-resnet50", 100, 23_705_252),
        ("cifar-densenet121", 100, 7_048_676),
        ("cifar-densenet161", 100, 26_681_380),
        ("wrn-28-2", 10, 1_467_610),
        ("wrn-28-10", 100, 36_536_884),
    ],
)
def test_parameters_exactly(name, classes, exact):
    with torch.device("meta"):
        assert parameters(make_network(name, classes)) == exact


@pytest.mark.parametrize(
    ("name", "classes", "width", "millions"),
    [
        ("pyramidnet200-240", 10, 1, 26.8),
        ("pyramidnet164-270", 100, 1, 27.3),
        ("preact-resnet18", 200, 2, 44.9),
        ("resnet50", 1000, 1, 25.56),
        ("pvt_v2_b1", 1000, 1, 14.0),
    ],
)
def test_parameters_in_millions(name, classes, width, millions):
    """CutMix (PyramidNet-200); thesis, 3.3.6; RecursiveMix, table 11; PVT v2. PyramidNet-164: the layers counted."""
    with torch.device("meta"):
        count = parameters(make_network(name, classes, width=width))
    assert round(count / 1e6, 2 if millions == 25.56 else 1) == millions


def test_parameters_of_densenet_follow_from_torchvisions():
    """The 3×3 stem has 40 weights a filter and colour less than torchvision's 7×7."""
    for depth, filters in ((121, 64), (161, 96)):
        with torch.device("meta"):
            theirs = getattr(torchvision.models, f"densenet{depth}")(num_classes=100)
            ours = make_network(f"cifar-densenet{depth}", 100)
        assert parameters(theirs) - parameters(ours) == 40 * 3 * filters


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
    ],
)
def test_feature_maps_at_32_pixels(name, channels, side, stages):
    with torch.device("meta"):
        classifier = Classifier(make_network(name, 10), **STATISTICS).eval()
        images = torch.empty(2, 3, 32, 32)
    assert classifier.channels == channels
    assert classifier.features(images).shape == (2, channels, side, side)
    assert classifier(images).shape == (2, 10)
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


def test_width_scales_every_filter():
    with torch.device("meta"):
        resnet = make_network("cifar-resnet18", 10, width=0.25)
        densenet = make_network("cifar-densenet121", 10, width=0.25)
        preact = make_network("preact-resnet18", 10, width=0.25)
    for network in (resnet, preact):
        assert [i["num_chs"] for i in network.feature_info][-4:] == [16, 32, 64, 128]
        assert network.conv1.out_channels == 16
    assert resnet.layer1[0].downsample is None
    assert densenet.features.denseblock1.denselayer1.conv2.out_channels == 8
    assert densenet.features.conv0.out_channels == 16


def test_initialisation():
    torch.manual_seed(0)
    for name, fan in (("cifar-resnet18", "out"), ("cifar-densenet121", "in"), ("wrn-10-1", "out")):
        for module in make_network(name, 10).modules():
            if isinstance(module, nn.Conv2d):
                out, into, height, width = module.weight.shape
                deviation = (2 / ((out if fan == "out" else into) * height * width)) ** 0.5
                assert module.weight.std().item() == pytest.approx(deviation, rel=0.2), name
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and not module.bias.any()


def test_torchvision_loads_the_deployed_networks_of_cifar():
    images = torch.randn(2, 3, 32, 32)
    for depth in (18, 50):
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=100)
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        ours = varied(make_network(f"cifar-resnet{depth}", 100)).eval()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(theirs.eval()(images), ours(images), rtol=1e-4, atol=1e-4)
    theirs = torchvision.models.densenet121(num_classes=100)
    theirs.features.conv0, theirs.features.pool0 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = varied(make_network("cifar-densenet121", 100)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs.eval()(images), ours(images), rtol=1e-4, atol=1e-4)


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


def test_bad_names_and_widths():
    for name in ("resnet51", "hf-hub:a/b", "local-dir:a", "resnet50.a1_in1k", "wrn-28", "pyramidnet200-", ""):
        with pytest.raises(InputError, match=rf"^network: {name!r} is unknown; .*cifar-resnet18.*timm's models"):
            make_network(name, 10)
    with pytest.raises(InputError, match=r"nearest: .*cifar-resnet18"):
        make_network("cifar-resnet-18", 10)
    with pytest.raises(InputError, match=r"^depth: 29 is not 6n \+ 4"):
        make_network("wrn-29-2", 10)
    with pytest.raises(InputError, match=r"^depth: 111 .* 9n \+ 2"):
        make_network("pyramidnet111-48", 10)
    for name in ("wrn-28-2", "pyramidnet11-8", "resnet50"):
        with pytest.raises(InputError, match=rf"^width: 2 has no meaning for {name}; .*preact-resnet18"):
            make_network(name, 10, width=2)
    for width in (0, -1, 0.3, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^width: .* is not a positive multiple of 1/8"):
            make_network("cifar-resnet18", 10, width=width)
    for name in (*NETWORKS, "wrn-10-1", "pyramidnet11-8", "resnet50"):
        with pytest.raises(InputError, match=r"^classes: 0 is below 1"):
            make_network(name, 0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vit_tiny_patch16_224", r"\(1, 197, 192\)"), ("swin_tiny_patch4_window7_224", r"\(1, 7, 7, 768\)")],
)
def test_networks_without_a_spatial_map_are_refused(name, shape):
    with torch.device("meta"):
        network = make_network(name, 10)
    with pytest.raises(InputError, match=rf"^network: \w+ gives features of shape {shape}; a map \[batch, "):
        Classifier(network, **STATISTICS)


def test_networks_without_timms_convention_are_refused():
    with pytest.raises(InputError, match=r"^network: ResNet has no forward_features, forward_head, num_features"):
        Classifier(torchvision.models.resnet18(), **STATISTICS)


def test_a_new_classifier_leaves_its_network_as_it_was():
    network = varied(make_network("cifar-resnet18", 5, width=1 / 8)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier = Classifier(network, **STATISTICS)
    assert classifier.network is network and classifier.training and network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in classifier.state_dict().values())


# --- files ----------------------------------------------------------------------------------------------


def saved(classifier: Classifier, path, name: str, width: float = 1, classes: int = 5, image_size: int = 24):
    names = [f"class {i}" for i in range(classes)]
    save_classifier(classifier, path, name=name, width=width, classes=names, image_size=image_size)
    return path


@pytest.mark.parametrize(("name", "width"), SMALL)
def test_a_classifier_comes_back_from_its_file(tmp_path, name, width):
    classifier = varied(small(name, width)).to(memory_format=torch.channels_last)
    state = torch.random.get_rng_state()
    loaded, classes, image_size = load_classifier(saved(classifier, tmp_path / "network.safetensors", name, width))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert classes == tuple(f"class {i}" for i in range(5)) and image_size == 24
    assert not loaded.training
    images = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(loaded(images), classifier.eval()(images), rtol=1e-5, atol=1e-5)
    mine, theirs = classifier.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


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
