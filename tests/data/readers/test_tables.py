"""Images that are rows of Parquet files and of Hugging Face's `datasets`; CSV files are in test_own_files.py."""

import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data.datasets import load_dataset
from hybridgen.data.sources import Files, InMemory, Photographs, decode

NEEDED = "needs pyarrow and datasets: pip install 'hybridgen[datasets]'"


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason=NEEDED)


@pytest.fixture
def parquet(arrow, tmp_path) -> Callable[..., Path]:
    """Writes columns to a Parquet file."""
    writer = pytest.importorskip("pyarrow.parquet", reason=NEEDED)

    def make(columns: dict, metadata: dict | None = None) -> Path:
        writer.write_table(arrow.table(columns).replace_schema_metadata(metadata), tmp_path / "list.parquet")
        return tmp_path / "list.parquet"

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The package, with a cache of its own and without bars of progress."""
    datasets = pytest.importorskip("datasets", reason=NEEDED)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


@pytest.fixture
def files(tmp_path, picture, write) -> list[Path]:
    """Eight images."""
    return [write(tmp_path / "images" / f"{i}.png", picture(i)) for i in range(8)]


def encoded(file: Path) -> dict:
    return {"bytes": file.read_bytes(), "path": file.name}


@pytest.fixture
def saved(hub, files, tmp_path) -> Callable[..., str]:
    """Saves splits, of labels each (the first one with the first images), as `save_to_disk` does; gives the name."""

    def make(splits: dict[str, Sequence], label=None, name: str = "saved") -> str:
        left, made = iter(files), {}
        features = hub.Features(img=hub.Image(), label=label or hub.ClassLabel(names=["dog", "cat", "ant"]))
        for split, labels in splits.items():
            images = [encoded(next(left)) for _ in labels]
            made[split] = hub.Dataset.from_dict({"img": images, "label": list(labels)}, features=features)
        hub.DatasetDict(made).save_to_disk(tmp_path / name)
        return f"hf:{tmp_path / name}"

    return make


def pixels(part) -> torch.Tensor:
    return part.images.gather(torch.arange(len(part)))


def decoded(files: Sequence[Path]) -> torch.Tensor:
    return torch.stack([decode(file, 8) for file in files])


# --- Parquet files


@pytest.mark.parametrize("part", [False, True])
def test_a_parquet_file_lists_what_a_csv_file_does(tmp_path, parquet, files, part):
    columns = {"file_name": [f"images/{i}.png" for i in range(8)], "Class": ["cat", "dog", None, "cat", "dog", "cat",
               "dog", ""], "size": list(range(8))}  # fmt: skip
    if part:
        columns["split"] = ["train", "train", "train", "test", "test", "train", "train", "train"]
    rows = [
        ",".join(columns),
        *(",".join(str(value or "") for value in row) for row in zip(*columns.values(), strict=True)),
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    ours, theirs = load_dataset(str(parquet(columns))), load_dataset(f"csv:{tmp_path / 'list.csv'}")
    assert ours.name == f"parquet:{tmp_path / 'list.parquet'}" and ours.classes == ("cat", "dog")
    assert ours.train.files == theirs.train.files and ours.fingerprint == theirs.fingerprint
    for mine, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert torch.equal(mine.labels, other.labels) and torch.equal(pixels(mine), pixels(other))
    if part:
        assert torch.equal(pixels(ours.test), decoded([files[3], files[4]]))


def test_classes_that_are_numbers_are_in_their_order(parquet, files):
    """-1 is none."""
    paths = [str(file) for file in files]
    dataset = load_dataset(str(parquet({"path": paths, "label": [10, 10, 9, 9, -1, None, 100, 100]})))
    assert dataset.classes == ("9", "10", "100") and dataset.train.labels.tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("named", [False, True])
def test_a_parquet_file_may_hold_the_images(parquet, files, tmp_path, named):
    """As the hub has them, with the names of classes in the metadata."""
    said = (
        '{"info": {"features": {"img": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}'
    )
    path = parquet(
        {"img": [encoded(file) for file in files[:7]] + [{"bytes": None, "path": "images/7.png"}],
         "label": [1, 0, 1, 0, 1, 0, -1, -1], "split": ["train"] * 4 + ["test"] * 2 + ["train"] * 2},
        {"huggingface": said} if named else None,
    )  # fmt: skip
    dataset = load_dataset(str(path))
    assert dataset.classes == (("dog", "cat") if named else ("0", "1"))
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, -1, -1] and dataset.test.labels.tolist() == [0, 1]
    assert torch.equal(pixels(dataset.train), decoded([files[i] for i in (1, 3, 0, 2, 6, 7)]))
    assert dataset.train.files == ("1", "3", "0", "2", "6", "7")
    again = load_dataset(str(path), memory_limit=0)
    assert isinstance(again.train.images, Files) and again.fingerprint == dataset.fingerprint
    assert torch.equal(pixels(again.train), pixels(dataset.train))
    assert isinstance(load_dataset(str(path), image_size=4, whole=True).train.images, Photographs)


def test_images_may_be_plain_bytes(parquet, files):
    """As structs of bytes are."""
    labels = {"label": [0, 1] * 4}
    plain = load_dataset(str(parquet({"image": [file.read_bytes() for file in files]} | labels)))
    structs = load_dataset(str(parquet({"image": [encoded(file) for file in files]} | labels)))
    assert plain.fingerprint == structs.fingerprint and plain.train.files == structs.train.files
    assert torch.equal(pixels(plain.train), pixels(structs.train))


def test_paths_that_are_no_text_are_refused(parquet, fails):
    fails(str(parquet({"path": [None, 7], "label": [0, 1]})), "row 0: no path: no such file")
    fails(str(parquet({"path": [7, 8], "label": [0, 1]})), "row 0: 7 for a path; text, or an image file's bytes, are")
    fails(str(parquet({"image": [b"", None] * 2, "label": [0, 1] * 2})), ": not a readable image (cannot identify")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"size": [1, 2]}, "no column path or file or file_name or filename or image; it has size"),
        ({"path": ["0", "1"]}, "no column label or class; it has path"),
        ({"path": ["0", "77"], "label": ["a", "b"]}, "row 1: images/77.png: no such file"),
        ({"path": ["0", None], "label": ["a", "b"]}, "row 1: no path: no such file"),
        ({"path": ["0", "0"], "label": ["a", "b"]}, "row 1: images/0.png comes twice"),
        ({"path": ["0", "1"], "label": [None, ""]}, "no row has a label"),
        ({"path": ["0", "1"], "label": [0.0, 1.5]}, "row 0: label 0.0; text or an integer is needed"),
        ({"path": ["0", "1"], "label": [0, 1], "part": ["train", "dev"]}, "row 1: part 'dev'; train or test is needed"),
        ({"path": ["0", "1"], "label": [0, -1], "part": ["train", "test"]}, "row 1: an image of the test has no label"),
        ({"path": ["0", "1"], "label": [0, 1], "part": ["train"] * 2}, "no row has part 'test'"),
        ({"path": ["0", "1"], "label": [0, 1], "part": ["train", "test"]}, "class '1' is in test but not in train"),
        ({"path": ["0", "1", "2", "3"], "label": list("aaAA")}, "classes 'A' and 'a' differ by upper and lower case"),
        ({"path": ["0", "1"], "label": ["a", "a"]}, "1 class (a); two or more are needed"),
    ],
)
def test_faults_of_parquet_files(parquet, files, fails, columns, words):
    if "path" in columns:
        columns = columns | {"path": [name and f"images/{name}.png" for name in columns["path"]]}
    fails(str(parquet(columns)), "list.parquet", words)


def test_parquet_files_that_cannot_be_read(tmp_path, parquet, files, fails):
    fails(f"parquet:{tmp_path / 'no.parquet'}", "no.parquet: no such file")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and more")
    fails(f"parquet:{tmp_path / 'no.parquet'}", "no.parquet: not a readable Parquet file")
    broken = [encoded(file) for file in files[:3]] + [{"bytes": b"none", "path": "x.png"}]
    fails(str(parquet({"image": broken, "label": [0, 1, 0, 1]})), "row 3: not a readable image (cannot identify")
    broken[3] = {"bytes": None, "path": None}
    fails(str(parquet({"image": broken, "label": [0, 1, 0, 1]})), "list.parquet: row 3: no image")
    fails(str(parquet({"a": broken, "b": broken, "label": [0, 1, 0, 1]})), "2 columns of images (a, b); one is needed")
    fails(str(parquet({"image": broken})), "no column label or class; it has image")


@pytest.mark.parametrize(("name", "package"), [("parquet:a.parquet", "pyarrow"), ("hf:a/b", "datasets")])
def test_a_package_that_is_not_there_is_named(monkeypatch, fails, name, package):
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    fails(name, f"{name} needs {package}: pip install 'hybridgen[datasets]'")


# --- Hugging Face's datasets


def test_a_saved_set_has_its_splits_labels_and_names(saved, files):
    """Classes are those that have images, in the order of the names; what is not known lies at the end."""
    name = saved({"train": [1, 0, -1, None, 0], "test": [1, 0], "unlabeled": [None]})
    dataset = load_dataset(name)
    assert (dataset.name, dataset.classes, dataset.image_size, dataset.told) == (name, ("dog", "cat"), 8, ())
    assert dataset.train.labels.tolist() == [0, 0, 1, -1, -1, -1] and dataset.test.labels.tolist() == [0, 1]
    assert isinstance(dataset.train.images, InMemory)
    assert torch.equal(pixels(dataset.train), decoded([files[i] for i in (1, 4, 0, 2, 3, 7)]))
    assert torch.equal(pixels(dataset.test), decoded([files[6], files[5]]))
    assert dataset.train.files == ("train/1", "train/4", "train/0", "train/2", "train/3", "unlabeled/0")
    assert dataset.test.files == ("test/1", "test/0")


def test_beyond_the_memory_limit_its_images_stay_where_they_are(saved):
    name = saved({"train": [0, 1, 0, 1], "test": [0, 1]})
    memory, stored = load_dataset(name), load_dataset(name, memory_limit=0)
    assert isinstance(stored.train.images, Files) and torch.equal(pixels(stored.train), pixels(memory.train))
    assert (stored.mean, stored.std, stored.fingerprint) == (memory.mean, memory.std, memory.fingerprint)
    sent = pickle.loads(pickle.dumps(stored.train.images))  # to processes that decode
    assert torch.equal(sent.gather(torch.tensor([3, 0])), pixels(memory.train)[[3, 0]])


def test_its_fingerprint_follows_labels_splits_and_pixels_but_no_place(saved, files, picture, write):
    code = lambda name, **splits: load_dataset(saved(splits, name=name), image_size=4).fingerprint
    first = code("a", train=[0, 1, 0, 1], test=[0, 1])
    assert first == code("b", train=[0, 1, 0, 1], test=[0, 1])
    assert len({first, code("c", train=[0, 1, 1, 0], test=[0, 1]), code("d", train=[0, 1, 0], test=[1, 0, 1])}) == 3
    write(files[5], picture(50))
    assert code("e", train=[0, 1, 0, 1], test=[0, 1]) != first


def test_validation_stands_for_a_test_without_labels(saved, files):
    name = saved({"train": [0, 1], "validation": [0, 1], "test": [-1, -1], "extra": [0, 1]})
    dataset = load_dataset(name)
    assert torch.equal(pixels(dataset.test), decoded(files[2:4]))
    assert dataset.told == (f"of {name} the test is split validation", f"of {name} is not used: test, extra")


def test_a_test_part_is_drawn_where_there_is_none(saved, hub, tmp_path):
    """Also of a set that has no splits."""
    name = saved({"train": [0, 1, 0, 1, 0, 1, 0, None]})
    dataset = load_dataset(name)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, -1] and dataset.test.labels.tolist() == [0, 1]
    assert dataset.told == (f"{name} has no split test: one in five images of every class is kept for it",)
    hub.load_from_disk(name.removeprefix("hf:"))["train"].with_format("torch").save_to_disk(tmp_path / "plain")
    plain = load_dataset(f"hf:{tmp_path / 'plain'}")
    assert plain.fingerprint == dataset.fingerprint and plain.test.files == dataset.test.files


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [("string", ["dog", "cat", "", None], ("cat", "dog")), ("int64", [10, 9, -1, None], ("9", "10"))],
)
def test_labels_may_be_text_or_numbers(saved, hub, kind, labels, classes):
    dataset = load_dataset(saved({"train": labels, "test": labels[:2]}, hub.Value(kind)))
    assert dataset.classes == classes and dataset.train.labels.tolist() == [0, 1, -1, -1]
    assert dataset.train.files == ("train/1", "train/0", "train/2", "train/3")


def test_images_of_any_mode_and_size(hub, tmp_path):
    """As `decode` reads the same files."""
    values, images = np.arange(20 * 30 * 4, dtype=np.uint32).reshape(20, 30, 4) * 27 % 256, []
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "LA"):
        channels = {"L": 1, "P": 1, "I;16": 1, "LA": 2}.get(mode, 4)
        array = (values[..., :channels].squeeze(-1) if channels == 1 else values[..., :channels]).astype(np.uint8)
        image = Image.fromarray(array.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(array, None)
        image = image.convert(mode) if mode in ("P", "CMYK") else image
        file = tmp_path / f"{len(images)}.{'tif' if mode == 'CMYK' else 'png'}"
        image.save(file)
        images.append(file)
    features = hub.Features(image=hub.Image(), label=hub.Value("int64"))
    part = hub.Dataset.from_dict({"image": [encoded(file) for file in images], "label": [0, 1] * 3}, features=features)
    hub.DatasetDict(train=part, test=part).save_to_disk(tmp_path / "modes")
    dataset = load_dataset(f"hf:{tmp_path / 'modes'}")
    assert dataset.image_size == 16
    expected = torch.stack([decode(images[int(name.removeprefix("train/"))], 16) for name in dataset.train.files])
    assert torch.equal(pixels(dataset.train), expected)


def test_a_folder_of_images_is_what_the_folder_reader_takes_it_for(hub, tmp_path, image_folder):
    """Of files that stay in their places."""
    root = image_folder(tmp_path / "pets")
    ours, theirs = load_dataset(f"hf:{root}"), load_dataset(f"folder:{root}")
    assert ours.classes == theirs.classes
    for mine, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert torch.equal(mine.labels, other.labels) and torch.equal(pixels(mine), pixels(other))


def test_faults_of_saved_sets(saved, hub, fails):
    fails(saved({"test": [0, 1]}, name="a"), "no split 'train' with images; there are test")
    fails(saved({"train": [0, 0], "test": [0]}, name="b"), "1 class (dog); two or more are needed")
    fails(saved({"train": [0, 1], "test": [2]}, name="c"), "class 'ant' is in test but not in train")
    fails(saved({"train": [0, 1], "test": [0, -1]}, name="d"), "test: row 1: an image of the test has no label")
    fails(saved({"train": [0, 1], "test": [-1]}, name="e"), "test: no row has a label")
    fails(saved({"train": [None, -1]}, name="f"), "no row has a label")
    fails(saved({"train": [0, 0, 1]}, name="g"), "class 'cat' has 1 image; two are needed, one of them for the test")
    alike = hub.ClassLabel(names=["Cat", "cat"])
    fails(saved({"train": [0, 1], "test": [0]}, alike, name="h"), "classes 'Cat' and 'cat' differ by upper")
    decimal = saved({"train": [0.5, 1.5]}, hub.Value("float64"), name="i")
    fails(decimal, "train: row 0: label 0.5; text or an integer is needed")
    fails(f"{decimal},config=small", "config: what save_to_disk wrote has no configurations")


def test_columns_that_are_missing_or_several(hub, files, tmp_path, fails):
    image, label = [encoded(file) for file in files[:4]], [0, 1, 0, 1]
    kinds = {"a": hub.Image(), "b": hub.Image(), "fine": hub.ClassLabel(names=["x", "y"]),
             "coarse": hub.ClassLabel(names=["z", "w"]), "size": hub.Value("int64")}  # fmt: skip

    def made(*columns: str) -> str:
        values = {name: image if name in "ab" else label for name in columns}
        features = hub.Features({name: kinds[name] for name in columns})
        path = tmp_path / "-".join(columns)
        hub.DatasetDict(train=hub.Dataset.from_dict(values, features=features)).save_to_disk(path)
        return f"hf:{path}"

    fails(made("fine", "size"), "train: no column of images (type Image); it has fine, size")
    fails(made("a", "size"), "train: no column of labels (ClassLabel, or called label); it has a, size")
    several = made("a", "b", "fine", "coarse")
    fails(several, "train: 2 columns of images (a, b); pass hf:NAME,image=COLUMN")
    fails(f"{several},image=b", "train: 2 columns of labels (fine, coarse); pass hf:NAME,label=COLUMN")
    fails(f"{several},image=fine", "no column 'fine' of images; there are a, b")
    fails(f"{several},image=a,label=medium", "no column 'medium' of labels; there are a, b, fine, coarse")
    fails(f"{several},column=a", "'column' after the name; it may be config, image, label")
    assert load_dataset(f"{several},image=b,label=coarse").classes == ("z", "w")


def test_an_image_that_cannot_be_decoded_is_named_by_split_and_row(hub, files, tmp_path, fails):
    cut = files[0].read_bytes()[:60]
    features = hub.Features(img=hub.Image(), label=hub.Value("int64"))
    images = [encoded(files[0]), encoded(files[1]), {"bytes": cut, "path": None}]
    for name, last in (("cut", images[2]), ("none", None)):
        part = hub.Dataset.from_dict({"img": [*images[:2], last], "label": [0, 1, 0]}, features=features)
        hub.DatasetDict(train=part, test=part.select([0, 1])).save_to_disk(tmp_path / name)
    fails(f"hf:{tmp_path / 'cut'}", f"hf:{tmp_path / 'cut'}: train: row 2: not a readable image", image_size=8)
    fails(f"hf:{tmp_path / 'none'}", "train: row 2: no image")


def test_the_hub_is_in_reach_only_if_one_may_download(hub, files, monkeypatch, fails):
    fails("hf:owner/name", "pass --download", "Offline")
    fails("hf:./name", "./name is neither a folder nor a name of the hub (owner/name)")
    features = hub.Features(img=hub.Image(), label=hub.Value("int64"))
    part = hub.Dataset.from_dict(
        {"img": [encoded(file) for file in files[:4]], "label": [0, 1, 0, 1]}, features=features
    )
    asked = []

    def load(name, config):
        asked.append((name, config, hub.config.HF_HUB_OFFLINE))
        return hub.DatasetDict(train=part, test=part)

    before = hub.config.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "load_dataset", load)
    load_dataset("hf:owner/name,config=small", download=True)
    load_dataset("hf:owner/name")
    assert asked == [("owner/name", "small", before), ("owner/name", None, True)]
    assert hub.config.HF_HUB_OFFLINE is before
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)  # who wants to be offline stays so
    load_dataset("hf:owner/name,config=small", download=True)
    assert asked[-1] == ("owner/name", "small", True)
