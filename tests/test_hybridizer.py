"""The hybridizer as an artefact: what it computes, how it is saved and read, what it refuses."""

import hashlib
import json
import pickle
import re
import resource
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from hybridgen.assets import bundled
from hybridgen.data.datasets import Dataset, Part, load_dataset
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import make_split
from hybridgen.hybridizer import Hybridize, Hybridizer, Origin
from hybridgen.networks.autoencoder import METHODS, size_of
from hybridgen.networks.fast import Whitening, patch_covariance
from hybridgen.types import InputError

CLASSES = ("a", "b", "c", "d")
TINY = {"image_size": 16, "classes": 4}
OWN = {
    "scimix": {"network": "leaky-wrn-10-1", "nonsemantic_channels": 2, "generator_channels": (4, 6, 4)},
    "samosa": {"network": "leaky-wrn-10-1"},
    "adain": {"depth": 10, "width": 1, "stem": 4},
}
FAST = "fast-8-16-24"


def build(origin=None, method="scimix", **fields):
    """A tiny hybridizer with batch-norm statistics other than the initial ones."""
    torch.manual_seed(0)
    shape, network = METHODS[method]
    autoencoder = network(shape(**TINY | OWN[method] | fields))
    images = torch.rand(8, 3, autoencoder.architecture.image_size, autoencoder.architecture.image_size)
    for part in autoencoder.modules():
        if isinstance(part, Whitening):
            part.whiten(patch_covariance(images))
    autoencoder.classifier.train()
    autoencoder.decode(autoencoder.classifier(images)[0], autoencoder.nonsemantic_encoder(images))
    for parameter in (autoencoder.generator if method == "scimix" else autoencoder.decoder).parameters():
        parameter.data *= 1.5
    origin = origin or Origin("bars", "f" * 64, "0" * 16, CLASSES, {"epochs": 3.0}, method)
    return Hybridizer(autoencoder, origin)


@pytest.fixture(scope="module")
def hybridizer():
    return build()


@pytest.fixture(scope="module", params=METHODS)
def either(request):
    return build(method=request.param)


@pytest.fixture
def folder_of_either(either, tmp_path):
    either.save_pretrained(tmp_path / "artefact")
    return tmp_path / "artefact"


@pytest.fixture
def folder(hybridizer, tmp_path):
    hybridizer.save_pretrained(tmp_path / "artefact")
    return tmp_path / "artefact"


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def hybrids(hybridizer, images):
    with torch.no_grad():
        return hybridizer.hybridize(semantic=images, nonsemantic=images.flip(0))


# --- what it computes -----------------------------------------------------------------------------------


def test_hybrids_have_the_codes_of_their_parents(either, images):
    autoencoder = either.autoencoder
    semantic, nonsemantic = images, images.flip(0)
    if either.origin.method == "adain":
        z_c, logits = autoencoder.classifier.features(semantic)[-1], autoencoder.classifier.network(semantic)
    else:
        encoder, heads = autoencoder.classifier.encoder, autoencoder.classifier.heads
        z_c = encoder.trunk(semantic) if either.origin.method == "samosa" else encoder(semantic)
        logits = heads.predictions(encoder(semantic))
    z_r = autoencoder.nonsemantic_encoder(nonsemantic)
    hybrid = either.hybridize(semantic=semantic, nonsemantic=nonsemantic)
    assert torch.equal(hybrid, autoencoder.decode(z_c, z_r))
    assert torch.equal(either.encode_semantic(semantic), z_c)
    assert torch.equal(either.encode_nonsemantic(nonsemantic), z_r)
    assert torch.equal(either.classify(semantic), logits)
    both = either.encode_and_classify(semantic)
    assert torch.equal(both[0], z_c) and torch.equal(both[1], either.classify(semantic))
    assert torch.equal(either(images), either.hybridize(semantic=images, nonsemantic=images))


def test_images_are_in_zero_to_one(either, images):
    hybrid = hybrids(either, images)
    assert hybrid.shape == images.shape and hybrid.min() >= 0 and hybrid.max() <= 1


def test_pairs_do_not_meet(either, images):
    alone = torch.cat([hybrids(either, torch.stack([images[i], images[4 - i]]))[:1] for i in range(5)])
    torch.testing.assert_close(hybrids(either, images), alone)


