"""The split that settings ask for, the network where none is given, and whose patches the stems of fast ones whiten."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.splits import make_split
from hybridgen.data.streams import Stream
from hybridgen.evaluation import oracle
from hybridgen.methods import fixmatch, mean_teacher, mixing, mixmatch, samosa, scimix, supervised
from hybridgen.methods.labelled import TrainingSettings
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.fast import EPSILON, FastClassifier, FastEncoder, FastTrunk, Whitening
from hybridgen.networks.registry import make_network
from hybridgen.networks.wide_resnet import WideResNet, WideResNetClassifier
from hybridgen.tables.cost import noise
from hybridgen.training import context as module
from hybridgen.training.context import Context, RunSettings, split_of
from hybridgen.types import InputError

SMALL = dict(labelled_batch=4, unlabelled_batch=4, epochs=3.0)


def context_of(size):
    return noise(3, size, 40, Accelerator(cpu=True), labelled=12)


def expected_filters(context, indices):
    """numpy's, of these images standardised."""
    pixels = context.dataset.train.images.gather(torch.tensor(indices)).numpy() / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (context.dataset.mean, context.dataset.std))
    images = (pixels - mean) / std
    side = images.shape[-1] - 1
    patches = [images[:, :, y : y + 2, x : x + 2].reshape(len(images), 12) for y in range(side) for x in range(side)]
    values, vectors = np.linalg.eigh(np.cov(np.concatenate(patches), rowvar=False, bias=True))
    vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
    filters = (vectors / np.sqrt(values + EPSILON)).T[::-1].reshape(12, 3, 2, 2)
    return torch.tensor(np.concatenate([filters, -filters]), dtype=torch.float32)


def plans(context, seed=0):
    """Every kind of plan by its method's defaults."""
    method = mean_teacher.Settings(**SMALL)
    made = samosa.networks(method, context, seed, heads=2)
    narrow = dict(generator_channels=(4, 4), discriminator_width=0.25, guide="mean-teacher")
    return {
        "fixmatch": fixmatch.plan(fixmatch.Settings(**SMALL), context, seed),
        "mean_teacher": mean_teacher.plan(method, context, seed),
        "mixmatch": mixmatch.plan(mixmatch.Settings(**SMALL), context, seed),
        "supervised": supervised.plan(supervised.Settings(**SMALL), context, seed),
        "mixing": mixing.plan("cutmix", TrainingSettings(batch=4), context, seed),
        "recursivemix": mixing.plan("recursivemix", TrainingSettings(batch=4), context, seed),
        "scimix": scimix.plan(scimix.Settings(**SMALL, **narrow), context, seed)[0],
        "samosa": samosa.with_samosa(
            mean_teacher.plan(method, context, seed, classifier=made.watched), made, samosa.Settings(), seed
        ),
        "oracle": oracle.plan(oracle.judge_of(oracle.OracleSettings(), context.dataset), context.dataset,
                              context.accelerator),
    }  # fmt: skip


CHOSEN = {
    fixmatch: (dict(epochs=14, rate=0.06, weighting="fixmatch", ema_decay=0.99),
               dict(rate=0.03, weighting="adamatch", ema_decay=1 - 6 / 280)),  # a sixth of 14 epochs of 20 steps
    mean_teacher: (dict(epochs=14), {}),
    mixmatch: (dict(epochs=8, unlabelled_batch=32), {}),
    scimix: (dict(epochs=36, classifier_rate=1, penalty_every=1, upsampling="bilinear",
                  weight_adversarial_features=0, weight_semantic_attraction=4, weight_nonsemantic_attraction=0.02,
                  rate_epochs=37, semantic_from=1, semantic_ramp=1.5, nonsemantic_from=2.5),
             dict(penalty_every=16, upsampling="between",
                  weight_adversarial_features=2, weight_semantic_attraction=8, weight_nonsemantic_attraction=0.04)),
    supervised: (dict(epochs=14), {}),
}  # fmt: skip
"""By the settings' docstrings, of few images: up to 16 pixels, and what differs above."""


