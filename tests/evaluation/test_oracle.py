"""The oracle learns, is kept, and a damaged one is never used."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory, Photographs
from hybridgen.evaluation import oracle as module
from hybridgen.evaluation.oracle import (
    OracleSettings,
    Training,
    default_cache,
    judge_of,
    load_or_train_oracle,
    load_oracle,
    oracle_of,
    oracle_seconds,
    save_oracle,
    train_oracle,
    training_for,
)
from hybridgen.networks.registry import default_network
from hybridgen.training.schedules import Clock
from hybridgen.types import Batch, InputError

QUICK = Training(steps=40, batch_size=16, network="leaky-wrn-10-1")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Two classes, dark and bright; one training image of unknown class at the end."""
    g = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.arange(count) % 2
        pixels = torch.randint(0, 120, (count, 3, 16, 16), generator=g, dtype=torch.uint8)
        return Part(InMemory(pixels + (labels * 100).byte().view(-1, 1, 1, 1)), labels)

    train, test = part(41), part(20)
    train.labels[-1] = -1
    return Dataset("brightness", ("dark", "bright"), 16, train, test, "a" * 64, False, (0.4,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def kept(dataset, tmp_path_factory):
    """A cache that holds one oracle, and the oracle."""
    cache = tmp_path_factory.mktemp("oracles")
    oracle, accuracy = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=cache)
    return cache, oracle, accuracy


def state(oracle: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in oracle.state_dict().items()}


def test_oracle_learns_and_is_frozen(kept):
    _, oracle, accuracy = kept
    assert accuracy == 1.0
    assert not oracle.training
    assert not any(parameter.requires_grad for parameter in oracle.parameters())


def test_cached_oracle_is_the_trained_one_and_is_not_trained_again(dataset, kept, monkeypatch):
    cache, oracle, accuracy = kept

    def never(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_oracle", never)
    again, measured = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=cache)
    assert measured == accuracy
    for name, tensor in state(oracle).items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_training_is_a_function_of_the_seed_and_leaves_the_random_state(dataset, kept, tmp_path):
    before = torch.get_rng_state()
    again = train_oracle(dataset, Accelerator(), QUICK, tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in state(kept[1]).items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_damaged_cache_is_trained_again_with_a_word(dataset, kept, tmp_path, capsys):
    cache, oracle, _ = kept
    (source,) = cache.iterdir()
    folder = tmp_path / source.name
    folder.mkdir()
    whole = {file.name: file.read_bytes() for file in source.iterdir()}
    content, description = whole[module.WEIGHTS], whole[module.CONFIG]
    for damage in (
        {module.WEIGHTS: content[:-100]},
        {module.WEIGHTS: content[:-1] + bytes([content[-1] ^ 1])},
        {module.CONFIG: description[:50]},
        {module.CONFIG: description.replace(b'"version": 3', b'"version": 4')},
    ):
        for name, own in (whole | damage).items():
            (folder / name).write_bytes(own)
        with pytest.raises(InputError, match=str(folder)):
            load_oracle(folder, dataset)
    again, _ = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    assert "trained again" in capsys.readouterr().err
    for name, tensor in state(oracle).items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    load_oracle(folder, dataset)  # repaired


@pytest.mark.parametrize(
    ("change", "field"), [({"fingerprint": "b" * 64}, "fingerprint"), ({"image_size": 32}, "image_size")]
)
def test_oracle_of_other_data_is_refused(dataset, kept, change, field):
    (folder,) = kept[0].iterdir()
    with pytest.raises(InputError, match=f"other data: {field}"):
        load_oracle(folder, replace(dataset, **change))


def test_missing_oracle_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match=r"oracle\.json: cannot be read"):
        load_oracle(tmp_path, dataset)
    (tmp_path / module.CONFIG).write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="not the description of an oracle"):
        load_oracle(tmp_path, dataset)