@pytest.mark.parametrize("method", METHODS)
def test_always_in_evaluation_mode_and_its_statistics_never_change(images, method):
    hybridizer = build(method=method)
    before = {name: tensor.clone() for name, tensor in hybridizer.state_dict().items()}
    holder = nn.Sequential(hybridizer).train()
    assert hybridizer.train() is hybridizer and hybridizer.train(True) is hybridizer
    assert holder.training and not any(module.training for module in hybridizer.modules())
    hybrids(hybridizer, images)
    for name, tensor in hybridizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradient_to_the_images_and_to_no_parameter(either, images):
    assert not any(parameter.requires_grad for parameter in either.parameters())
    semantic, nonsemantic = images.clone().requires_grad_(), images.flip(0).requires_grad_()
    either.hybridize(semantic=semantic, nonsemantic=nonsemantic).square().sum().backward()
    assert semantic.grad.any() and nonsemantic.grad.any()
    assert all(parameter.grad is None for parameter in either.parameters())


@pytest.mark.parametrize("method", ["encode_semantic", "encode_nonsemantic", "classify", "forward"])
def test_wrong_image_size(either, method):
    with pytest.raises(InputError, match=r"^images: 3×32×32, but this hybridizer takes 3×16×16"):
        getattr(either, method)(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("method", ["encode_semantic", "encode_nonsemantic", "classify", "forward"])
def test_levels_are_no_images(either, method, unchecked):
    """As data sets hold them; they would pass for a very bright picture."""
    with pytest.raises(InputError, match=r"^images: torch.uint8; a hybridizer takes floats in \[0, 1\]"):
        getattr(either, method)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_images_that_are_not_square(either):
    with pytest.raises(InputError, match=r"^images: 3×16×32, but this hybridizer takes 3×16×16"):
        either.classify(torch.rand(2, 3, 16, 32))


# --- saving and reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["leaky-wrn-10-1", FAST])
@pytest.mark.parametrize("style", ["semantic", "nonsemantic"])
def test_round_trip_bit_for_bit(tmp_path, images, style, network):
    origin = Origin("bars", "e" * 64, "1" * 16, CLASSES, {"epochs": 3.0, "channels": [4, 4]})
    hybridizer = build(origin, style=style, network=network, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    hybridizer.save_pretrained(tmp_path)
    again = Hybridizer.from_pretrained(str(tmp_path))
    assert torch.equal(hybrids(again, images), hybrids(hybridizer, images))
    assert torch.equal(again.classify(images), hybridizer.classify(images))
    assert again.origin == origin and again.autoencoder.architecture == hybridizer.autoencoder.architecture
    assert not any(module.training for module in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(
    "fields",
    [{}, {"network": "leaky-wrn-10-1-normalized"}, {"image_size": 32, "network": "leaky-wrn-10-2"}, {"network": FAST}],
)
def test_round_trip_of_samosa_bit_for_bit(tmp_path, fields):
    origin = Origin("bars", "e" * 64, "1" * 16, CLASSES, {"epochs": 3.0}, "samosa")
    hybridizer = build(origin, "samosa", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), **fields)
    hybridizer.save_pretrained(tmp_path)
    again = Hybridizer.from_pretrained(tmp_path)
    images = torch.rand(5, 3, hybridizer.image_size, hybridizer.image_size)
    assert torch.equal(hybrids(again, images), hybrids(hybridizer, images))
    assert torch.equal(again.classify(images), hybridizer.classify(images))
    assert again.origin == origin and again.autoencoder.architecture == hybridizer.autoencoder.architecture
    assert not any(module.training for module in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("method", ["scimix", "samosa"])
def test_bundled_artefacts_are_read(method):
    """With the weights that they were trained to: their classifiers recognise digits."""
    folder = Path(__file__).parent.parent / "assets" / "hybridizers" / f"digits-m-{method}"
    hybridizer = Hybridizer.from_pretrained(folder)
    assert hybridizer.origin.method == method and hybridizer.autoencoder.architecture.network == "leaky-wrn-10-1"
    part = load_dataset("digits-m").test
    images = part.images.gather(torch.arange(100)) / 255
    with torch.no_grad():
        right = hybridizer.classify(images).argmax(dim=1) == part.labels[:100]
        error = (hybridizer(images) - images).square().mean()
    assert right.float().mean() > 0.7 and error < 0.03


def test_the_bundled_one_of_photographs_is_small_and_read():
    folder = Path(__file__).parent.parent / "assets" / "hybridizers" / "cifar10-scimix"
    assert (folder / "model.safetensors").stat().st_size < 3e6
    hybridizer = Hybridizer.from_pretrained(folder)
    architecture = hybridizer.autoencoder.architecture
    assert (hybridizer.origin.method, architecture.network, architecture.image_size) == ("scimix", "fast", 32)
    assert hybridizer.origin.classes[0] == "airplane" and len(hybridizer.origin.classes) == 10
    images = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)  # something smooth, which it reconstructs
    with torch.no_grad():
        assert (hybridizer(images) - images).square().mean() < 0.02


def test_reading_draws_nothing(folder_of_either):
    torch.manual_seed(0)
    Hybridizer.from_pretrained(folder_of_either)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


def test_saved_twice_is_the_same_and_another_replaces_it(hybridizer, folder, images):
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first.keys() == {"config.json", "model.safetensors"}
    hybridizer.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    other = build(mean=(0.1, 0.2, 0.3))
    other.save_pretrained(folder)
    assert torch.equal(hybrids(Hybridizer.from_pretrained(folder), images), hybrids(other, images))


def test_channels_last_makes_the_same_artefact(either, folder_of_either, tmp_path):
    build(method=either.origin.method).to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder_of_either / name).read_bytes()


def test_description_says_what_it_is(hybridizer, folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "hybridgen-hybridizer" and config["version"] == 2
    assert config["classes"] == list(CLASSES) and config["split_hash"] == "0" * 16
    assert config["architecture"]["image_size"] == 16 and config["training"] == {"epochs": 3.0}
    weights = (folder / "model.safetensors").read_bytes()
    assert config["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert load(weights).keys() == hybridizer.autoencoder.state_dict().keys()


def test_trained_with_one_backend_and_run_with_the_other(hybridizer, folder, tmp_path, images):
    theirs = Hybridizer.from_pretrained(folder, backend="stylegan2-pytorch")
    assert type(theirs.autoencoder.generator.blocks[0].conv1).__module__.startswith("stylegan2_pytorch")
    torch.testing.assert_close(hybrids(theirs, images), hybrids(hybridizer, images), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(hybrids(Hybridizer.from_pretrained(tmp_path), images), hybrids(hybridizer, images))


# --- faults ---------------------------------------------------------------------------------------------


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def replace_weights(folder, weights):
    """With a digest that fits: what remains are the contents."""
    (folder / "model.safetensors").write_bytes(weights)
    change_config(folder, lambda config: config.update(weights_sha256=hashlib.sha256(weights).hexdigest()))


def refused(folder, file, reason):
    with pytest.raises(InputError, match=reason) as error:
        Hybridizer.from_pretrained(folder)
    assert str(error.value).startswith(str(folder / file)) and "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"^hybridizer: .*/nothing is neither a folder nor a hub id"):
        Hybridizer.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("source", ["nothing", "./a/b", "../a", "~/a", "a/b/c", "/a"])
def test_paths_are_no_hub_ids(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match=r"neither a folder nor a hub id \(owner/name\)"):
        Hybridizer.from_pretrained(source)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file(folder, file):
    (folder / file).unlink()
    refused(folder, file, "cannot be read")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_truncated_weights(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "model.safetensors", "truncated or changed")


@pytest.mark.parametrize("place", [0, 8, 0.5, -1])
def test_one_flipped_bit_in_the_weights(folder, place):
    path = folder / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[int(place * len(weights)) if isinstance(place, float) else place] ^= 1
    path.write_bytes(weights)
    refused(folder, "model.safetensors", "truncated or changed: its SHA-256")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(version=1), "version 1; this hybridgen reads version 2"),
        (lambda c: c.pop("version"), "version None"),
        (lambda c: c.update(format="diffusers"), "not the description of a hybridizer"),
        (lambda c: c.update(method="cutmix"), "method 'cutmix'; this hybridgen reads scimix, samosa"),
        (lambda c: c.update(method=["samosa"]), "method \\['samosa'\\]; this hybridgen reads"),
        (lambda c: c.pop("method"), "method None; this hybridgen reads"),
        (
            lambda c: c.update(method="samosa"),
            "a samosa hybridizer has no generator_channels, nonsemantic_channels, style, upsampling",
        ),
        (lambda c: c.pop("format"), "not the description of a hybridizer"),
        (lambda c: c.pop("architecture"), "damaged description .*architecture"),
        (lambda c: c.pop("split_hash"), "damaged description .*split_hash"),
        (lambda c: c.pop("fingerprint"), "damaged description .*fingerprint"),
        (lambda c: c.pop("weights_sha256"), "damaged description .*weights_sha256"),
        (lambda c: c["architecture"].update(image_size=40), "damaged description .*image_size: 40"),
        (lambda c: c["architecture"].update(network="leaky-wrn-11-1"), "damaged description .*depth: 11"),
        (lambda c: c["architecture"].update(network=f"leaky-wrn-10-{10**12}"), "width: 10+ of leaky.* is above 100"),
        (lambda c: c["architecture"].update(network=f"leaky-wrn-{6 * 10**9 + 4}-1"), "depth: 6000000004 of .* above"),
        (lambda c: c["architecture"].update(network="fast-8-10001"), "filters: 10001 of fast-8-10001 is above 10000"),
        (lambda c: c["architecture"].update(network="fast" + "-8" * 13), "blocks: 13 of .* is above 12"),
        (lambda c: c["architecture"].update(network="wrn-10-1"), "network: 'wrn-10-1'; encoders are made from"),
        (lambda c: c["architecture"].update(nonsemantic_channels=10**6), "nonsemantic_channels: 1000000 is above"),
        (lambda c: c["architecture"].update(generator_channels=[8, 10**9]), "generator_channels: 1000000000 is above"),
        (lambda c: c["architecture"].update(image_size=2**40), "image_size: 1099511627776 is above 4096"),
        (lambda c: c["architecture"].update(image_size=16.0), "image_size: 16.0 is not a whole number"),
        (lambda c: c["architecture"].update(image_size="16"), "image_size: '16' is not a whole number"),
        (lambda c: c["architecture"].update(classes=True), "classes: True is not a whole number"),
        (lambda c: c["architecture"].update(network=[10]), r"network: \[10\] is not a text"),
        (lambda c: c["architecture"].update(mean=[0.5, float("nan"), 0.5]), "mean: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(mean=[0.5, float("inf"), 0.5]), "mean: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(std=[0.5, -float("inf"), 0.5]), "std: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(std=[0.5, 10**400, 0.5]), "std: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(mean=[0.5, True, 0.5]), "mean: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(mean=[0.5, 0.5]), "mean: .* is not a list of 3 finite"),
        (lambda c: c["architecture"].update(std=[0.5, 0, 0.5]), "std: .* deviation that is not above 0"),
        (lambda c: c["architecture"].update(generator_channels=[8, 8.0]), "generator_channels: .* whole numbers"),
        (lambda c: c["architecture"].update(style="visual"), "style: 'visual' is not 'semantic' or 'nonsemantic'"),
        (lambda c: c.update(dataset=5), "dataset: 5 is not a text"),
        (lambda c: c.update(split_hash=None), "split_hash: None is not a text"),
        (lambda c: c["architecture"].update(colour="red"), "damaged description .*colour"),
        (lambda c: c.update(architecture=[1]), "damaged description"),
        (lambda c: c.update(classes=["a", "b"]), "damaged description .*classes: 4 names"),
    ],
)
def test_changed_description(folder, change, reason):
    change_config(folder, change)
    refused(folder, "config.json", reason)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null", "\xff\xfe", "[" * 100_000])
def test_damaged_description(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json", "damaged JSON|not the description")


@pytest.mark.parametrize(
    "fields",
    [{"network": name} for name in ("leaky-wrn-10-2", "leaky-wrn-16-1", FAST)]
    + [{"nonsemantic_channels": 3}, {"style": "nonsemantic"}],
)
def test_architecture_that_does_not_fit_the_weights(folder, fields):
    change_config(folder, lambda config: config["architecture"].update(fields))
    refused(folder, "model.safetensors", "does not fit its description")


@pytest.mark.parametrize("network", ["leaky-wrn-298-100", "fast" + 12 * "-10000" + "x100"])
def test_networks_larger_than_their_weights_are_never_built(folder, network):
    """Their bounds alone would let a description ask for a terabyte."""
    change_config(folder, lambda config: config["architecture"].update(network=network))
    began = time.monotonic()
    refused(folder, "model.safetensors", r"does not fit its description.* bytes are needed, there are")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("scimix", {"network": "leaky-wrn-16-3"}),
        ("scimix", {"network": FAST}),
        ("samosa", {"network": "leaky-wrn-16-3-normalized"}),
        ("samosa", {"network": FAST}),
        ("adain", {"depth": 16, "width": 3, "stem": 5}),
    ],
)
def test_the_size_of_networks_is_that_of_their_weights(method, fields):
    shape, network = METHODS[method]
    architecture = shape(image_size=32, classes=7, **fields)
    state = torch.get_rng_state()
    size = size_of(architecture, network)
    assert torch.equal(torch.get_rng_state(), state)
    assert size == sum(len(t.detach().numpy().tobytes()) for t in network(architecture).state_dict().values())


def test_description_of_one_method_and_weights_of_the_other(tmp_path):
    ours = {method: tmp_path / method for method in METHODS}
    for method, place in ours.items():
        build(method=method).save_pretrained(place)
    configs = {method: json.loads((place / "config.json").read_text()) for method, place in ours.items()}
    for method, other in (("scimix", "samosa"), ("samosa", "scimix")):
        change_config(ours[method], lambda config, other=other: config.update(configs[other]))
        refused(ours[method], "model.safetensors", "truncated or changed")
        (ours[method] / "config.json").write_text(json.dumps(configs[other]))
        replace_weights(ours[method], (ours[method] / "model.safetensors").read_bytes())
        refused(ours[method], "model.safetensors", f"does not fit its description, that of a {other} hybridizer")
        architecture = configs[method]["architecture"]
        (ours[method] / "config.json").write_text(json.dumps(configs[other] | {"architecture": architecture}))
        unknown = "momentum" if method == "samosa" else "generator_channels, nonsemantic_channels, style, upsampling"
        refused(ours[method], "config.json", f"architecture: a {other} hybridizer has no {unknown}")


@pytest.mark.parametrize(("method", "said"), [("scimix", "samosa"), ("samosa", "scimix"), ("samosa", "cutmix")])
def test_networks_of_another_method_than_the_origin_says(method, said):
    with pytest.raises(InputError, match=f"^method: '{said}', but these are the networks of '{method}'"):
        build(Origin("bars", "f" * 64, "0" * 16, CLASSES, {}, said), method)


def test_method_that_is_needed(either):
    own = either.origin.method
    either.check_method(own)
    other = "samosa" if own == "scimix" else "scimix"
    with pytest.raises(InputError, match=f"^hybridizer: made by {own}; one made by {other} is needed"):
        either.check_method(other)


@pytest.mark.parametrize(
    "change", [lambda t: t.pop("generator.to_rgb.weight"), lambda t: t.update(extra=torch.zeros(1))]
)
def test_weights_that_lack_a_tensor_or_have_one_too_many(folder, change):
    tensors = load((folder / "model.safetensors").read_bytes())
    change(tensors)
    replace_weights(folder, save(tensors))
    refused(folder, "model.safetensors", "does not fit its description")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_is_refused_and_nothing_of_it_is_executed(folder, tmp_path, hybridizer):
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()
    sprung.unlink()

    replace_weights(folder, pickle.dumps(Trap(sprung)))
    refused(folder, "model.safetensors", "does not fit its description")
    torch.save({"trap": Trap(sprung), **hybridizer.autoencoder.state_dict()}, tmp_path / "weights")
    replace_weights(folder, (tmp_path / "weights").read_bytes())
    refused(folder, "model.safetensors", "does not fit its description")
    assert not sprung.exists()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_types_are_refused_where_nothing_checks_types(unchecked, tmp_path, method):
    """As a user runs it, without the type checks of the tests: an InputError for each, naming file."""
    build(method=method).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    wrong = ["x", None, 1.5, -1, [], {}, [None, 1, 2], ["a", "b", "c"]]
    cases = [{"architecture": good["architecture"] | {f: v}} for f in good["architecture"] for v in wrong]
    cases += [{"classes": v} for v in (4, None, [1, 2, 3, 4], ["a"])]
    for case in cases:
        path.write_text(json.dumps(good | case))
        with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}") as refused:
            Hybridizer.from_pretrained(tmp_path)
        assert "\n" not in str(refused.value), case
    path.write_text(json.dumps(good))
    Hybridizer.from_pretrained(tmp_path)


def test_unknown_backend_is_not_the_files_fault(folder_of_either):
    with pytest.raises(InputError, match=r"^backend: 'other'"):
        Hybridizer.from_pretrained(folder_of_either, backend="other")


@contextmanager
def disk_of(size):
    """The system refuses to write files beyond this size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_full_disk_while_saving_leaves_the_old_artefact(folder, file, hybridizer, images):
    """Whichever of the two files does not fit."""
    long = {"notes": "x" * 3_000_000} if file == "config.json" else {}
    other = build(Origin("bars", "e" * 64, "1" * 16, CLASSES, long), mean=(0.1, 0.2, 0.3))
    size = 2_000_000 if file == "config.json" else 100_000
    with disk_of(size), pytest.raises(InputError, match="cannot be written") as error:
        other.save_pretrained(folder)
    assert str(error.value).startswith(str(folder / file))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    old = Hybridizer.from_pretrained(folder)
    assert old.origin == hybridizer.origin and torch.equal(hybrids(old, images), hybrids(hybridizer, images))


def test_place_that_cannot_be_written(hybridizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/.*cannot be written"):
        hybridizer.save_pretrained(tmp_path / "file" / "artefact")


# --- splits ---------------------------------------------------------------------------------------------


def dataset(fingerprint, size=16):
    part = Part(InMemory(torch.zeros(24, 3, size, size, dtype=torch.uint8)), torch.arange(24) % 4)
    return Dataset("bars", CLASSES, size, part, part, fingerprint * 64, False, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def trained_on():
    """A data set, the split that a hybridizer was trained on, and the hybridizer."""
    data = dataset("a")
    split = make_split(data, labels=8, seed=0)
    return data, split, build(Origin(data.name, data.fingerprint, split.hash, CLASSES))


def test_same_split_is_accepted(trained_on):
    data, split, hybridizer = trained_on
    hybridizer.check_split(data, split)


@pytest.mark.parametrize("options", [{"labels": 8, "seed": 1}, {"labels": 4, "seed": 0}])
def test_other_split_of_the_same_data_is_refused_unless_allowed(trained_on, options):
    data, split, hybridizer = trained_on
    other = make_split(data, **options)
    with pytest.raises(InputError, match=rf"{split.hash} of bars, not on {other.hash}: .*--allow-other-split"):
        hybridizer.check_split(data, other)
    hybridizer.check_split(data, other, allow_other_split=True)


def test_split_of_the_same_data_at_another_size_is_refused(trained_on):
    """The fingerprint is that of the source; resizing it hides no labels."""
    hybridizer = trained_on[2]
    other = make_split(dataset("a", 32), labels=8, seed=1)
    with pytest.raises(InputError, match=r"made for images of 16×16, bars has 32×32"):
        hybridizer.check_split(dataset("a", 32), other, allow_other_split=True)
    with pytest.raises(InputError, match="leak"):
        build(hybridizer.origin, image_size=32).check_split(dataset("a", 32), other)


def test_other_data_is_accepted_at_the_same_size(trained_on):
    other = dataset("b")
    trained_on[2].check_split(other, make_split(other, labels=8, seed=1))
    with pytest.raises(InputError, match=r"made for images of 16×16, bars has 32×32"):
        trained_on[2].check_split(dataset("b", 32), make_split(dataset("b", 32), labels=8))


@pytest.mark.parametrize("names", [CLASSES[::-1], CLASSES[:3], (*CLASSES[:3], "other"), (*CLASSES, "other")])
@pytest.mark.parametrize("fingerprint", ["a", "b"])
def test_other_names_order_or_number_of_classes_are_refused(trained_on, names, fingerprint):
    """Its classifier's class 0 is not theirs."""
    other = replace(dataset(fingerprint), classes=names)
    told = f"^hybridizer: knows the classes {', '.join(CLASSES)}, in this order; bars has {', '.join(names)}$"
    with pytest.raises(InputError, match=told):
        trained_on[2].check_split(other, trained_on[1], allow_other_split=True)


# --- in training loops of others ------------------------------------------------------------------------


def test_hybrids_and_soft_labels_equal_the_reference(hybridizer, images):
    labels = torch.tensor([0, 3, 1, 1, 2])
    torch.manual_seed(3)
    got, soft = Hybridize(hybridizer, alpha=0.8)(images.clone().requires_grad_(), labels)
    torch.manual_seed(3)
    partner = torch.randperm(5)
    expected = hybridizer.hybridize(semantic=images, nonsemantic=images[partner])
    assert torch.equal(got, expected) and not got.requires_grad
    want = torch.zeros(5, 4)
    for row in range(5):
        want[row, labels[row]] += 0.8
        want[row, labels[partner[row]]] += 1 - 0.8
    torch.testing.assert_close(soft, want)
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert (soft[range(5), labels] >= 0.8 - 1e-6).all() and ((soft > 0) & (soft < 0.5)).any()


def hybrids_of(hybridizer, *inputs, **options):
    torch.manual_seed(0)
    return Hybridize(hybridizer, **options)(*inputs)


def test_hybrids_keep_the_images_kind_and_layout(hybridizer, images):
    """Of the same levels and draws: bytes are rounded to the nearest level."""
    raw, labels = (images * 255).round().to(torch.uint8), torch.arange(5) % 4
    want, soft = hybrids_of(hybridizer, raw.float() / 255, labels)
    levels = raw.contiguous(memory_format=torch.channels_last)
    for given, expected in (
        (tv_tensors.Image(levels), (want * 255).round().to(torch.uint8)),
        (raw.double() / 255, want.double()),
        ((raw.float() / 255).half(), None),
    ):
        got, own = hybrids_of(hybridizer, given, labels)
        assert type(got) is type(given) and got.dtype == given.dtype and got.stride() == given.stride()
        assert torch.equal(own, soft)
        if expected is None:
            torch.testing.assert_close(got.float(), want, rtol=0, atol=0.01)
        else:
            assert torch.equal(got, expected)


def test_samples_of_any_structure(unchecked, hybridizer, images):
    """As two arguments give them: labels as indices or probabilities, wherever they are; all else as it was."""
    labels, names = torch.tensor([0, 3, 1, 1, 2]), ["x"] * 5
    want, soft = hybrids_of(hybridizer, images, labels)
    (got, own) = hybrids_of(hybridizer, images, torch.eye(4, dtype=torch.int64)[labels])
    assert torch.equal(got, want) and torch.equal(own, soft)
    views = {"views": [tv_tensors.Image(images), tv_tensors.Image(images)], "target": labels, "name": names}
    got = hybrids_of(hybridizer, views, labels_getter=lambda sample: sample["target"])
    assert list(got) == ["views", "target", "name"] and got["name"][0] is names[0] and torch.equal(got["target"], soft)
    assert all(torch.equal(view, want) for view in got["views"])
    with pytest.raises(InputError, match=r"^labels: 3 for 5 images"):
        Hybridize(hybridizer)(images, labels[:3])
    with pytest.raises(InputError, match=r"^images: a video"):
        Hybridize(hybridizer)(tv_tensors.Video(images.unsqueeze(1)), labels)
    with pytest.raises(InputError, match=r"^labels_getter: 'target'"):
        Hybridize(hybridizer, labels_getter="target")


@pytest.mark.parametrize("fallen", [True, False])
def test_a_coin_that_stays_on_its_device(hybridizer, images, monkeypatch, fallen):
    labels = torch.tensor([0, 3, 1, 1, 2])
    want, soft = hybrids_of(hybridizer, images, labels)
    monkeypatch.setattr("hybridgen.hybridizer.toss", lambda *_: torch.tensor(fallen))
    got, own = hybrids_of(hybridizer, images, labels)
    assert torch.equal(got, want if fallen else images) and torch.equal(own, soft if fallen else torch.eye(4)[labels])


@pytest.mark.parametrize("standardised", [lambda x: 2 * x - 1, lambda x: 255 * x, lambda x: x + float("nan")])
def test_floats_outside_zero_to_one(hybridizer, images, standardised):
    with pytest.raises(InputError, match=r"^images: in \[.*\], not in \[0, 1\]; standardise after"):
        Hybridize(hybridizer)(standardised(images), torch.zeros(5, dtype=torch.int64))


def test_alpha_one_gives_hard_labels(hybridizer, images):
    labels = torch.tensor([0, 3, 1, 1, 2])
    _, soft = Hybridize(hybridizer, alpha=1.0)(images, labels)
    assert torch.equal(soft, torch.eye(4)[labels])


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.1, float("nan")])
def test_alpha_outside_its_range(hybridizer, alpha):
    with pytest.raises(InputError, match=rf"^alpha: {alpha} is outside \(0\.5, 1\]"):
        Hybridize(hybridizer, alpha=alpha)


