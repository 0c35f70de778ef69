"""The command `split`: which images are labelled."""

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hybridgen.commands.options import ImageCount
from hybridgen.settings import NUMBER, Seed, settings

SIDE = 8
"""Pixels of the files that are looked at."""


@settings
class SplitImages:
    """Draw which training images are labelled, unlabelled and for validation, and keep that in a file."""

    labels: ImageCount
    """Labelled images; as many of every class as divides."""
    out: Path
    """JSON file to write. An existing one is never overwritten."""
    seed: Seed = 0
    """Seed of the draw."""
    validation: Annotated[int, Field(ge=0, le=10_000_000), NUMBER] = 0
    """Images of known class set aside, beside --labels, for validation."""
    data: str = "digits-m"
    """Data set: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or hf:NAME (Hugging Face)."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""

    def run(self) -> None:
        from hybridgen.data.datasets import load_dataset, of_files
        from hybridgen.data.splits import make_split

        # Of files only the labels are needed, whatever their size: they stay where they are
        read = partial(load_dataset, image_size=SIDE, memory_limit=0) if of_files(self.data) else load_dataset
        dataset = read(self.data, data_root=self.data_root, download=self.download)
        split = make_split(dataset, labels=self.labels, seed=self.seed, validation=self.validation)
        split.save(self.out)
        counts = {role: len(getattr(split, role)) for role in ("labelled", "unlabelled", "validation")}
        print(f"{self.out}: {', '.join(f'{count} {role}' for role, count in counts.items())}; hash {split.hash}")