def test_settings_and_data_have_caches_of_their_own(dataset, kept, monkeypatch):
    cache, oracle, _ = kept
    (folder,) = cache.iterdir()
    other = replace(QUICK, seed=1)
    monkeypatch.setattr(module, "train_oracle", lambda *arguments, **options: oracle)
    load_or_train_oracle(dataset, Accelerator(), other, cache=cache)
    (second,) = set(cache.iterdir()) - {folder}
    for file in second.iterdir():
        file.unlink()
    second.rmdir()
    file = module._kept_in(replace(dataset, name="npz:/a/b.npz"), QUICK, cache)
    assert second.name.startswith("brightness-16-") and file == cache / folder.name.replace("brightness", "npz")
    settings = [QUICK, replace(QUICK, shrinks=not QUICK.shrinks), replace(QUICK, network="fast")]
    first, same, another = (module._kept_in(dataset, each, cache) for each in settings)
    assert first == same == folder and another not in (folder, second)  # steps tell whether it shrank


def test_how_images_are_shown_is_part_of_what_an_oracle_is(dataset, kept, tmp_path):
    """Where it is as usual, the description says nothing of it, and oracles that were kept before go on judging."""
    cache, oracle, _ = kept
    (folder,) = cache.iterdir()
    assert not {"flip", "whole"} & json.loads((folder / module.CONFIG).read_text()).keys()
    whole = replace(dataset.train, images=Photographs(["a.png"] * 41, 16))
    shown = {"flip is 'always'": dataset.mirrored("always"), "whole is True": replace(dataset, train=whole)}
    for told, other in shown.items():
        assert module._kept_in(other, QUICK, cache) not in (folder, module._kept_in(dataset, QUICK, tmp_path))
        save_oracle(oracle, tmp_path / told, other, QUICK)
        load_oracle(tmp_path / told, other)
        with pytest.raises(InputError, match=f"other data: {told}, here "):
            load_oracle(tmp_path / told, dataset)
        with pytest.raises(InputError, match=f"other data: {told.split()[0]} is (False|'auto'), here "):
            load_oracle(folder, other)
    assert module._kept_in(dataset.mirrored("never"), QUICK, cache) == folder  # as the data themselves say
    assert dataset.mirrored("always").mirrored("never").asked_flip == "never"


def test_a_cache_that_cannot_be_written_loses_nothing(dataset, kept, monkeypatch, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(module, "train_oracle", lambda *arguments, **options: kept[1])
    _, accuracy = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=blocked / "cache")
    assert accuracy == kept[2]
    assert "not kept" in capsys.readouterr().err


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "hybridgen" / "oracles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "hybridgen" / "oracles"


def sized(dataset: Dataset, known: int, side: int, unknown: int = 0) -> Dataset:
    """With so many images, which take next to no memory."""
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(known + unknown, 3, side, side)
    labels = torch.cat([torch.zeros(known).long(), torch.full((unknown,), -1)])
    return replace(dataset, image_size=side, train=Part(InMemory(pixels), labels))


def test_that_of_digits_is_what_it_was(dataset):
    """1,500 steps of 64 of digits-m's 1,297 labelled images, with AdamW on leaky-wrn-10-2."""
    training = training_for(OracleSettings(), sized(dataset, 1297, 16, unknown=50))
    assert training == Training() == Training(
        1500, 64, "leaky-wrn-10-2", "adamw", rate=4e-3, weight_decay=0.02, label_smoothing=0.05, ema_decay=0.0
    )  # fmt: skip
    assert not training.shrinks