@pytest.mark.parametrize("label", [-2, 4])
def test_label_outside_the_classes(hybridizer, images, label):
    with pytest.raises(InputError, match=rf"^labels: class {label} is outside 0\.\.3 \(-1"):
        Hybridize(hybridizer)(images, torch.tensor([0, 1, label, 2, 3]))


def test_unknown_classes_are_passed_over(hybridizer, images):
    """They stay, lose nothing, and lend no label."""
    labels = torch.tensor([0, -1, 1, -1, 2])
    torch.manual_seed(3)
    got, soft = Hybridize(hybridizer, alpha=0.8)(images, labels)
    torch.manual_seed(3)
    partner = torch.randperm(5)
    expected = hybridizer.hybridize(semantic=images, nonsemantic=images[partner])
    for row, label in enumerate(labels.tolist()):
        want = torch.zeros(4)
        if label >= 0:
            other = labels[partner[row]].item()
            want[label] += 0.8
            want[label if other < 0 else other] += 1 - 0.8
        torch.testing.assert_close(soft[row], want)
        assert torch.equal(got[row], images[row] if label < 0 else expected[row])
    assert (labels[partner][labels >= 0] < 0).any()
    logits = torch.randn(5, 4, requires_grad=True)
    nn.functional.cross_entropy(logits, soft, reduction="sum").backward()
    assert torch.equal(logits.grad.any(dim=1), labels >= 0)


