"""One's own images as files, in a folder for each class; and what any images of unequal sizes are read by."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hybridgen.assets import carried
from hybridgen.data.datasets import Dataset, Part, Request, check_classes, described
from hybridgen.data.sources import (
    IMAGE_SUFFIXES,
    Embedded,
    Files,
    ImageFile,
    InMemory,
    Photographs,
    decode,
    one_line,
    size_of,
)
from hybridgen.files import printable
from hybridgen.types import InputError

CONTENT_HASH_LIMIT = 256 << 20
"""Folders up to this many bytes are fingerprinted by their contents, larger ones by names and sizes alone."""


Groups = Mapping[str, Sequence[ImageFile]]
"""Image files by the names of their classes, in the order of these."""

PARTS, UNLABELED = ("train", "test"), ("unlabeled", "unlabelled")
"""Folders of the parts, and of images without classes, in either spelling."""

TEST_SHARE = 5
"""Of so many images of a class that has no test part one is taken for it."""

SIDES, LOOKED_AT = (16, 32, 64), 512
"""Of images of unequal sizes, one of these by so many of them."""


def folder(request: Request) -> Dataset:
    """PATH/train/<class>/…, PATH/test/<class>/…, and PATH/unlabeled/… (or unlabelled) of images without classes; or
    PATH/<class>/…, of which a test part is drawn (`drawn_test`). What lies beside the parts is told and not used.
    InputError for parts in capitals, and for images without classes inside a part."""
    if not request.path.is_dir():
        raise InputError(f"{request.path}: no such folder")
    return _of_folder(request, request.path)


def of_classes(request: Request) -> Dataset:
    """Some of the classes of a `folder`: those that a text file in it names, one a line. InputError for a class that is
    not there, or of which there are no images."""
    return _of_folder(request, request.path.parent, only=_names(request.path))


def imagenet_100(request: Request) -> Dataset:
    """Of ImageNet as a `folder`, the hundred classes that Tian et al. (2020, "Contrastive multiview coding") drew, of
    `assets/classes`."""
    return _of_folder(request, request.path, only=_names(carried("assets") / "classes" / "imagenet-100.txt"))


def _names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)})") from error
    names = [name for line in lines if (name := line.strip())]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: class {twice!r} comes twice")
    if wrong := [name for name in names if Path(name).name != name]:
        raise InputError(f"{file}: {wrong[0]!r} is no folder's name; needed are names of classes, one a line")
    return names


def _of_folder(request: Request, root: Path, only: Sequence[str] | None = None) -> Dataset:
    unlabeled = [path for name in UNLABELED for path in images_below(root / name)]
    folders, told = _folders(root), []
    has_parts = any(part in folders for part in PARTS)
    _check_capitals(root, folders, has_parts)
    if has_parts:
        train, test = (_images_by_class(root / part, only=only) for part in PARTS)
        if unused := [name for name in folders if name not in (*PARTS, *UNLABELED)]:
            told = [f"of {request.name} is not used: {', '.join(map(printable, unused))}"]
    else:
        train, test = drawn_test(_images_by_class(root, but=UNLABELED, only=only), root, request.name)
    every = [path for groups in (train, test) for group in groups.values() for path in group] + unlabeled
    return of_groups(request, root, train, test, unlabeled, lambda: files_digest(root, every), told)


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, but for hidden ones."""
    try:
        return sorted(name for name in os.listdir(root) if not name.startswith(".") and (root / name).is_dir())
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({one_line(error)})") from error


def _check_capitals(root: Path, folders: Sequence[str], has_parts: bool) -> None:
    """InputError for what only capitals keep from being a part or images without classes; a class may be called Train
    if there is no test beside it."""
    has_parts = has_parts or {name.lower() for name in folders} >= set(PARTS)
    known = (*UNLABELED, *(PARTS if has_parts else ()))
    for name in folders:
        if name not in known and name.lower() in known:
            raise InputError(f"{root / name}: has capitals; needed is {name.lower()}")


def drawn_test(groups: Groups, root: Path, data: str) -> tuple[Groups, Groups]:
    """The training and the test part of images that have none: of every class one in five, at least one, by the order
    of their names' SHA-256, which is the same on every machine. InputError for a class of a single image."""
    code = lambda path: hashlib.sha256(name_below(root, path).encode(errors="surrogateescape")).digest()
    train, test = {}, {}
    for name, paths in groups.items():
        if len(paths) < 2:
            raise InputError(f"{data}: class {name!r} has {len(paths)} image; two are needed, one of them for the test")
        count = max(1, round(len(paths) / TEST_SHARE))
        chosen = set(sorted(paths, key=code)[:count])
        test[name] = [path for path in paths if path in chosen]
        train[name] = [path for path in paths if path not in chosen]
    return train, test