@pytest.mark.parametrize(("size", "network"), [(16, "leaky-wrn-10-1"), (32, "fast")])
@pytest.mark.parametrize("method", CHOSEN)
def test_what_images_choose_is_noted_under_the_places_of_fields(method, size, network):
    """Of a dozen labelled images and 28 others, with no more to a step."""
    context = context_of(size)
    narrow = dict(generator_channels=(4, 4), discriminator_width=0.25) if method is scimix else {}
    method.plan(method.Settings(**narrow), context, 0)
    small, larger = CHOSEN[method]
    expected = dict(labelled_batch=12, unlabelled_batch=40, network=network) | small | (larger if size == 32 else {})
    assert context.chosen == {f"method.{field}": pytest.approx(value) for field, value in expected.items()}


def stems_of(plan):
    held = [plan.network, *(task.objective for task in plan.tasks.values())]
    held += [] if plan.average is None else [plan.average]
    return [part for each in held for part in each.modules() if isinstance(part, Whitening)]


def test_every_method_has_a_fast_network_above_16_pixels_that_whitens_the_training_images():
    """The same for all seeds, in averages and teachers too."""
    context = context_of(32)
    expected = expected_filters(context, range(40))
    for seed in (0, 7):
        made = plans(context, seed)
        for name, plan in made.items():
            stems = stems_of(plan)
            assert len(stems) >= (4 if name in ("scimix", "samosa") else 2), name
            for stem in stems:
                torch.testing.assert_close(stem.filters, expected, rtol=1e-4, atol=1e-5)
                assert torch.equal(stem.filters, stems[0].filters), name
    for name in ("fixmatch", "mean_teacher", "mixmatch", "supervised", "mixing", "recursivemix", "oracle"):
        assert isinstance(made[name].network.network, FastClassifier), name
    for name in ("scimix", "samosa"):
        assert isinstance(made[name].network.classifier.encoder, FastEncoder), name
        assert isinstance(made[name].network.nonsemantic_encoder.trunk, FastTrunk), name


def test_up_to_16_pixels_networks_are_those_of_old():
    made = plans(context_of(16))
    for name in ("fixmatch", "mean_teacher", "mixmatch", "supervised", "oracle"):
        assert isinstance(made[name].network.network, WideResNetClassifier), name
        assert made[name].network.channels == (128 if name == "oracle" else 64), name
    for name in ("scimix", "samosa"):
        autoencoder = made[name].network
        for trunk in (autoencoder.classifier.encoder.trunk, autoencoder.nonsemantic_encoder.trunk):
            assert isinstance(trunk, WideResNet) and trunk.channels == 64 and len(trunk.blocks) == 3, name
    for name in ("mixing", "recursivemix"):
        assert (type(made[name].network.network).__name__, made[name].network.channels) == ("ResNet", 64)


