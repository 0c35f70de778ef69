"""The command `hybridize`: a picture or a folder of hybrids."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hybridgen.commands.options import Cells, ImageCount, Threads, load, load_data, tell_of_others
from hybridgen.errors import InputError
from hybridgen.settings import Seed, settings

if TYPE_CHECKING:
    import accelerate

    import hybridgen.data.datasets
    import hybridgen.hybridizer


@settings
class Hybridize:
    """Make hybrids: a grid with the parents along its edges, or (with --count) a folder of images and a metadata.csv.

    A folder is written in parallel under `accelerate launch -m hybridgen.cli hybridize ...`; the same command
    continues one that was interrupted.
    """

    out: Path
    """The grid's .png file; with --count, the folder."""
    hybridizer: str | None = None
    """Folder or hub id (owner/name, owner/name@revision) of a hybridizer; the repository's own unless given."""
    data: str | None = None
    """Data set to hybridize: digits-m (unless given), cifar10, ..., the path of a folder, CSV, Parquet or npz
    file, or hf:NAME (Hugging Face)."""
    semantic: tuple[Path, ...] = ()
    """Image files, instead of --data, whose class the hybrids take."""
    nonsemantic: tuple[Path, ...] = ()
    """Image files that give everything else."""
    rows: Cells | None = None
    """Semantic parents of the grid, drawn from the data set; 10 unless given, or half the images of a smaller set."""
    columns: Cells | None = None
    """Non-semantic parents of the grid; as many unless given."""
    count: ImageCount | None = None
    """How many hybrids to write into the folder."""
    part: Literal["train", "test"] | None = None
    """Whose images to take: test for a grid, train for a folder unless given."""
    split: Path | None = None
    """With --count, a split file, the hybridizer's: both parents are training images that it labels or leaves
    unlabelled, and the classes of the latter are predicted. Without, all classes that the data have are given out."""
    seed: Seed = 0
    """From which the parents are drawn."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    threads: Threads | None = None
    """CPU threads a process; all cores divided among the processes unless given."""

    def run(self) -> None:
        self._check()
        from hybridgen.training.engine import make_accelerator

        accelerator = make_accelerator(threads=self.threads)
        hybridizer = load(self.hybridizer, accelerator)
        if self.count is not None:
            self._folder(hybridizer, accelerator, self.count)
        elif accelerator.is_main_process:
            self._grid(hybridizer, accelerator)

    def _check(self) -> None:
        if bool(self.semantic) != bool(self.nonsemantic):
            given, missing = sorted(("semantic", "nonsemantic"), key=lambda role: not getattr(self, role))
            raise InputError(f"--{given}: needs --{missing}; a hybrid has two parents")
        if self.semantic and (self.data is not None or self.part is not None):
            raise InputError("--semantic and --nonsemantic stand instead of --data and --part; give one or the other")
        sized = self.rows is not None or self.columns is not None
        if self.count is not None and sized:
            raise InputError("--rows and --columns are of a grid, --count of a folder; give one or the other")
        if self.semantic and sized:
            raise InputError("--rows and --columns choose from a data set; of files, all that are given are shown")
        if self.split is not None and (self.count is None or self.semantic or self.part == "test"):
            raise InputError("--split: is of the training images of a data set, whose hybrids --count writes")
        if self.count is None and self.out.suffix.lower() != ".png":
            raise InputError(f"--out {self.out}: a grid is a .png file; a folder of hybrids needs --count")
        if self.count is not None and self.out.suffix.lower() == ".png":
            raise InputError(f"--out {self.out}: with --count a folder is written, and this names a .png file")

    def _dataset(self, hybridizer: "hybridgen.hybridizer.Hybridizer") -> "hybridgen.data.datasets.Dataset":
        return load_data(self.data or "digits-m", hybridizer, self.data_root, self.download)

    def _grid(self, hybridizer: "hybridgen.hybridizer.Hybridizer", accelerator: "accelerate.Accelerator") -> None:
        import torch

        from hybridgen.data.sources import Files
        from hybridgen.evaluation.grid import choose_parents, hybrid_grid
        from hybridgen.files import save_picture

        dataset = None if self.semantic else self._dataset(hybridizer)
        if dataset is None:
            size = hybridizer.image_size
            parents = [Files(paths, size) for paths in (self.semantic, self.nonsemantic)]
            parents = [files.gather(torch.arange(len(files))) for files in parents]
        else:
            part = dataset.train if self.part == "train" else dataset.test
            side = min(10, len(part) // 2)
            chosen = choose_parents(part, self.rows or side, self.columns or side, self.seed)
            parents = [part.images.gather(indices) for indices in chosen]
        grid = hybrid_grid(hybridizer, *(images.to(accelerator.device).float() / 255 for images in parents))
        save_picture(self.out, grid)
        if dataset is not None:
            tell_of_others(hybridizer, dataset)
        print(f"{self.out}: {len(parents[0])} semantic parents (left) by {len(parents[1])} non-semantic (top)")

    def _folder(
        self, hybridizer: "hybridgen.hybridizer.Hybridizer", accelerator: "accelerate.Accelerator", count: int
    ) -> None:
        from hybridgen.data.splits import Split
        from hybridgen.evaluation.export import Parents, write_hybrids

        dataset, name = None if self.semantic else self._dataset(hybridizer), self.part or "train"
        if dataset is None:
            parents = Parents.of_files(self.semantic, self.nonsemantic, hybridizer)
        else:
            part = dataset.test if name == "test" else dataset.train
            parents = Parents(part, part, dataset.classes, f"{dataset.fingerprint} {name}")
            if self.split is not None:
                split = Split.load(self.split)
                split.check(dataset)
                hybridizer.check_split(dataset, split)
                parents = Parents.of_split(dataset, split)
        done = write_hybrids(hybridizer, parents, self.out, accelerator, count=count, seed=self.seed)
        if not accelerator.is_main_process:
            return
        print(f"{self.out}: {done}")
        if dataset is None:
            return
        tell_of_others(hybridizer, dataset)
        if self.split is None and name == "train" and dataset.fingerprint == hybridizer.origin.fingerprint:
            print("classes are given of all parents, also where the hybridizer's split has none; --split hides these")