def of_groups(
    request: Request,
    root: Path,
    train: Groups,
    test: Groups,
    unlabeled: Sequence[ImageFile],
    digest: Callable[[], str],
    told: Sequence[str] = (),
) -> Dataset:
    """A set of the classes that the training part has, in memory if it fits; the digest is of the files below the root,
    told what the reader chose. InputError for one class, and for names of classes that are alike or in the test alone.
    """
    classes = tuple(train)
    strangers = [name for name in test if name not in train]
    if strangers:
        raise InputError(f"{request.name}: class {strangers[0]!r} is in test but not in train")
    check_classes(request.name, classes)
    paths = {
        "train": [path for group in train.values() for path in group] + list(unlabeled),
        "test": [path for group in test.values() for path in group],
    }
    labels = {
        "train": [classes.index(name) for name, group in train.items() for _ in group] + [-1] * len(unlabeled),
        "test": [classes.index(name) for name in test for _ in test[name]],
    }
    if request.whole and request.image_size is None:
        raise InputError(f"{request.name}: whole photographs are cropped to one size; pass --image-size")
    size = request.image_size or _own_size(paths["train"] + paths["test"])
    fits = 3 * size**2 * sum(map(len, paths.values())) <= request.memory_limit
    parts = {}
    for part in ("train", "test"):
        images = Photographs(paths[part], size) if request.whole else Files(paths[part], size)
        if fits and isinstance(images, Files):
            images = _decoded(images)
        files = tuple(printable(name_below(root, path)) for path in paths[part])
        parts[part] = Part(images, torch.tensor(labels[part], dtype=torch.int64), files=files)
    return described(request, classes, parts["train"], parts["test"], digest(), flip=True, told=told)


def _images_by_class(
    folder: Path, *, but: Sequence[str] = (), only: Sequence[str] | None = None
) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; needed is {folder.name}/<class>/<images>")
    if only is not None:
        groups = {name: images_below(folder / name) for name in sorted(only)}
        if missing := [name for name, images in groups.items() if not images]:
            raise InputError(
                f"{folder}: no images of class {missing[0]!r}; of the {len(only)} classes that are asked for "
                f"{len(missing)} are missing"
            )
        return groups
    groups = {}
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.name in but:
            continue
        if entry.is_dir():
            if entry.name.lower() in UNLABELED:
                place = folder.parent / UNLABELED[0]
                raise InputError(f"{path}: images without classes are of no part; needed is {place}")
            groups[_class_name(path)] = images_below(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: lies outside a class folder; needed is {folder.name}/<class>/<images>")
    if not any(groups.values()):
        raise InputError(f"{folder}: no images in <class> folders below it")
    for name, group in groups.items():
        if not group and folder.name != "test":
            raise InputError(f"{folder / name}: class {name!r} has no images")
    return {name: group for name, group in groups.items() if group}


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{os.fsencode(folder)!r}: the class's name is not UTF-8; rename the folder") from error
    return folder.name


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth, hidden ones left out, in an order that is the same on every machine.

    Links are followed. InputError for a link that leads nowhere or to a folder in which it lies.
    """
    found: list[Path] = []
    if not os.path.lexists(folder):
        return found

    def collect(where: Path, above: Sequence[Path]) -> None:
        for entry in _entries(where):
            path = where / entry.name
            if entry.is_dir():
                if entry.is_symlink() and any(path.samefile(outer) for outer in above):
                    raise InputError(f"{path}: a link to a folder in which it lies")
                collect(path, [*above, path])
            elif entry.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)

    collect(folder, [folder, *folder.resolve().parents])
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name, but for what is hidden. InputError where it cannot be read."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({one_line(error)})") from error
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(f"{folder / entry.name}: a link that leads nowhere")
    return entries


def _own_size(paths: Sequence[ImageFile]) -> int:
    """The side of squares of one size, or the largest of `SIDES` that is not above the middle one of the shorter sides,
    of `LOOKED_AT` images at most."""
    width, height = size_of(paths[0])
    if width == height and all(size_of(path) == (width, height) for path in paths[1:]):
        return width
    sides = sorted(min(size_of(path)) for path in paths[:: -(-len(paths) // LOOKED_AT)])
    return max((side for side in SIDES if side <= sides[len(sides) // 2]), default=SIDES[0])


def _decoded(files: Files) -> InMemory:
    pixels = torch.empty(len(files), 3, files.image_size, files.image_size, dtype=torch.uint8)

    def fill(index: int) -> None:
        pixels[index] = decode(files.paths[index], files.image_size)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(len(files))):
                pass
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    return InMemory(pixels)


def name_below(root: Path, path: ImageFile) -> str:
    """The path from the root; the path itself where it leads elsewhere; in a table part and row."""
    if isinstance(path, Embedded):
        return path.name
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def files_digest(root: Path, paths: Sequence[ImageFile]) -> str:
    """SHA-256 of relative names and sizes in bytes, and of the contents unless they are very large."""
    try:
        sizes = [path.size() if isinstance(path, Embedded) else path.stat().st_size for path in paths]
        with_contents = sum(sizes) <= CONTENT_HASH_LIMIT
        digest = hashlib.sha256(b"contents" if with_contents else b"sizes")
        for path, size in sorted(zip(paths, sizes, strict=True), key=lambda item: name_below(root, item[0])):
            digest.update(json.dumps([name_below(root, path), size]).encode())
            if with_contents:
                digest.update(path.read_bytes())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({one_line(error)})") from error
    return digest.hexdigest()
