"""The networks of every recipe against the papers' figures and torchvision's classes; names."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from hybridgen.networks.registry import NETWORKS, leaky_wrn, make_network, set_batch_norm_momentum
from hybridgen.networks.wide_resnet import WideResBlock
from hybridgen.types import InputError


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
        ("resnet18", 1000, 11_689_512),
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


def test_resnet18_is_timms_and_torchvisions_in_every_width():
    """ResNet-18-w (thesis A.5.6), whose weights timm's own network loads at width 1; parameters layer by layer."""
    torch.manual_seed(0)
    ours, theirs = varied(make_network("resnet18", 7)).eval(), timm.create_model("resnet18", num_classes=7).eval()
    assert [tuple(each.shape) for each in ours.parameters()] == [tuple(each.shape) for each in theirs.parameters()]
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 40)
    torch.testing.assert_close(ours(images), theirs(images))
    assert not make_network("resnet18", 7).layer2[0].bn2.weight.any()  # timm's habit
    for width in (0.5, 3, 7):
        f = round(64 * width)
        blocks = sum(
            9 * before * n + 9 * n * n + 4 * n + 18 * n * n + 4 * n + (before * n + 2 * n if before != n else 0)
            for before, n in zip((f, f, 2 * f, 4 * f), (f, 2 * f, 4 * f, 8 * f), strict=True)
        )
        with torch.device("meta"):
            made = make_network("resnet18", 1000, width=width)
        assert parameters(made) == 3 * 49 * f + 2 * f + blocks + (8 * f + 1) * 1000


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


@pytest.mark.parametrize("name", [*NETWORKS, "fast", "leaky-wrn-10-1", "convit-12-3-1-patch4", "cait-12-3-1-patch4"])
def test_tensors_move_with_their_network(name):
    """Those that are neither parameters nor buffers would stay on the CPU."""
    with torch.device("meta" if name in NETWORKS else "cpu"):
        made = make_network(name, 10, image_size=32)
    left = [(type(part).__name__, field) for part in made.modules() for field, value in vars(part).items()
            if isinstance(value, torch.Tensor)]  # fmt: skip
    assert not left


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


def test_bad_names_and_widths():
    for name in (
        "resnet51",
        "hf-hub:a/b",
        "local-dir:a",
        "resnet50.none",
        "wrn-28",
        "pyramidnet200-",
        "wrn-28-2-",
        "",
        "wrn-28-2-normalized",
        "leaky-wrn-28-2-normalised",
        "pyramidnet200-240-normalized",
        "fast-",
        "fastx3",
        "fast-32-",
        "fast-32x",
        "fast-32-64x2x2",
        "fast-32-normalized",
        ".a1_in1k",
    ):
        with pytest.raises(InputError, match=rf"^network: {name!r} is unknown; .*cifar-resnet18.*timm's models"):
            make_network(name, 10)
    with pytest.raises(InputError, match=r"nearest: .*cifar-resnet18"):
        make_network("cifar-resnet-18", 10)
    with pytest.raises(InputError, match=r"^depth: 29 is not 6n \+ 4"):
        make_network("wrn-29-2", 10)
    with pytest.raises(InputError, match=r"^depth: 111 .* 9n \+ 2"):
        make_network("pyramidnet111-48", 10)
    with pytest.raises(InputError, match=r"nearest: .*fast"):
        make_network("fasd", 10)
    for name in ("wrn-28-2", "pyramidnet11-8", "resnet50", "fast", "fast-8-8"):
        with pytest.raises(InputError, match=rf"^width: 2 has no meaning for {name}; .*preact-resnet18"):
            make_network(name, 10, width=2)
    for width in (0, -1, 0.3, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^width: .* is not a positive multiple of 1/8"):
            make_network("cifar-resnet18", 10, width=width)
    for name in (*NETWORKS, "wrn-10-1", "pyramidnet11-8", "resnet50", "fast"):
        with pytest.raises(InputError, match=r"^classes: 0 is below 1"):
            make_network(name, 0)


@pytest.mark.parametrize(
    ("name", "slope", "normalized"),
    [("wrn-10-2", 0.0, False), ("leaky-wrn-10-2", 0.1, False), ("leaky-wrn-10-2-normalized", 0.1, True)],
)
def test_wide_resnets_by_name(name, slope, normalized):
    network = make_network(name, 5)
    blocks = [module for module in network.modules() if isinstance(module, WideResBlock)]
    assert [block.slope for block in blocks] == [slope] * 3 and network.encoder.slope == slope
    assert blocks[0].conv1.out_channels == 32 and network.num_classes == 5
    shortcuts = [nn.Conv2d, nn.BatchNorm2d] if normalized else [nn.Conv2d]
    for block in blocks:
        parts = block.shortcut if normalized else [block.shortcut]
        assert [type(part) for part in parts] == shortcuts


def test_pvt_with_linear_attention_is_timms():
    """RecursiveMix: 12.91 M parameters. The keys and values are those of a map pooled to 7×7."""
    with torch.device("meta"):
        network = make_network("pvt_v2_b1_li", 1000)
        theirs = PyramidVisionTransformerV2(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(2,) * 4,
                                            linear=True)  # fmt: skip
    assert round(parameters(network) / 1e6, 2) == 12.91
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert all(stage.blocks[0].attn.pool.output_size == 7 for stage in network.stages)


def test_a_tag_brings_its_weights_under_a_new_head(tmp_path, monkeypatch):
    """From a file in the place of the hub."""
    create = timm.create_model
    theirs = varied(create("resnet10t", num_classes=1000))
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: create(*a, pretrained_cfg_overlay=overlay, **o))
    ours = make_network("resnet10t.c3_in1k", 7)
    body = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, body[name]), name
    assert ours.fc.out_features == ours.num_classes == 7
    fresh = make_network("resnet10t.c3_in1k", 7, pretrained=False)
    assert not torch.equal(fresh.conv1[0].weight, ours.conv1[0].weight)


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("gone"), KeyError()])
def test_weights_that_cannot_be_had(monkeypatch, error):
    def fails(*_, **options):
        assert options["pretrained"]
        raise error

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        InputError, match=r"^network: the pretrained weights of resnet18\.a1_in1k could not be had"
    ) as caught:
        make_network("resnet18.a1_in1k", 10)
    assert "\n" not in str(caught.value)
    assert ("no route to host" if isinstance(error, OSError) else str(error) or "KeyError") in str(caught.value)


