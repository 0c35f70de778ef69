"""The command `explore`: a page to look at hybrids on."""

from typing import Annotated, Literal

from pydantic import Field

from hybridgen.commands.options import Threads, load, load_data, tell_of_others
from hybridgen.evaluation.oracle_settings import NONE, OracleSettings
from hybridgen.settings import NUMBER, Flip, Seed, settings


@settings
class Explore:
    """Look at hybrids in the browser, on a page that this machine alone can open: pick two images, or drop your own.

    The page has hybrids and reconstructions of two images, what lies between their codes, one image with many others,
    and what classifiers say of each; everything is saved as PNG. Ctrl-C ends it.
    """

    hybridizer: str | None = None
    """Folder or hub id (owner/name, owner/name@revision) of a hybridizer; the repository's own unless given."""
    data: str = "digits-m"
    """Data set of the hybridizer's classes: digits-m, cifar10, ..., the path of a folder, CSV, Parquet or npz file, or
    hf:NAME (Hugging Face)."""
    part: Literal["train", "test"] = "test"
    """Whose images to pick from."""
    port: Annotated[int, Field(ge=1, le=65535), NUMBER] | None = None
    """Of the page's address; a free one unless given."""
    seed: Seed = 0
    """Of the order in which images come up."""
    oracle: OracleSettings = OracleSettings(oracle=NONE)
    flip: Flip = "auto"
    """Mirror images at random where an oracle is trained; auto: as the hybridizer was trained, or all but the built-in
    digits."""
    data_root: str = "data"
    """Where data sets lie or are downloaded to."""
    download: bool = False
    """Download the data set if it is missing."""
    threads: Threads | None = None
    """CPU threads; all cores unless given."""

    def run(self) -> None:
        self.oracle.check()
        from hybridgen.evaluation.explore import Explorer, Server
        from hybridgen.evaluation.oracle import judge_of, oracle_of
        from hybridgen.training.engine import make_accelerator

        accelerator = make_accelerator(threads=self.threads)
        hybridizer = load(self.hybridizer, accelerator)
        dataset = load_data(self.data, hybridizer, self.data_root, self.download, self.flip)
        judge = judge_of(self.oracle, dataset)
        oracle = None if judge is None else oracle_of(judge, dataset, accelerator)
        if not accelerator.is_main_process:
            return
        explorer = Explorer(hybridizer, dataset, self.part, oracle=oracle, seed=self.seed)
        tell_of_others(hybridizer, dataset)
        with Server(explorer, self.port) as server:
            print(f"{server.address} shows hybrids of {self.data}; Ctrl-C ends it", flush=True)
            server.serve_forever()
