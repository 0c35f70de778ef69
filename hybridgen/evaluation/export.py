"""Hybrids written as an image folder, with a metadata.csv of their parents, which Hugging Face's datasets read."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import Files, InMemory
from hybridgen.data.splits import Split
from hybridgen.data.streams import derive_seed
from hybridgen.files import is_vacant, printable, remove_leftovers, write_text, written_aside
from hybridgen.hybridizer import Hybridizer
from hybridgen.types import InputError

MANIFEST, TABLE, UNMERGED = "hybrids.json", "metadata.csv", ".unmerged"
BLOCK = 64
"""Hybrids computed at once. Fixed, and blocks are always computed whole: the results of a convolution may
depend on the batch in their last bits, and a hybrid is to be the same after an interruption and for any number
of processes."""


class Row(NamedTuple):
    """One line of `metadata.csv`. Everything is measured on the pixels of the file."""

    file_name: str
    semantic_parent: str
    """Its file, below the data set's folder if it is of one; of images that are no files, the index in their part of
    the data set."""
    nonsemantic_parent: str
    label: str
    """Class of the semantic parent."""
    label_source: str
    """"given", or "predicted" by the hybridizer's classifier where the class of the parent is not known or hidden."""
    predicted: str
    """Class of the hybrid by the hybridizer's classifier."""
    confidence: str
    """Its probability."""
    consistent: str
    """1 if `predicted` is `label`: the hybrids that the thesis keeps (2.3.4)."""
    closer_to_nonsemantic: str
    """1 if nearer (L2 over pixels) to the non-semantic parent than to the semantic one."""


@dataclass(frozen=True)
class Parents:
    """From what hybrids are made."""

    semantic: Part
    nonsemantic: Part
    """The same object where both parents come from one part; a pair then has two different images."""
    classes: tuple[str, ...]
    source: str
    """Tells these images from others."""
    among: tuple[int, ...] | None = None
    """Of which of the images of one part both parents come; of all unless given."""

    @classmethod
    def of_split(cls, dataset: Dataset, split: Split) -> "Parents":
        """The training images that a split labels or leaves unlabelled; only the former's classes are known."""
        labels = torch.full_like(dataset.train.labels, -1)
        labelled = list(split.labelled)
        labels[labelled] = dataset.train.labels[labelled]
        part = replace(dataset.train, labels=labels)
        among = tuple(sorted(split.labelled + split.unlabelled))
        return cls(part, part, dataset.classes, f"{dataset.fingerprint} train, split {split.hash}", among)

    @classmethod
    def of_files(cls, semantic: Sequence[Path], nonsemantic: Sequence[Path], hybridizer: Hybridizer) -> "Parents":
        """Image files, whose classes are not known."""
        digest = hashlib.sha256()
        parts = []
        for paths in (semantic, nonsemantic):
            pixels = Files(paths, hybridizer.image_size).gather(torch.arange(len(paths)))
            digest.update(str(len(paths)).encode() + pixels.numpy().tobytes())
            parts.append(Part(InMemory(pixels), torch.full((len(paths),), -1), files=tuple(map(printable, paths))))
        return cls(parts[0], parts[1], hybridizer.origin.classes, f"files {digest.hexdigest()}")

    def pair(self, seed: int, index: int) -> tuple[int, int]:
        """Which images hybrid `index` comes from, uniform and independent of all other hybrids."""
        draw = derive_seed(seed, "hybrid", index)
        own, theirs = (self.among or range(len(part)) for part in (self.semantic, self.nonsemantic))
        draw, semantic = divmod(draw, len(own))
        nonsemantic = draw % (len(theirs) - (self.semantic is self.nonsemantic))
        if self.semantic is self.nonsemantic:
            nonsemantic += nonsemantic >= semantic
        return own[semantic], theirs[nonsemantic]