def test_what_the_hybridizers_classifier_takes_for_another_class_stays(hybridizer, images):
    torch.manual_seed(3)
    every = Hybridize(hybridizer)(images, torch.zeros(5, dtype=torch.int64))[0]
    seen = hybridizer.classify(every).argmax(dim=1)
    labels = torch.where(torch.arange(5) % 2 == 0, seen, (seen + 1) % 4)
    torch.manual_seed(3)
    got, soft = Hybridize(hybridizer, alpha=0.8, keep_consistent=True)(images, labels)
    for row in range(5):
        assert torch.equal(got[row], every[row] if row % 2 == 0 else images[row])
        assert row % 2 == 0 or torch.equal(soft[row], torch.eye(4)[labels[row]])


def test_calls_make_hybrids_with_their_probability(hybridizer, images):
    labels, own = torch.tensor([0, 3, 1, 1, 2]), torch.Generator().manual_seed(5)
    for probability, expected in ((0.0, [False] * 9), (1.0, [True] * 9), (0.4, None)):
        mix = Hybridize(hybridizer, probability=probability, generator=own)
        made = [not torch.equal(mix(images, labels)[0], images) for _ in range(9)]
        assert made == expected or (expected is None and 0 < sum(made) < 9)
    soft = Hybridize(hybridizer, probability=0.0)((images * 255).to(torch.uint8), labels)[1]
    assert torch.equal(soft, torch.eye(4)[labels])
    assert torch.equal(Hybridize(hybridizer).eval()(images, labels)[0], images)
    with pytest.raises(InputError, match=r"^probability: 1\.5 is outside"):
        Hybridize(hybridizer, probability=1.5)


