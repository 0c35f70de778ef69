"""The studies on hybridizers whose inheritance is known, and against plain numpy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.grid import choose_parents
from hybridgen.evaluation.studies import STUDIES, Conditions, Finding, files_of, load_hybridizers, study, write
from hybridgen.evaluation.transfer import CHANCE, FDA, MIXUP, draw_pairs, fda, mixup, transfer_rates
from hybridgen.hybridizer import Hybridizer, Origin
from hybridgen.networks.autoencoder import Architecture, SemanticAutoencoder
from hybridgen.types import InputError

COUNT, SIZE = 21, 16
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Backgrounds of random colour noise; the class is the column of a white bar."""
    g = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.arange(count) % 3
        backgrounds = torch.randint(0, 200, (count, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        masks[torch.arange(count), :, 2 * labels] = True
        pixels = torch.where(masks[:, None], torch.tensor(255, dtype=torch.uint8), backgrounds)
        return Part(InMemory(pixels), labels, masks, backgrounds)

    train, test = part(60), part(COUNT)
    train.labels[-6:] = -1
    return Dataset("bars", CLASSES, SIZE, train, test, "f" * 64, False, (0.5,) * 3, (0.25,) * 3)


def oracle(images: torch.Tensor) -> torch.Tensor:
    """Sees the class of an image as the brightest of three columns; and is wrong about some on purpose."""
    columns = images.mean((1, 2))[:, [0, 2, 4]]
    doubt = (images.flatten(1)[:, 100] > 0.6).float()
    return columns + doubt[:, None] * torch.tensor([3.0, 0.0, 0.0])


def tiny(seed: int = 0, *, size: int = SIZE, classes: tuple[str, ...] = CLASSES) -> Hybridizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        architecture = Architecture(
            image_size=size, classes=len(classes), network="leaky-wrn-10-1", generator_channels=(4, 4)
        )
        return Hybridizer(SemanticAutoencoder(architecture), Origin("bars", "f" * 64, "0" * 16, classes))


def making(hybridize) -> Hybridizer:
    """A hybridizer with another way to make hybrids, a function of both parents."""
    hybridizer = tiny()
    hybridizer.hybridize = lambda *, semantic, nonsemantic: hybridize(semantic, nonsemantic)
    return hybridizer


def conditions(dataset: Dataset, hybridizers: dict[str, Hybridizer] | Hybridizer, **fields) -> Conditions:
    if isinstance(hybridizers, Hybridizer):
        hybridizers = {"SciMix": hybridizers}
    fields = {"repeats": 3, "steps": None} | fields
    return Conditions(hybridizers, fields.pop("steps"), dataset, oracle, Accelerator(), **fields)


def found(name: str, dataset: Dataset, hybridizers, **fields) -> dict:
    return study(name, conditions(dataset, hybridizers, **fields)).values


def parents(dataset: Dataset, repeats: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    pairs = draw_pairs(COUNT, repeats, seed)
    return pairs.semantic.numpy(), pairs.nonsemantic.numpy()


def cell(table: str, row: str, column: str) -> str:
    """What stands in a row of a table where the title of its column begins."""
    head, *lines = table.splitlines()
    (line,) = (line for line in lines if line.startswith(f"{row}  "))
    return line[head.index(column) :]


def percent(of: dict, key: str) -> str:
    low, high = of[f"{key}_interval"]
    return f"{of[key]:6.1%}  [{low:.1%}, {high:.1%}]"


def drawn(axis) -> dict[str, list[list[float]]]:
    """Points by the label of their curve, or the heights of bars by their places."""
    curves = [each for each in axis.containers if hasattr(each, "lines")]
    bars = {each.get_label(): [[bar.get_height()] for bar in each] for each in axis.containers if each not in curves}
    return bars or {each.get_label(): each.lines[0].get_xydata().tolist() for each in curves}


def test_transfer_equals_a_plain_reference(dataset):
    hybridizer, seed = tiny(), 4
    values = found("transfer", dataset, hybridizer, seed=seed)["hybridizers"]["SciMix"]
    x = dataset.test.images.pixels.float() / 255
    labels = dataset.test.labels.tolist()
    distances = {"pixel": [], "code": []}
    hits = {"semantic_transfer": 0, "own_semantic_transfer": 0, "nonsemantic_preservation": 0, "code_preservation": 0}
    counts = np.zeros((3, 3))
    c_all, r_all = parents(dataset, seed=seed)
    for c, r in zip(c_all, r_all, strict=True):
        h = hybridizer.hybridize(semantic=x[c][None], nonsemantic=x[r][None])
        z = [hybridizer.encode_nonsemantic(i).double().numpy() for i in (h, x[c][None], x[r][None])]
        p = [i.double().numpy() for i in (h[0], x[c], x[r])]
        for space, (of_h, of_c, of_r) in (("pixel", p), ("code", z)):
            distances[space].append((((of_h - of_c) ** 2).sum(), ((of_h - of_r) ** 2).sum()))
        seen = int(oracle(h).argmax())
        counts[labels[c], seen] += 1
        hits["semantic_transfer"] += seen == labels[c]
        hits["own_semantic_transfer"] += int(hybridizer.classify(h).argmax()) == labels[c]
        hits["nonsemantic_preservation"] += distances["pixel"][-1][0] > distances["pixel"][-1][1]
        hits["code_preservation"] += distances["code"][-1][0] > distances["code"][-1][1]
    for name, right in hits.items():
        assert values[name] == pytest.approx(right / len(c_all)), name
        low, high = values[f"{name}_interval"]
        assert low <= values[name] <= high
    for space, pairs in distances.items():
        d_c, d_r = np.mean(pairs, axis=0)
        assert values[f"{space}_distance_semantic"] == pytest.approx(d_c, rel=1e-5)
        assert values[f"{space}_distance_nonsemantic"] == pytest.approx(d_r, rel=1e-5)
        assert values[f"{space}_distance_ratio"] == pytest.approx(d_c / d_r, rel=1e-5)
    np.testing.assert_allclose(values["confusion"], counts / counts.sum(1, keepdims=True))


def test_returning_a_parent_inherits_all_of_it(dataset):
    hybridizers = {"first": making(lambda c, r: c), "second": making(lambda c, r: r)}
    finding = study("transfer", conditions(dataset, hybridizers))
    first, second = finding.values["hybridizers"].values()
    for key in ("nonsemantic_preservation", "code_preservation"):
        assert (first[key], second[key]) == (0.0, 1.0)
    for space in ("pixel", "code"):
        assert first[f"{space}_distance_ratio"] == 0.0
        assert second[f"{space}_distance_ratio"] is None  # not finite: d_r is 0
        assert second[f"{space}_distance_semantic"] == pytest.approx(first[f"{space}_distance_nonsemantic"])
    json.dumps(finding.values, allow_nan=False)
    assert finding.values["steps"] is None
    assert first["semantic_transfer"] == pytest.approx(finding.values["oracle_accuracy"])


SHARES = {
    "s_c, oracle": "semantic_transfer",
    "s_c, own classifier": "own_semantic_transfer",
    "s_r, pixels": "nonsemantic_preservation",
    "s_r, z_r": "code_preservation",
}
RATIOS = {"d_c/d_r, pixels": "pixel_distance_ratio", "d_c/d_r, z_r": "code_distance_ratio"}


def test_table_and_picture_of_transfer_are_of_its_numbers(dataset):
    """The confusion is that of the last hybridizer."""
    hybridizers = {"here": tiny(0), "there": making(lambda c, r: 0.5 * c + 0.4 * r)}
    finding = study("transfer", conditions(dataset, hybridizers, steps=(5, 20), repeats=2, seed=6))
    values = finding.values["hybridizers"]
    assert finding.values["seed"] == 6 and values["here"]["confusion"] != values["there"]["confusion"]
    for name, of in values.items():
        for label, key in SHARES.items():
            assert cell(finding.table, name, label).startswith(percent(of, key))
        for label, key in RATIOS.items():
            assert cell(finding.table, name, label).split()[0] == f"{of[key]:.3g}"
    left, middle, right, _ = finding.figure.axes
    assert (left.get_title(), middle.get_title()) == ("share of hybrids", "mean d_c / mean d_r")
    for axis, columns in ((left, SHARES), (middle, RATIOS)):
        expected = {
            label: [[step, of[key]] for step, of in zip((5, 20), values.values(), strict=True)]
            for label, key in columns.items()
        }
        assert drawn(axis) == expected
    assert right.get_title() == "there: classes of hybrids, %"
    assert right.get_ylabel() == "class of the semantic parent"
    assert right.get_xlabel() == "class that the oracle sees in the hybrid"
    assert right.images[0].get_array().tolist() == values["there"]["confusion"]
    seen = finding.table.split("there: classes that the oracle sees\n")[1].splitlines()
    assert [line.split() for line in seen[:4]] == [
        ["semantic", "parent", *CLASSES],
        *([c, *(f"{x:.0%}" for x in row)] for c, row in zip(CLASSES, values["there"]["confusion"], strict=True)),
    ]


@pytest.mark.parametrize("name", ["transfer", "probe"])
def test_classes_without_a_test_image_have_dashes(dataset, name):
    """All are of class a: of the others there is no semantic parent, and no pair of different classes."""
    alike = replace(dataset, test=replace(dataset.test, labels=torch.zeros_like(dataset.test.labels)))
    finding = study(name, conditions(alike, tiny()))
    assert "nan" not in finding.table
    if name == "transfer":
        rows = finding.table.split("classes that the oracle sees\n")[1].splitlines()[1:4]
        assert [row.split() for row in rows[1:]] == [[each, "–", "–", "–"] for each in CLASSES[1:]]
        assert "–" not in rows[0]
    else:
        own = finding.values["hybridizers"]["SciMix"]
        for key, label in (("semantic", "semantic parent's class"), ("nonsemantic", "non-semantic parent's class")):
            assert cell(finding.table, "SciMix", label).split()[0] == "–"
            assert own[f"{key}_class_taken"] is None is own[f"{key}_class_taken_interval"]
        assert cell(finding.table, "chance", "non-semantic parent's class") == "–"
    json.dumps(finding.values, allow_nan=False)


def test_background_of_a_composite_is_the_nonsemantic_parents(dataset):
    known = {
        image.numpy().tobytes(): background
        for image, background in zip(dataset.test.images.pixels, dataset.test.backgrounds, strict=True)
    }

    def composite(semantic, nonsemantic):
        other = torch.stack([known[(image * 255).round().byte().numpy().tobytes()] for image in nonsemantic])
        return torch.where((semantic == 1).all(1, keepdim=True), semantic, 0.75 * other.float() / 255)

    values = found("background", dataset, making(composite))["hybridizers"]["SciMix"]
    outside = ~dataset.test.masks.numpy()[:, None]
    b = dataset.test.backgrounds.numpy().astype(np.float64) / 255
    d_c, d_r = np.mean(
        [
            [((outside[c] * (0.75 * b[r] - b[c])) ** 2).sum(), ((outside[c] * (0.75 * b[r] - b[r])) ** 2).sum()]
            for c, r in zip(*parents(dataset), strict=True)
        ],
        axis=0,
    )
    assert values["background_inheritance"] == 1.0
    assert values["background_distance_semantic"] == pytest.approx(d_c, rel=1e-5)
    assert values["background_distance_nonsemantic"] == pytest.approx(d_r, rel=1e-5)
    assert values["background_distance_ratio"] == pytest.approx(d_c / d_r, rel=1e-5)


def shown_pairs(dataset: Dataset, axes: list, columns: int) -> list[tuple[int, int]]:
    """Which test images are the parents in the first two columns of a picture."""
    known = [image.permute(1, 2, 0).numpy() / np.float32(255) for image in dataset.test.images.pixels]
    at = lambda axis: next(i for i, image in enumerate(known) if np.array_equal(image, axis.images[0].get_array()))
    return [(at(axes[i]), at(axes[i + 1])) for i in range(0, len(axes), columns)]


def test_table_and_picture_of_backgrounds(dataset):
    """Six pairs, hybrids of the last hybridizer, and squared differences outside the semantic parent's object."""
    hybridizers = {"here": making(lambda c, r: c), "there": making(lambda c, r: 0.9 * r)}
    finding = study("background", conditions(dataset, hybridizers, repeats=1, seed=3))
    for name, of in finding.values["hybridizers"].items():
        assert cell(finding.table, name, "s_c, oracle").startswith(percent(of, "semantic_transfer"))
        assert cell(finding.table, name, "s_r, backgrounds").startswith(percent(of, "background_inheritance"))
        for label, key in (("mean d_c", "distance_semantic"), ("mean d_r", "distance_nonsemantic")):
            assert cell(finding.table, name, f"{label}, b").split()[0] == f"{of[f'background_{key}']:.3g}"
        assert cell(finding.table, name, "d_c/d_r, b").split()[0] == f"{of['background_distance_ratio']:.3g}"
    *axes, _ = finding.figure.axes
    assert [axis.get_title().split("\n")[0] for axis in axes[:6]] == [
        "semantic parent", "non-semantic parent", "hybrid (there)", "its background", *["squared difference,"] * 2,
    ]  # fmt: skip
    assert [axis.get_title().split("\n")[1] for axis in axes[4:6]] == ["semantic parent's", "non-semantic parent's"]
    pairs = shown_pairs(dataset, axes, 6)
    assert pairs == list(zip(*(each.tolist() for each in choose_parents(dataset.test, 6, 6, 3)), strict=True))
    assert len(pairs) == 6 == len({c for c, _ in pairs} | {r for _, r in pairs}) / 2
    x, b = (of.numpy().transpose(0, 2, 3, 1) / 255 for of in (dataset.test.images.pixels, dataset.test.backgrounds))
    for i, (c, r) in enumerate(pairs):
        hybrid, background, *differences = (axis.images[0].get_array() for axis in axes[6 * i + 2 : 6 * i + 6])
        inside = dataset.test.masks[c].numpy()
        np.testing.assert_allclose(hybrid, 0.9 * x[r], atol=1e-6)
        np.testing.assert_allclose(background, np.where(inside[..., None], 1, 0.9 * x[r]), atol=1e-6)
        for drawn, parent in zip(differences, (c, r), strict=True):
            assert np.array_equal(drawn.mask, inside)
            np.testing.assert_allclose(drawn[~inside], ((0.9 * x[r] - b[parent]) ** 2).sum(2)[~inside], atol=1e-5)


def test_background_needs_masks_and_says_who_has_them(dataset):
    bare = replace(dataset, test=Part(dataset.test.images, dataset.test.labels))
    with pytest.raises(InputError, match=r"bars.*digits-m and mnist-m"):
        found("background", bare, tiny())


def test_probe_reads_the_class_where_it_is(dataset):
    hybridizer = making(lambda c, r: c)
    bar = lambda images: torch.stack([images[:, :, :, 2 * i] for i in range(3)], 1).mean((2, 3))  # the class
    hybridizer.encode_semantic = lambda images: bar(images)[:, :, None, None].expand(-1, -1, 2, 2)
    hybridizer.encode_nonsemantic = lambda images: images[:, :, :2, 10:]  # noise
    values = found("probe", dataset, hybridizer, probe_images=30)
    own = values["hybridizers"]["SciMix"]
    assert own["semantic_probe"] == own["pooled_semantic_probe"] == 1.0
    assert own["nonsemantic_probe"] < 0.7
    assert values["chance"]["probe"] == pytest.approx(1 / 3)
    assert values["probe_images"] == 30
    assert found("probe", dataset, hybridizer)["probe_images"] == 54  # those of known class

    seen = oracle(dataset.test.images.pixels.float() / 255).argmax(1)
    pairs = [(seen[c], dataset.test.labels[c], dataset.test.labels[r]) for c, r in zip(*parents(dataset), strict=True)]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    assert len(different) < len(pairs)
    assert own["semantic_class_taken"] == pytest.approx(np.mean([h == c for h, c, _ in different]))
    assert own["nonsemantic_class_taken"] == pytest.approx(np.mean([h == r for h, _, r in different]))
    # Intervals count the semantic parents of these pairs alone
    once = found("probe", dataset, hybridizer, repeats=1)["hybridizers"]["SciMix"]
    semantic, nonsemantic = parents(dataset, repeats=1)
    labels = dataset.test.labels.numpy()
    hits = (seen.numpy()[semantic] == labels[semantic])[labels[semantic] != labels[nonsemantic]]
    expected = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    assert len(hits) < COUNT and once["semantic_class_taken_interval"] == pytest.approx([*expected], abs=1e-6)


def test_table_and_picture_of_the_probe(dataset):
    """With the largest class for chance of what is read, and with unrelated images for that of what is taken."""
    biased = replace(dataset, test=replace(dataset.test, labels=torch.arange(COUNT) % 7 % 3))  # 9, 6 and 6
    drawn_ones = []
    hybridizers = {"here": tiny(0), "there": making(lambda c, r: r)}
    encode = hybridizers["here"].encode_nonsemantic
    hybridizers["here"].encode_nonsemantic = lambda images: drawn_ones.append(images) or encode(images)
    finding = study("probe", conditions(biased, hybridizers, probe_images=20, seed=1))
    study("probe", conditions(biased, hybridizers, probe_images=20, seed=2))
    first, second = (images for images in drawn_ones if len(images) == 20)
    assert not torch.equal(first, second)
    values, chance = finding.values["hybridizers"], finding.values["chance"]
    unrelated = draw_pairs(COUNT, 3, 1)
    labels, seen = biased.test.labels, oracle(biased.test.images.pixels.float() / 255).argmax(1)[unrelated.other]
    differ = labels[unrelated.semantic] != labels[unrelated.nonsemantic]
    expected = (seen == labels[unrelated.nonsemantic])[differ].double().mean().item()
    assert chance["probe"] == 9 / 21 and chance["nonsemantic_class_taken"] == pytest.approx(expected)
    probes = {"z_r": "nonsemantic_probe", "z_c": "semantic_probe"}
    taken = {
        "semantic parent's class": "semantic_class_taken", "non-semantic parent's class": "nonsemantic_class_taken"
    }  # fmt: skip
    for name, of in values.items():
        for label, key in (probes | taken).items():
            assert cell(finding.table, name, label).startswith(percent(of, key))
    for label in probes:
        assert cell(finding.table, "chance", label).startswith(" 42.9%  ")
    assert cell(finding.table, "chance", "non-sem").startswith(percent(chance, "nonsemantic_class_taken"))
    assert f"of 20 images\nclasses: {'what the oracle sees'}" in finding.table
    left, right = finding.figure.axes
    assert left.get_title() == "accuracy of a linear classifier (20 images)"
    assert right.get_title() == "hybrids of parents of different classes have the ..."
    for axis, columns, by_chance in ((left, probes, 9 / 21), (right, taken, expected)):
        assert drawn(axis) == {label: [[of[key]] for of in values.values()] for label, key in columns.items()}
        (line,) = (line for line in axis.get_lines() if line.get_label().startswith("chance"))
        assert list(line.get_ydata()) == pytest.approx([by_chance] * 2)


def test_test_images_of_unknown_class_are_as_if_they_were_not_there(dataset):
    kept = torch.tensor([i for i in range(COUNT) if i % 5 != 1])
    part, labels = dataset.test, dataset.test.labels.clone()
    labels[1::5] = -1
    few = Part(InMemory(part.images.pixels[kept]), part.labels[kept], part.masks[kept], part.backgrounds[kept])
    values = found("probe", replace(dataset, test=replace(part, labels=labels)), tiny(), repeats=1)
    assert values == found("probe", replace(dataset, test=few), tiny(), repeats=1)
    assert values["semantic_parents"] == len(kept) < COUNT


def test_probe_of_vectors_is_not_pooled(dataset):
    finding = study("probe", conditions(dataset, tiny(), repeats=1))
    assert "pooled_semantic_probe" not in finding.values["hybridizers"]["SciMix"]
    assert "pooled" not in finding.table


def test_methods_are_the_rows_of_the_transfer_rates(dataset):
    first, second = tiny(0), tiny(1)
    values = found("methods", dataset, {"one": first, "two": second}, fda_beta=0.2)
    rates = [transfer_rates(each, dataset, oracle, Accelerator(), repeats=3, fda_beta=0.2) for each in (first, second)]
    expected = {"one": rates[0].hybridizer, "two": rates[1].hybridizer}
    expected |= {MIXUP: rates[0].mixup, FDA: rates[0].fda, CHANCE: rates[0].chance}
    assert values["methods"] == {name: each.to_dict() for name, each in expected.items()}
    assert list(values["methods"]) == list(expected) and values["fda_beta"] == 0.2


def test_picture_of_methods_shows_what_each_makes_of_the_same_pairs(dataset):
    """But for chance, which makes nothing."""
    finding = study("methods", conditions(dataset, {"one": making(lambda c, r: r)}, repeats=1, fda_beta=0.2, seed=3))
    axes, values = finding.figure.axes, finding.values["methods"]
    titles = [
        f"{name}\ns_c {of['semantic_transfer']:.0%}, s_r {of['nonsemantic_preservation']:.0%}"
        for name, of in values.items()
        if name != CHANCE
    ]
    assert [axis.get_title() for axis in axes[:5]] == ["semantic parent", "non-semantic parent", *titles]
    assert len(axes) == 6 * 5
    x, ratios = dataset.test.images.pixels.float() / 255, []
    for i, (c, r) in enumerate(shown_pairs(dataset, axes, 5)):
        one, mixed, of_fda = (torch.tensor(axis.images[0].get_array()) for axis in axes[5 * i + 2 : 5 * i + 5])
        assert torch.equal(one, x[r].permute(1, 2, 0))
        torch.testing.assert_close(of_fda, fda(x[c][None], x[r][None], 0.2)[0].permute(1, 2, 0))
        difference = (x[c] - x[r]).permute(1, 2, 0)
        ratio = ((mixed - x[r].permute(1, 2, 0)) * difference).sum() / difference.square().sum()
        torch.testing.assert_close(mixed, mixup(x[c][None], x[r][None], ratio[None])[0].permute(1, 2, 0))
        ratios.append(ratio)
    expected = torch.rand(6, generator=torch.Generator().manual_seed(derive_seed(3, "shown")))
    torch.testing.assert_close(torch.stack(ratios), torch.maximum(expected, 1 - expected))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_leaves_numbers_a_table_and_a_picture(dataset, tmp_path, name):
    hybridizers = {"here": tiny(0), "there": tiny(1)}
    write(study(name, conditions(dataset, hybridizers, steps=(5, 20), repeats=1)), files_of(name, tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"{name}.{e}" for e in ("json", "png", "txt")]
    values = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    assert (values["study"], values["data"], values["repeats"], values["semantic_parents"]) == (name, "bars", 1, COUNT)
    assert values["steps"] == [5, 20]
    table = (tmp_path / "new" / f"{name}.txt").read_text()
    for row in ("here", "there", f"oracle accuracy {values['oracle_accuracy']:.1%}"):
        assert row in table
    with Image.open(tmp_path / "new" / f"{name}.png") as picture:
        picture.load()
        assert min(picture.size) > 300
    for end in ("json", "txt", "png"):
        with pytest.raises(InputError, match=f"{name}.{end} is there already"):
            files_of(name, tmp_path / "new")
        (tmp_path / "new" / f"{name}.{end}").unlink()


def test_nothing_is_half_written(tmp_path):
    class Interrupted(Figure):
        def savefig(self, *arguments, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(Finding({}, "", Interrupted()), files_of("transfer", tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is not a folder"):
        files_of("transfer", tmp_path / "file" / "below")


def test_other_classes_are_refused_where_the_hybridizer_judges(dataset):
    with pytest.raises(InputError, match="knows the classes x, y, z, bars has a, b, c"):
        found("transfer", dataset, tiny(classes=("x", "y", "z")))


def test_snapshots_come_in_the_order_of_their_steps(tmp_path):
    for seed, step in enumerate((100, 20, 3)):
        tiny(seed).save_pretrained(tmp_path / "snapshots" / f"step-{step}")
    hybridizers, steps = load_hybridizers([tmp_path / "snapshots"])
    assert steps == (3, 20, 100)
    assert list(hybridizers) == ["SciMix step-3", "SciMix step-20", "SciMix step-100"]
    for seed, hybridizer in zip((2, 1, 0), hybridizers.values(), strict=True):
        expected = tiny(seed).autoencoder.state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in hybridizer.autoencoder.state_dict().items())
    assert load_hybridizers([tmp_path / "snapshots" / "step-3"])[1] is None


def test_names_tell_hybridizers_apart(tmp_path):
    for seed, run in enumerate(("a", "b")):
        tiny(seed).save_pretrained(tmp_path / run / "hybridizer")
    folders = [tmp_path / run / "hybridizer" for run in ("a", "b")]
    hybridizers, steps = load_hybridizers(folders)
    assert list(hybridizers) == ["SciMix a", "SciMix b"] and steps is None
    assert list(load_hybridizers(folders[:1])[0]) == ["SciMix"]
    with pytest.raises(InputError, match="given twice"):
        load_hybridizers([folders[0], folders[0]])
    tiny(size=32).save_pretrained(tmp_path / "large")
    with pytest.raises(InputError, match=r"different sizes \(16, 32\)"):
        load_hybridizers([folders[0], tmp_path / "large"])


def test_pairs_of_no_kind_have_no_rate(dataset):
    """All test images of one class: none are of different classes."""
    one = replace(dataset, test=replace(dataset.test, labels=torch.zeros(COUNT, dtype=torch.int64)))
    values = found("probe", one, tiny(), repeats=1)["hybridizers"]["SciMix"]
    assert values["nonsemantic_class_taken"] is None
    assert not math.isnan(values["semantic_probe"])
