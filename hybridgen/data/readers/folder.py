"""One's own images as files in a folder for each class."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from hybridgen.data.datasets import Dataset, Part, Request, described
from hybridgen.data.sources import IMAGE_SUFFIXES, Files, InMemory, Photographs, decode, one_line
from hybridgen.types import InputError

CONTENT_HASH_LIMIT = 256 << 20
"""Folders up to this many bytes are fingerprinted by their contents, larger ones by names and sizes alone."""


def folder(request: Request) -> Dataset:
    """PATH/train/<class>/…, PATH/test/<class>/…, and PATH/unlabeled/… of images without classes."""
    root = request.path
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    train, test = (_images_by_class(root / part) for part in ("train", "test"))
    classes = tuple(train)
    strangers = [name for name in test if name not in train]
    if strangers:
        raise InputError(f"{root / 'test' / strangers[0]}: class {strangers[0]!r} is in test but not in train")
    unlabeled = images_below(root / "unlabeled")

    paths = {
        "train": [path for group in train.values() for path in group] + unlabeled,
        "test": [path for group in test.values() for path in group],
    }
    labels = {
        "train": [classes.index(name) for name, group in train.items() for _ in group] + [-1] * len(unlabeled),
        "test": [classes.index(name) for name in test for _ in test[name]],
    }
    if request.whole and request.image_size is None:
        raise InputError(f"{request.name}: whole photographs are cropped to one size; pass --image-size")
    size = request.image_size or _common_size(root, paths["train"] + paths["test"])
    fits = 3 * size**2 * sum(map(len, paths.values())) <= request.memory_limit
    parts = {}
    for part in ("train", "test"):
        images = Photographs(paths[part], size) if request.whole else Files(paths[part], size)
        if fits and isinstance(images, Files):
            images = _decoded(images)
        parts[part] = Part(images, torch.tensor(labels[part], dtype=torch.int64))
    digest = files_digest(root, paths["train"] + paths["test"])
    return described(request, classes, parts["train"], parts["test"], digest, flip=True)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; needed is {folder.name}/<class>/<images>")
    groups = {}
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_dir():
            groups[_class_name(path)] = images_below(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: lies outside a class folder; needed is {folder.name}/<class>/<images>")
    if not any(groups.values()):
        raise InputError(f"{folder}: no images in <class> folders below it")
    for name, group in groups.items():
        if not group and folder.name == "train":
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


def _common_size(root: Path, paths: Sequence[Path]) -> int:
    first = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except Exception as error:
            raise InputError(f"{path}: not a readable image ({one_line(error)})") from error
        first = first or size
        if size != first or size[0] != size[1]:
            raise InputError(
                f"{root}: images are not all squares of one size ({path} has {size[0]}x{size[1]}); pass --image-size"
            )
    assert first is not None
    return first[0]


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


def files_digest(root: Path, paths: Sequence[Path]) -> str:
    """SHA-256 of relative names and sizes in bytes, and of the contents unless they are very large."""
    try:
        sizes = [path.stat().st_size for path in paths]
        with_contents = sum(sizes) <= CONTENT_HASH_LIMIT
        digest = hashlib.sha256(b"contents" if with_contents else b"sizes")
        for path, size in sorted(zip(paths, sizes, strict=True), key=lambda item: item[0].as_posix()):
            digest.update(json.dumps([path.relative_to(root).as_posix(), size]).encode())
            if with_contents:
                digest.update(path.read_bytes())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({one_line(error)})") from error
    return digest.hexdigest()