def test_draws_may_come_from_a_generator_alone(hybridizer, images):
    labels, before = torch.tensor([0, 3, 1, 1, 2]), torch.get_rng_state()
    mix = lambda seed: Hybridize(hybridizer, probability=0.9, generator=torch.Generator().manual_seed(seed))
    first, again, other = (mix(seed)(images, labels)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_tuple_will_do_and_nothing_becomes_part_of_its_owner(hybridizer, images):
    labels = torch.tensor([0, 3, 1, 1, 2])
    owner = nn.Sequential(Hybridize(hybridizer))
    assert not owner.state_dict() and not list(owner.parameters())
    torch.manual_seed(3)
    together = Hybridize(hybridizer)((images, labels))
    torch.manual_seed(3)
    apart = Hybridize(hybridizer)(images, labels)
    assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


def test_classes_are_compared_by_name_and_order(hybridizer):
    names = hybridizer.origin.classes
    Hybridize(hybridizer, classes=list(names))
    with pytest.raises(InputError, match=r"^classes: .*; this hybridizer has .*, in this order"):
        Hybridize(hybridizer, classes=names[::-1])


def test_wrong_size_in_the_transform(hybridizer):
    with pytest.raises(InputError, match=r"^images: 3×32×32"):
        Hybridize(hybridizer)(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))