@pytest.mark.parametrize(
    ("known", "side", "passes"),
    [
        (50_000, 32, 8),  # CIFAR-10
        (73_257, 32, 5.5),  # SVHN
        (1_000_000, 32, 2),
        (540, 64, 75),
        (21, 64, 75),  # where it was 20,000 steps
        (21, 16, 75),
        (5000, 96, 8.9),  # STL-10
    ],
)
def test_it_is_sized_by_images_and_pixels(dataset, known, side, passes):
    training = training_for(OracleSettings(), sized(dataset, known, side, unknown=1000))
    seen = training.steps * training.batch_size
    assert training.batch_size <= known and seen / known == pytest.approx(passes, rel=0.03)
    assert training.batch_size * side**2 <= 512 * 32**2 and training.steps >= 75
    assert seen * side**2 <= max(8 * 50_000 * 32**2, 2 * known * side**2)
    if side > 16:
        assert training.optimizer == "sgd" and training.shrinks and training.ema_decay > 0
        assert training.rate**2 / training.batch_size == pytest.approx(0.6**2 / 512)
        assert training.batch_size in (512, 56, 128, min(known, 64), known // 16)


def test_that_of_cifar10_learns_as_networks_that_train_in_seconds(dataset):
    """airbench's label smoothing; and 32 images a step at least, however large they are."""
    assert training_for(OracleSettings(), sized(dataset, 50_000, 32)) == Training(
        781, 512, "fast", "sgd", rate=0.6, weight_decay=1e-3, label_smoothing=0.2, ema_decay=0.98
    )
    large = training_for(OracleSettings(), sized(dataset, 1000, 224))
    assert (large.batch_size, large.steps) == (32, 255)  # of 409,600,000 pixels
    assert large.rate == pytest.approx(0.6 / 4) and large.network == default_network(224)


@pytest.mark.parametrize(
    ("known", "batch"), [(20, 20), (100, 64), (2000, 125), (5000, 312), (8192, 512), (50_000, 512)]
)
def test_of_few_images_its_batches_are_small(dataset, known, batch):
    """2,000 images of CIFAR-10 in 18 passes: 58.4 % in batches of 512, 68.3 % of 128, 67.9 % of 64."""
    assert training_for(OracleSettings(), sized(dataset, known, 32)).batch_size == batch


def test_what_is_asked_for_wins(dataset):
    asked = training_for(OracleSettings(steps=50, network="leaky-wrn-28-4"), sized(dataset, 50_000, 64))
    assert (asked.steps, asked.network, asked.shrinks) == (50, "leaky-wrn-28-4", False)
    assert asked.within(10) == asked
    assert training_for(OracleSettings(steps=50), sized(dataset, 1297, 16)) == Training(steps=50)


def test_it_trains_for_a_twentieth_of_its_run(dataset):
    """A run's image costs five of the oracle's; by halves, so that runs of about one length share a judge."""
    whole = training_for(OracleSettings(), sized(dataset, 50_000, 32))
    for drawn in (10**9, 1_600_000, 1_599_000, 900_000, 800_000, 200_000, 3000):
        judge = whole.within(drawn)
        seen = judge.steps * judge.batch_size
        assert seen * 20 <= 5 * drawn or 10 <= judge.steps < 20
        assert judge.steps == whole.steps or 2 * seen * 20 > 4.9 * drawn
        assert replace(judge, steps=whole.steps) == whole
    steps = [whole.within(drawn).steps for drawn in (1_600_000, 1_590_000, 900_000, 800_000, 790_000)]
    assert steps == [781, 390, 390, 390, 195]


def test_a_judge_that_cannot_be_had_is_named_before_anything_is_trained(dataset, kept):
    before = torch.get_rng_state()
    assert judge_of(OracleSettings(steps=30), dataset) == Training(steps=30, batch_size=40)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(InputError, match="depth: 11"):
        judge_of(OracleSettings(network="leaky-wrn-11-1"), dataset)
    part = lambda count: Part(InMemory(dataset.test.images.pixels[:count]), dataset.test.labels[:count])
    judge_of(OracleSettings(), replace(dataset, test=part(3)))
    with pytest.raises(InputError, match="brightness: 2 test images"):
        judge_of(OracleSettings(), replace(dataset, test=part(2)))


def test_none_judges_and_one_that_is_there_judges_these_data_alone(dataset, kept):
    (folder,), accelerator = kept[0].iterdir(), Accelerator(cpu=True)
    assert (
        judge_of(
            OracleSettings(oracle="none"),
            replace(dataset, test=Part(InMemory(torch.zeros(0, 3, 16, 16).byte()), torch.zeros(0).long())),
        )
        is None
    )
    for path in (folder, folder / "oracle.json", folder / "oracle.safetensors"):
        judge = judge_of(OracleSettings(oracle=str(path)), dataset)
        oracle = oracle_of(judge, dataset, accelerator)
        assert all(torch.equal(*pair) for pair in zip(oracle.parameters(), kept[1].parameters(), strict=True))
    for change, field in (
        ({"fingerprint": "b" * 64}, "fingerprint"),
        ({"image_size": 32}, "image_size"),
        ({"classes": ("a", "b", "c")}, "classes"),
    ):
        with pytest.raises(InputError, match=f"other data: {field}") as error:
            judge_of(OracleSettings(oracle=str(folder)), replace(dataset, **change))
        assert "\n" not in str(error.value)
    for given in (dict(steps=50), dict(network="leaky-wrn-10-1")):
        with pytest.raises(
            InputError, match=rf"^--oracle\.{next(iter(given))}: is for training an oracle, but --oracle "
        ):
            judge_of(OracleSettings(oracle=str(folder), **given), dataset)


def test_an_oracle_that_is_there_goes_to_the_device(dataset, kept, monkeypatch):
    accelerator, judge = Accelerator(cpu=True), copy.deepcopy(kept[1])
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    assert {parameter.device.type for parameter in oracle_of(judge, dataset, accelerator).parameters()} == {"meta"}


def test_bad_input_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match="steps: 5"):
        Training(steps=5)
    with pytest.raises(InputError, match="steps: 9 should be greater than or equal to 10"):
        OracleSettings(steps=9)
    assert OracleSettings(steps=10).steps == Training(steps=10).steps == 10
    unknown = Part(dataset.train.images, torch.full_like(dataset.train.labels, -1))
    with pytest.raises(InputError, match="known class"):
        train_oracle(replace(dataset, train=unknown), Accelerator(), QUICK, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_oracle_that_was_stopped_is_continued(dataset, kept, monkeypatch, tmp_path):
    """Its run lies beside where it will be kept, and is removed once it is."""
    seen = []

    def stopping(made, settings, folder, seed):
        seen.append((folder, settings.resume))
        if len(seen) == 1:
            folder.mkdir(parents=True)
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    (first, fresh), (second, resumed) = seen
    assert first == second and first.parent.parent == tmp_path and (fresh, resumed) == (False, True)
    (kept_in,) = tmp_path.iterdir()
    assert kept_in.name == first.parent.name.removesuffix(".training")
    load_oracle(kept_in, dataset)


def test_training_is_on_every_image_of_known_class_and_no_other(dataset):
    made = module.plan(QUICK, dataset, Accelerator())
    assert made.context.split.labelled == tuple(range(40)) and not made.context.split.validation
    assert made.clock.steps == 40 and made.select is None and made.average is None
    seen = torch.cat([made.stream.indices(step)[0] for step in range(5)])
    assert sorted(set(seen.tolist())) == list(range(40))
    assert made.tasks["oracle"].objective.smoothing == QUICK.label_smoothing == 0.05
    assert made.tasks["oracle"].optimizer.param_groups[0]["weight_decay"] == QUICK.weight_decay
    assert made.tasks["oracle"].optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    rates = [made.tasks["oracle"].rate(replace(made.clock, step=step)) for step in range(40)]
    assert max(rates) == pytest.approx(QUICK.rate) and rates.index(max(rates)) == 11 and rates[-1] < 1e-4 * QUICK.rate


@pytest.mark.parametrize(("side", "flip", "shift"), [(16, False, 2), (4, True, 1), (32, True, 4)])
def test_images_are_flipped_where_the_data_are_and_shifted_by_an_eighth(dataset, monkeypatch, side, flip, shift):
    seen = []
    monkeypatch.setattr(module, "weak", lambda images, generator, **how: seen.append(how) or images)
    part = Part(InMemory(torch.zeros(9, 3, side, side, dtype=torch.uint8)), torch.arange(9) % 2)
    data = replace(dataset, image_size=side, flip=flip, train=part)
    made = module.plan(replace(QUICK, batch_size=4), data, Accelerator(cpu=True))
    next(made.stream.from_step(0))
    assert seen == [dict(flip=flip, shift=shift)]
    settings = made.context.settings
    assert (settings.data, settings.evaluate_every, settings.save_every) == ("brightness", 40, 100)


def test_its_loss_is_a_smoothed_cross_entropy(dataset):
    """(1 - s) of the target on the label and s spread over all classes."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    batch = Batch((torch.rand(5, 3, 4, 4),), labels, ())
    for smoothing in (0.0, 0.05, 0.3):
        judging, logits = module.Judging(network, smoothing=smoothing), network(batch.labelled[0]).double()
        loss = judging(batch, Clock(1, 1)).losses["supervised"]
        targets = (1 - smoothing) * torch.eye(3, dtype=torch.float64)[labels] + smoothing / 3
        expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_save_is_read_back(dataset, kept, tmp_path):
    save_oracle(kept[1], tmp_path / "mine", dataset, QUICK)
    again = load_oracle(tmp_path / "mine", dataset)
    images = dataset.test.images.pixels.float() / 255
    assert torch.equal(again(images), kept[1](images))


def test_an_oracle_that_another_process_trains_or_whose_run_is_damaged_is_trained_anew(dataset, kept, tmp_path, capsys):
    (folder,) = kept[0].iterdir()
    run = tmp_path / f"{folder.name}.training" / "oracle"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("damaged: [")
    capsys.readouterr()
    trained, _ = load_or_train_oracle(dataset, Accelerator(), QUICK, cache=tmp_path)
    assert "oracle: not kept for the next time: " in capsys.readouterr().err
    for mine, theirs in zip(trained.state_dict().values(), kept[1].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


SQUARED = Training(
    steps=60, batch_size=16, network="leaky-wrn-10-1", optimizer="sgd", rate=0.05, weight_decay=1e-3, ema_decay=0.9
)


def test_sgds_rate_rises_and_falls_and_kernels_alone_decay(dataset):
    made = module.plan(SQUARED, dataset, Accelerator(cpu=True))
    task = made.tasks["oracle"]
    decaying, others = task.optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (1e-3, 0.0)
    assert all(group["nesterov"] and group["momentum"] == 0.85 for group in (decaying, others))
    rates = [task.rate(replace(made.clock, step=step)) for step in range(61)]
    corners = np.interp(np.arange(61) / 60, [0, 0.23, 1], [0.2, 1, 0.07])
    assert rates == pytest.approx((0.05 * corners).tolist())
    assert made.average.decay == 0.9 and made.judged is made.average.network


def test_an_averaged_oracle_learns_too_and_its_average_is_what_judges(dataset, tmp_path):
    oracle = train_oracle(dataset, Accelerator(cpu=True), SQUARED, tmp_path / "run")
    state = torch.load(max((tmp_path / "run" / "checkpoints").glob("*.pt")), weights_only=True)["modules"]
    kept = {name: tensor for name, tensor in state["average"].items() if name.startswith("network.")}
    assert kept.keys() == {f"network.{name}" for name in oracle.state_dict()}
    assert all(torch.equal(tensor, kept[f"network.{name}"]) for name, tensor in oracle.state_dict().items())
    with torch.no_grad():
        right = oracle(dataset.test.images.pixels.float() / 255).argmax(1) == dataset.test.labels
    assert right.all() and not oracle.training


def test_long_training_is_told_beforehand(dataset, monkeypatch, tmp_path, capsys):
    """And what is left of it where it goes on; not what takes a moment, or what is there."""
    monkeypatch.setattr(module, "seconds_of", lambda plan: 600.0)
    monkeypatch.setattr(module, "train", lambda made, settings, folder, seed: {})
    accelerator, long = Accelerator(cpu=True), replace(QUICK, steps=100)
    train_oracle(dataset, accelerator, replace(QUICK, steps=99), tmp_path / "short")
    assert capsys.readouterr().err == ""
    train_oracle(dataset, accelerator, long, tmp_path / "long")
    said = capsys.readouterr().err
    assert said == (
        "oracle: trains on all labels of brightness to judge the hybrids, 100 steps (40 passes), about 10 minutes\n"
    )
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "checkpoints" / "step-00000050.pt").touch()
    train_oracle(dataset, accelerator, long, tmp_path / "half")
    assert capsys.readouterr().err.endswith("about 5 minutes\n")
    assert oracle_seconds(long, dataset, accelerator, cache=tmp_path) == 600


def test_one_that_is_there_takes_no_time(dataset, kept):
    accelerator = Accelerator(cpu=True)
    assert oracle_seconds(QUICK, dataset, accelerator, cache=kept[0]) == 0
    assert oracle_seconds(kept[1], dataset, accelerator) == 0 == oracle_seconds(None, dataset, accelerator)
