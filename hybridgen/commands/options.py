"""Options that several commands have, and the ranges that several options have.

What a command needs is imported when it runs, so that help and version come at once.
"""

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hybridgen.errors import InputError
from hybridgen.evaluation.oracle_settings import NONE, OracleSettings
from hybridgen.settings import NUMBER, Flip, Seed, settings

if TYPE_CHECKING:
    import accelerate

    import hybridgen.data.datasets
    import hybridgen.hybridizer
    import hybridgen.networks.classifiers

# Ranges end where a machine would be at work for years, or without memory. What else limits a number (the images that
# there are) is found where it is used.
Threads = Annotated[int, Field(ge=1, le=1024), NUMBER]
Side = Annotated[int, Field(ge=1, le=4096), NUMBER]
"""Of images, in pixels."""
ImageCount = Annotated[int, Field(ge=1, le=10_000_000), NUMBER]
Cells = Annotated[int, Field(ge=1, le=10_000), NUMBER]
"""Rows or columns of a picture."""
Steps = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
"""Or rounds."""
Batch = Annotated[int, Field(ge=1, le=100_000), NUMBER]
FdaBeta = Annotated[float, Field(ge=0, le=0.5), NUMBER]


@settings
class Judged(ABC):
    """What commands that judge hybrids by an oracle have in common."""

    data: str = "digits-m"
    """Data set: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or hf:NAME (Hugging Face)."""
    repeats: Annotated[int, Field(ge=1, le=1000), NUMBER] = 4
    """Non-semantic parents for every test image."""
    seed: Seed = 0
    """From which they are drawn."""
    oracle: OracleSettings = OracleSettings()
    flip: Flip = "auto"
    """Mirror images at random where an oracle is trained; auto: as the hybridizer was trained, or all but the built-in
    digits."""
    image_size: Side | None = None
    """Must be the hybridizer's, which it is unless given."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    threads: Threads | None = None
    """CPU threads a process; all cores divided among the processes unless given."""

    @abstractmethod
    def run(self) -> None: ...

    def _check_oracle(self) -> None:
        """InputError for an oracle that cannot be meant, before anything is read."""
        self.oracle.check()
        if self.oracle.oracle == NONE:
            raise InputError("--oracle: none, but this is what an oracle measures; give a folder, or leave it out")

    def _dataset(self, hybridizer: "hybridgen.hybridizer.Hybridizer") -> "hybridgen.data.datasets.Dataset":
        if self.image_size not in (None, hybridizer.image_size):
            raise InputError(f"--image-size {self.image_size}: this hybridizer takes {hybridizer.image_size}")
        return load_data(self.data, hybridizer, self.data_root, self.download, self.flip)

    def _oracle(
        self, dataset: "hybridgen.data.datasets.Dataset", accelerator: "accelerate.Accelerator"
    ) -> "hybridgen.networks.classifiers.Classifier":
        from hybridgen.evaluation.oracle import judge_of, oracle_of

        judge = judge_of(self.oracle, dataset)
        assert judge is not None  # `_check_oracle` refuses none
        return oracle_of(judge, dataset, accelerator)


def load(source: str | None, accelerator: "accelerate.Accelerator") -> "hybridgen.hybridizer.Hybridizer":
    """The hybridizer of this folder or hub id; the one that comes with the repository unless given."""
    from hybridgen.hybridizer import Hybridizer

    return Hybridizer.from_pretrained(source or "bundled").to(accelerator.device)


def load_data(
    name: str, hybridizer: "hybridgen.hybridizer.Hybridizer", data_root: str, download: bool, flip: Flip = "auto"
) -> "hybridgen.data.datasets.Dataset":
    """At the hybridizer's image size, mirrored as is asked for; auto: as in its training, where that is told."""
    from hybridgen.data.datasets import load_dataset

    dataset = load_dataset(name, image_size=hybridizer.image_size, data_root=data_root, download=download)
    return dataset.mirrored(hybridizer.origin.training.get("flip", "auto") if flip == "auto" else flip)


def tell_of_others(hybridizer: "hybridgen.hybridizer.Hybridizer", dataset: "hybridgen.data.datasets.Dataset") -> None:
    """Say so where it was trained on other data than these."""
    if dataset.fingerprint != hybridizer.origin.fingerprint:
        origin = hybridizer.origin.dataset
        print(
            f"warning: the hybridizer was trained on {origin}, not on these images of {dataset.name}", file=sys.stderr
        )