def test_a_network_that_is_given_is_taken():
    for size in (16, 20):
        context = context_of(size)
        assert context.network("wrn-10-1") == "wrn-10-1"
        assert isinstance(context.classifier("fast-4-8").network, FastClassifier)
        assert isinstance(context.classifier("leaky-wrn-10-1").network, WideResNetClassifier)
    assert context_of(16).network(None, small="wrn-16-1") == "wrn-16-1"
    made = context_of(16).classifier("cifar-resnet18", width=0.25, heads=2, momentum=0.25)
    assert (made.channels, made.heads) == (128, 2)
    assert {part.momentum for part in made.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {0.25}
    assert context_of(16).classifier("vit-8-2-1", image_size=8).network.image_size == 8  # of crops


def test_the_images_that_are_whitened_are_evenly_chosen(monkeypatch):
    monkeypatch.setattr(module, "WHITENED", 7 * 20**2)
    monkeypatch.setattr(module, "FEWEST", 3)
    context = context_of(20)
    stem = context.classifier("fast-4").network.encoder.trunk.stem
    expected = expected_filters(context, [0, 5, 11, 17, 22, 28, 34])
    torch.testing.assert_close(stem.filters, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(stem.filters, expected_filters(context, range(7)), rtol=1e-2)
    monkeypatch.setattr(module, "FEWEST", 8)
    stem = context_of(20).classifier("fast-4").network.encoder.trunk.stem
    expected = expected_filters(context, range(0, 40, 5))
    torch.testing.assert_close(stem.filters, expected, rtol=1e-4, atol=1e-5)


def test_whitening_draws_nothing_and_is_done_for_fast_networks_alone(monkeypatch):
    context = context_of(20)
    torch.manual_seed(0)
    ours = context.classifier("fast-4-8")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    theirs = Classifier(make_network("fast-4-8", 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.equal(torch.rand(1), drawn)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, other)

    def never(images):
        raise AssertionError("whitened")

    monkeypatch.setattr(module, "patch_covariance", never)
    context_of(20).classifier("leaky-wrn-10-1")
    with pytest.raises(AssertionError, match="whitened"):
        context_of(20).classifier("fast")


def test_networks_and_their_averages_are_on_the_device_of_their_process(monkeypatch):
    """From the start: averages follow before anything is prepared, and moved, for training."""
    context = context_of(16)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    for name, plan in plans(context).items():
        assert next(plan.network.parameters()).device.type == "meta", name
        for part in (plan.network, plan.average or plan.network, *plan.modules.values()):
            assert {parameter.device.type for parameter in part.parameters()} <= {"meta"}, name


def test_data_and_split_are_what_the_settings_ask_for(monkeypatch, tmp_path, capsys):
    asked = []
    load = lambda name, **how: asked.append((name, how)) or replace(context_of(16).dataset, told=("what was drawn",))
    monkeypatch.setattr(module, "load_dataset", load)
    given = dict(data="svhn", image_size=16, data_root="elsewhere", download=True, whole=True, seed=9, threads=1)
    made = Context.of(RunSettings(**given, labels=12, split_seed=5, validation=3, precision="fp32"))
    assert asked == [("svhn", dict(image_size=16, data_root="elsewhere", download=True, whole=True))]
    assert made.split == make_split(made.dataset, labels=12, seed=5, validation=3) and made.split.seed == 5
    made.say()
    assert capsys.readouterr().out == "what was drawn\n"
    made.split.save(tmp_path / "split.json")
    of_file = Context.of(RunSettings(**given, labels=20, split=tmp_path / "split.json", precision="fp32"))
    assert of_file.split == made.split
    of_file.say()
    assert capsys.readouterr().out == "what was drawn\n"


def test_what_settings_leave_open_is_told(monkeypatch, capsys):
    dataset = context_of(16).dataset
    dataset = replace(dataset, train=replace(dataset.train, files=tuple(map(str, range(40)))))
    monkeypatch.setattr(module, "load_dataset", lambda name, **how: dataset)
    Context.of(RunSettings(labels=10, threads=1, precision="fp32")).say()
    assert capsys.readouterr().out == (
        "images are brought to 16×16; --image-size\n"
        "10 images are labelled, 30 are set aside for validation, 0 unlabelled; --labels, --validation\n"
    )
    Context.of(RunSettings(validation=7, image_size=16, threads=1, precision="fp32")).say()
    said = "33 images are labelled, 7 are set aside for validation, 0 unlabelled; --labels, --validation\n"
    assert capsys.readouterr().out == said


def test_streams_and_networks_are_as_the_settings_have_them(monkeypatch):
    given, laid = [], []
    make = lambda part, split, **how: given.append((part, split, how)) or Stream(part, split, **how)
    monkeypatch.setattr(module, "Stream", make)
    monkeypatch.setattr(module, "laid_out", lambda network, accelerator, **how: laid.append(how) or network)
    context = context_of(16)
    settings = dict(data="noise", workers=5, channels_last=False, compiled=True, sync_batchnorm=True, seed=9)
    context = replace(context, settings=RunSettings(**settings))
    views = (lambda images, generator: images,)
    how = dict(
        labelled=6,
        labelled_views=views,
        unlabelled=6,
        unlabelled_views=views * 2,
        unlabelled_pool=range(13, 25),
        asked="batch = 2",
    )
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "process_index", 1)
        patch.setattr(Accelerator, "num_processes", 2)
        context.stream(7, **how, repetitions=3)
    ((part, split, told),) = given
    assert part is context.dataset.train and split is context.split
    assert told == how | dict(seed=7, rank=1, world=2, device=torch.device("cpu"), workers=5, repetitions=3)
    context.laid_out(torch.nn.Identity())
    context.laid_out(torch.nn.Identity(), compiled=False)
    assert laid == [dict(channels_last=False, compiled=compiled, synchronized=True) for compiled in (True, False)]


KNOWN, UNKNOWN = 12, 4


@pytest.fixture
def dataset() -> Dataset:
    """Twelve images of three classes, and four of none that is known."""
    labels = torch.tensor([0, 1, 2, -1] * 4)
    images = torch.randint(0, 256, (KNOWN + UNKNOWN, 3, 8, 8), dtype=torch.uint8)
    part = Part(InMemory(images), labels)
    return Dataset("tiny", ("a", "b", "c"), 8, part, part, "fingerprint", True, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("validation", [0, 3, 9])
def test_without_a_number_all_known_labels_are_given_but_those_of_validation(dataset, validation):
    split = split_of(RunSettings(labels=None, validation=validation), dataset)
    assert (len(split.labelled), len(split.validation)) == (KNOWN - validation, validation)
    assert not set(split.labelled) & set(split.validation)
    assert (dataset.train.labels[list(split.labelled + split.validation)] >= 0).all()


@pytest.mark.parametrize(
    ("count", "given", "labelled", "validation"),
    [
        (1200, {}, 100, 100),
        (300, {}, 100, 60),
        (21, {}, 17, 4),
        (21, dict(validation=0), 21, 0),
        (21, dict(labels=9), 9, 12),
        (21, dict(labels=21), 21, 0),
        (300, dict(labels=9), 9, 100),
        (300, dict(labels=None), 240, 60),
        (300, dict(labels=250, validation=30), 250, 30),
    ],
)
def test_a_split_of_which_nothing_is_given_follows_the_images_that_there_are(count, given, labelled, validation):
    labels = torch.cat([torch.arange(count) % 3, torch.full((60,), -1)])
    part = Part(InMemory(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(len(labels), 3, 4, 4)), labels)
    dataset = Dataset("tiny", ("a", "b", "c"), 4, part, part, "fingerprint", True, (0.5,) * 3, (0.5,) * 3)
    split = split_of(RunSettings(**given), dataset)
    assert (len(split.labelled), len(split.validation)) == (labelled, validation)
    assert len(split.unlabelled) == count + 60 - labelled - validation
    many = replace(
        dataset, classes=tuple(map(str, range(30))), train=replace(part, labels=torch.arange(len(labels)) % 30)
    )
    if not given:
        known = count + 60
        assert len(split_of(RunSettings(), many).labelled) == min(120, known - min(100, known // 5))


@pytest.mark.parametrize(
    ("processes", "given", "sizes", "told"),
    [
        (1, (None, None), (9, 21), ["9 labelled images a step, for there are 9", "21 unlabelled images a step"]),
        (2, (None, None), (8, 20), ["8 labelled images", "20 unlabelled images a step, for there are 21"]),
        (1, (3, None), (3, 21), ["21 unlabelled"]),
        (1, (50, 60), (50, 60), []),
    ],
)
def test_batches_are_no_larger_than_the_data_unless_they_are_given(dataset, capsys, processes, given, sizes, told):
    images, labels = torch.zeros(30, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2] * 10)
    dataset = replace(dataset, train=Part(InMemory(images), labels))
    settings, accelerator = RunSettings(labels=9, validation=9), Accelerator(cpu=True)
    context = Context(settings, accelerator, dataset, split_of(settings, dataset))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", processes)
        assert context.batch_sizes(*given, (32, 96)) == context.batch_sizes(*given, (32, 96)) == sizes
    assert capsys.readouterr().out == ""
    context.say()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(told) and all(word in line for word, line in zip(told, lines, strict=True))
    assert context.batch_sizes(None, None, (4, 5)) == (4, 5)
    context.say()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("validation", [KNOWN, KNOWN + 1])
def test_validation_leaves_a_label(dataset, validation):
    with pytest.raises(InputError, match=f"validation = {validation}: tiny has {KNOWN} images of known class"):
        split_of(RunSettings(labels=None, validation=validation), dataset)