def test_an_unknown_tag_is_answered_with_tags():
    with pytest.raises(InputError, match=r"^network: 'resnet18\.a1_in2k' is unknown; .*nearest: .*resnet18\.a1_in1k"):
        make_network("resnet18.a1_in2k", 10)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("wrn-1000000000-2", "depth: 1000000000 of wrn-1000000000-2 is above 1000"),
        (f"wrn-1{'0' * 90}-2", "depth: 10+ of "),
        ("leaky-wrn-28-101", "width: 101 of leaky-wrn-28-101 is above 100"),
        ("pyramidnet1001-48", "depth: 1001 "),
        ("pyramidnet200-1000000000", "alpha: 1000000000 of "),
        ("fast-32-10001", "filters: 10001 of fast-32-10001 is above 10000"),
        ("fast" + 13 * "-8", "blocks: 13 of "),
        ("fast-8-8x101", "convolutions: 101 of "),
    ],
)
def test_what_no_machine_holds_is_refused_before_it_is_built(name, field, monkeypatch):
    for made in ("PyramidNet", "WideResNetClassifier", "FastClassifier"):
        monkeypatch.setattr(f"hybridgen.networks.registry.{made}", None)
    with pytest.raises(InputError, match=rf"^{field}"):
        make_network(name, 10)


def test_a_limit_itself_is_taken():
    assert leaky_wrn("leaky-wrn-1000-100") == (1000, 100, False)


def test_a_width_that_no_machine_holds():
    with pytest.raises(InputError, match=r"^width: 1000000\.0 of cifar-resnet18 is above 100"):
        make_network("cifar-resnet18", 10, width=1e6)


@pytest.mark.parametrize(
    "name", ["leaky-wrn-10-1-normalized", "efficientnet_b0", "cifar-resnet18", "fast", "vit_tiny_patch16_224"]
)
def test_momentum_of_batch_norms_is_torchs(name):
    """One batch moves the running mean by this part of the way to the batch's."""
    network = make_network(name, 3).train()
    assert set_batch_norm_momentum(network, 0.001) is network
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    assert bool(norms) == (name != "vit_tiny_patch16_224")
    for norm in norms:
        inputs = torch.randn(4, norm.num_features, 3, 5) + 7
        norm(inputs)
        torch.testing.assert_close(norm.running_mean, 0.001 * inputs.mean(dim=(0, 2, 3)))
    for bad in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"^momentum: .* is outside \(0, 1\]"):
            set_batch_norm_momentum(network, bad)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_timms_networks_that_take_no_images_of_a_size_are_refused(name):
    with pytest.raises(InputError, match=rf"^network: {name} takes no images of 16×16 \(.*\); give another --network"):
        make_network(name, 3, image_size=16)


def test_timms_networks_have_seen_an_image_and_are_what_they_were():
    """In training mode, and with statistics of none."""
    torch.manual_seed(0)
    seen = make_network("resnet10t", 3, image_size=16)
    torch.manual_seed(0)
    for (name, mine), theirs in zip(
        seen.state_dict().items(), timm.create_model("resnet10t", num_classes=3).state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert all(part.training for part in seen.modules())
