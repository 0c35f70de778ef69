"""The command `predict`: the classes of images, by a finished classifier."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from hybridgen.commands.options import Batch, Threads
from hybridgen.errors import InputError
from hybridgen.settings import settings

if TYPE_CHECKING:
    from hybridgen.data.datasets import Part
    from hybridgen.networks.classifiers import About


class Asked(NamedTuple):
    """Images, and how they are called."""

    names: Sequence[str]
    part: "Part"
    classes: Sequence[str]
    """Names of its labels; none of images whose labels are not known."""


@settings
class Predict:
    """Classify images by a finished run's network: the class of each, and with --out all probabilities.

    hybridgen predict --model RUN IMAGES...: files, or folders in which they are looked for; of oblong ones the central
    square is taken, brought to the size that the network was trained on, and of it what the run was judged by (--crop,
    --whole). Or the test images of --data.
    """

    model: Path
    """A finished run's folder (runs/scimix_fixmatch/scimix-seed0), or its network.safetensors."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGES...")] = ()
    """Image files, or folders of them."""
    data: str | None = None
    """Data set whose test images are classified instead: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or
    npz file, or hf:NAME (Hugging Face)."""
    out: Path | None = None
    """CSV file to write: image, class, its probability, the label where it is known, and the probability of every
    class."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    batch: Batch = 256
    """Images that are classified at once."""
    threads: Threads | None = None
    """CPU threads; all cores unless given."""

    def run(self) -> None:
        self._check()
        from hybridgen.files import written_aside
        from hybridgen.methods.labelled import central
        from hybridgen.networks.classifiers import FILE, about_classifier, load_classifier
        from hybridgen.training.engine import laid_out, make_accelerator
        from hybridgen.training.scores import logits_of

        path = self.model / FILE if self.model.is_dir() else self.model
        if not path.is_file():
            inside = ", ".join(str(each.parent) for each in sorted(self.model.glob(f"*/{FILE}")))
            needed = f"give one of {inside}" if inside else f"a finished run's folder, or its {FILE}, is needed"
            raise InputError(f"--model {self.model}: no classifier there; {needed}")
        classifier, classes, side = load_classifier(path)
        about = about_classifier(path)
        asked, crop = self._asked(about), side if about.crop_of else None

        # Probabilities
        accelerator = make_accelerator(precision="fp32", threads=self.threads)
        network = laid_out(classifier, accelerator).requires_grad_(False).eval()
        seen = lambda images: network(central(images, crop))
        logits, numbers = logits_of(seen, asked.part, range(len(asked.names)), accelerator, batch_size=self.batch)
        if not accelerator.is_main_process:
            return
        probabilities = logits.float().softmax(dim=1)
        highest, chosen = probabilities.max(dim=1)

        # What is said of them
        labels = [asked.classes[number] if number >= 0 else "" for number in numbers.tolist()]
        if self.out is not None:
            header = ["image", "class", "probability", *(["label"] if asked.classes else []), *classes]
            with written_aside(self.out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(header)
                for name, label, place, p, row in zip(
                    asked.names, labels, chosen.tolist(), highest.tolist(), probabilities.tolist(), strict=True
                ):
                    known = [label] if asked.classes else []
                    table.writerow([name, classes[place], f"{p:.6f}", *known, *(f"{each:.6f}" for each in row)])
            print(f"{self.out}: {len(asked.names)} images")
            return
        width, wide = max(map(len, asked.names)), max(map(len, classes))
        for name, place, p in zip(asked.names, chosen.tolist(), highest.tolist(), strict=True):
            print(f"{name:<{width}}  {classes[place]:<{wide}}  {p:.3f}")

    def _check(self) -> None:
        """InputError for what cannot be meant, before anything is read."""
        if bool(self.images) == (self.data is not None):
            raise InputError(f"IMAGES: {'given beside --data' if self.images else 'missing'}; give images, or --data")
        if self.out is not None and self.out.suffix.lower() != ".csv":
            raise InputError(f"--out {self.out}: a .csv file is needed")

    def _asked(self, about: "About") -> Asked:
        import torch

        from hybridgen.data.datasets import Part, load_dataset, of_files
        from hybridgen.data.readers.folder import images_below
        from hybridgen.data.sources import Files, Photographs
        from hybridgen.files import printable

        side = about.crop_of or about.image_size
        if self.data is not None:
            whole = about.whole and of_files(self.data)
            dataset = load_dataset(
                self.data, image_size=side, data_root=self.data_root, download=self.download, whole=whole
            )
            return Asked([f"test/{place}" for place in range(len(dataset.test))], dataset.test, dataset.classes)
        paths: list[Path] = []
        for path in self.images:
            below = images_below(path) if path.is_dir() else [path]
            if not below:
                raise InputError(f"{path}: no images in it")
            paths += below
        unknown = torch.full((len(paths),), -1)
        read = Photographs if about.whole else Files
        return Asked(list(map(printable, paths)), Part(read(paths, side), unknown), ())
