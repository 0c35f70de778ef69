"""The command `study`, of hybrids: what they inherit."""

from pathlib import Path
from typing import Literal

import tyro

from hybridgen.commands.options import FdaBeta, ImageCount, Judged, tell_of_others
from hybridgen.errors import InputError
from hybridgen.settings import settings

StudyName = Literal["transfer", "background", "probe", "methods"]


@settings
class Study(Judged):
    """Study what hybrids inherit: NAME.json, NAME.txt (printed too) and NAME.png, in a folder.

    transfer: class and context by the oracle, by the hybridizer itself and in pixels, over the course of training where
    several are given. background: outside the object, where masks are known. probe: what a linear classifier reads
    from the codes. methods: hybridizers beside MixUp, FDA and unrelated images.

    Of mixing, each with options of its own (see hybridgen study cam --help): cam, sequence, targets, cost, mixing; of
    finished runs: runs, their figures over a setting, sharing, what subnetworks of several inputs share, attention,
    what MixViT's class token looks at, and inference, what each of its inferences answers and costs.
    """

    name: tyro.conf.Positional[StudyName]
    """The study."""
    out: Path
    """Folder of the three files, none of which is overwritten."""
    hybridizer: tuple[str, ...] = ()
    """Folders or hub ids of hybridizers, or a folder of snapshots (step-N); the one that comes with the repository
    unless given."""
    probe_images: ImageCount | None = None
    """Of probe: training images of the linear classifier, at most; 5,000 unless given."""
    fda_beta: FdaBeta | None = None
    """Of methods: part of the spectrum that FDA takes from the non-semantic parent; 0.1 unless given."""

    def run(self) -> None:
        from hybridgen.evaluation.studies import Conditions, check, files_of, load_hybridizers, study, write
        from hybridgen.training.engine import make_accelerator

        given = {}
        for field, name in (("probe_images", "probe"), ("fda_beta", "methods")):
            if getattr(self, field) is not None:
                given[field] = getattr(self, field)
                if self.name != name:
                    raise InputError(f"--{field.replace('_', '-')}: is of the study {name}, this is {self.name}")
        self._check_oracle()
        paths = files_of(self.name, self.out)
        accelerator = make_accelerator(threads=self.threads)
        hybridizers, steps = load_hybridizers(self.hybridizer or ["bundled"])
        for hybridizer in hybridizers.values():
            hybridizer.to(accelerator.device)
        dataset = self._dataset(hybridizer)
        check(self.name, hybridizers, dataset)
        oracle = self._oracle(dataset, accelerator)
        finding = study(
            self.name,
            Conditions(hybridizers, steps, dataset, oracle, accelerator, repeats=self.repeats, seed=self.seed, **given),
        )
        if accelerator.is_main_process:
            tell_of_others(hybridizer, dataset)
            write(finding, paths)
            print(f"{finding.table}{paths[-1]}")