@torch.no_grad()
def write_hybrids(
    hybridizer: Hybridizer,
    parents: Parents,
    folder: Path,
    accelerator: Accelerator,
    *,
    count: int,
    seed: int,
) -> str:
    """Write `folder/<class of the semantic parent>/<index>.png` and `folder/metadata.csv`; says what was done.

    Hybrid i is a function of (seed, i). Processes share the blocks. Called again after an interruption, it makes
    what is missing. InputError for a folder of something else or of other arguments, and where it cannot be
    written.
    """
    _check_classes(hybridizer, parents)
    manifest = {
        "hybridizer": _digest(hybridizer),
        "images": parents.source,
        "count": count,
        "seed": seed,
    }
    if accelerator.is_main_process:
        _claim(folder, manifest)
        remove_leftovers(folder)
    accelerator.wait_for_everyone()
    done = _read(folder)
    accelerator.wait_for_everyone()

    names = _folder_names(parents.classes)
    blocks = range(accelerator.process_index, -(-count // BLOCK), accelerator.num_processes)
    with ThreadPoolExecutor(4) as pool:
        for block in tqdm(blocks, "hybrids", unit="block", disable=not accelerator.is_main_process, mininterval=1):
            indices = range(block * BLOCK, min((block + 1) * BLOCK, count))
            if all(index in done for index in indices):
                continue
            pixels, rows = _hybrids(hybridizer, parents, names, indices, seed, accelerator.device)
            made = [(row, image) for index, row, image in zip(indices, rows, pixels, strict=True) if index not in done]
            list(pool.map(lambda pair: _write_image(folder / pair[0].file_name, pair[1]), made))
            _write_rows(folder / UNMERGED / f"block-{block}.csv", rows)

    accelerator.wait_for_everyone()
    before, rows = len(done), _read(folder)
    if len(rows) != count:
        raise InputError(f"{folder}: {count - len(rows)} of {count} hybrids have vanished while others were written")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _merge(folder, [rows[index] for index in sorted(rows)])
    accelerator.wait_for_everyone()
    consistent, closer = (
        sum(getattr(row, field) == "1" for row in rows.values()) / count
        for field in ("consistent", "closer_to_nonsemantic")
    )
    return (
        f"{count} hybrids, {count - before} of them made now; by the hybridizer's own classifier {consistent:.1%}"
        f" have the class of their semantic parent; {closer:.1%} are nearer to their non-semantic parent"
    )


def _hybrids(
    hybridizer: Hybridizer,
    parents: Parents,
    names: Sequence[str],
    indices: Sequence[int],
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, list[Row]]:
    """Pixels, uint8 [n, h, w, 3], and rows of a block."""
    pairs = torch.tensor([parents.pair(seed, index) for index in indices])
    x_c = parents.semantic.images.gather(pairs[:, 0]).to(device).float() / 255
    x_r = parents.nonsemantic.images.gather(pairs[:, 1]).to(device).float() / 255
    pixels = (hybridizer.hybridize(semantic=x_c, nonsemantic=x_r) * 255).round().clamp(0, 255).byte()
    x_h = pixels.float() / 255
    given = parents.semantic.labels[pairs[:, 0]].to(device)
    labels = torch.where(given >= 0, given, hybridizer.classify(x_c).argmax(dim=1))
    confidence, predicted = hybridizer.classify(x_h).softmax(dim=1).max(dim=1)
    closer = (x_h - x_r).square().sum((1, 2, 3)) < (x_h - x_c).square().sum((1, 2, 3))

    rows = []
    columns = (indices, pairs, given, labels, predicted, confidence, closer)
    for index, pair, known, label, guess, sure, near in zip(*(_plain(c) for c in columns), strict=True):
        rows.append(
            Row(
                file_name=f"{names[label]}/{index:06d}.png",
                semantic_parent=_name_of(parents.semantic, pair[0]),
                nonsemantic_parent=_name_of(parents.nonsemantic, pair[1]),
                label=parents.classes[label],
                label_source="given" if known >= 0 else "predicted",
                predicted=hybridizer.origin.classes[guess],
                confidence=f"{sure:.4f}",
                consistent=str(int(guess == label)),
                closer_to_nonsemantic=str(int(near)),
            )
        )
    return pixels.permute(0, 2, 3, 1).cpu().numpy(), rows


def _name_of(part: Part, index: int) -> str:
    return str(index) if part.files is None else part.files[index]


def _plain(column: Sequence[int] | torch.Tensor) -> Sequence:
    return column.tolist() if isinstance(column, torch.Tensor) else column


def _check_classes(hybridizer: Hybridizer, parents: Parents) -> None:
    if parents.classes != hybridizer.origin.classes:
        raise InputError(
            f"hybridizer: trained on the classes {', '.join(hybridizer.origin.classes)}, "
            f"and not on those of these images, {', '.join(parents.classes)}"
        )
    if parents.semantic is parents.nonsemantic and len(parents.semantic) < 2:
        raise InputError("images: a hybrid has two parents, and there is one image")


def _digest(hybridizer: Hybridizer) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(hybridizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _claim(folder: Path, manifest: dict) -> None:
    """Make the folder one of these hybrids, or check that it is."""
    path = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is not a folder")
    if not path.exists():
        if not is_vacant(folder):
            raise InputError(f"out: {folder} is not empty, and holds no hybrids; give another folder")
        write_text(path, json.dumps(manifest, indent=2) + "\n")
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give another folder") from error
    for field, value in manifest.items():
        if not isinstance(then, dict) or then.get(field) != value:
            there = then.get(field) if isinstance(then, dict) else None
            raise InputError(
                f"out: {folder} holds hybrids of another {field} ({there}; this is {value}); give another folder"
            )


def _read(folder: Path) -> dict[int, Row]:
    """The rows of all hybrids that are there, merged or not, by index. What is damaged does not count."""
    rows = {}
    for path in (folder / TABLE, *sorted((folder / UNMERGED).glob("*.csv"))):
        if not path.exists():
            continue
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for values in csv.reader(file):
                if len(values) == len(Row._fields) and all(values) and (folder / values[0]).is_file():
                    row = Row(*values)
                    rows[int(Path(row.file_name).stem)] = row
    return rows


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _merge(folder: Path, rows: Sequence[Row]) -> None:
    if (folder / UNMERGED).exists() or not (folder / TABLE).exists():
        _write_rows(folder / TABLE, [Row._fields, *rows])
        shutil.rmtree(folder / UNMERGED, ignore_errors=True)


def _write_image(path: Path, pixels: np.ndarray) -> None:
    with written_aside(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def _folder_names(classes: Sequence[str]) -> list[str]:
    """The classes' names, without what a folder's name cannot hold. InputError if two become one."""
    names = [re.sub(r"[/\\\x00]|^\.", "_", name) or "_" for name in classes]
    for index, name in enumerate(names):
        if name in names[:index]:
            other = classes[names.index(name)]
            raise InputError(f"classes: {classes[index]!r} and {other!r} would share the folder {name!r}")
    return names