def test_workers_of_a_loader_draw_apart_from_one_generator(hybridizer, monkeypatch):
    """And each goes on drawing: it is seeded once."""
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4

    def drawn(seed: int) -> list[torch.Tensor]:
        transform = Hybridize(hybridizer, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr("hybridgen.mixing.samples.get_worker_info", lambda: SimpleNamespace(seed=seed))
        return [transform(images, labels)[0] for _ in range(2)]

    first, second = drawn(1), drawn(2)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(drawn(1), first, strict=True))


def test_used_like_mixup_in_a_plain_loop(hybridizer):
    """In torchvision's place, as the collate function of a data loader, and trained on."""
    g = torch.Generator().manual_seed(0)
    data = [(torch.rand(3, 16, 16, generator=g), i % 4) for i in range(12)]

    def trained(transform):
        torch.manual_seed(0)
        loader = DataLoader(
            data, batch_size=4, shuffle=True, collate_fn=lambda batch: transform(*default_collate(batch))
        )
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model[1].weight.clone()
        seen = []
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append((images.shape, images.dtype, labels.shape, labels.dtype))
        assert not torch.equal(model[1].weight, before)
        return seen

    assert trained(Hybridize(hybridizer)) == trained(v2.MixUp(num_classes=4))


def test_draws_come_from_the_global_generator(hybridizer, images):
    labels = torch.tensor([0, 3, 1, 1, 2])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(Hybridize(hybridizer)(images, labels)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert not torch.equal(*(Hybridize(hybridizer)(images, labels)[0] for _ in range(2)))


def test_the_bundled_one_has_a_name(tmp_path, monkeypatch):
    """Whatever lies in the current folder."""
    (tmp_path / "bundled").mkdir()
    monkeypatch.chdir(tmp_path)
    named, there = Hybridizer.from_pretrained("bundled"), Hybridizer.from_pretrained(bundled())
    assert named.origin == there.origin
    for (name, mine), theirs in zip(named.state_dict().items(), there.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
