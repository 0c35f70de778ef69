"""The command `report`: runs as one page."""

from pathlib import Path

import tyro

from hybridgen.errors import InputError
from hybridgen.settings import settings


@settings
class Report:
    """Write runs as one HTML page: figures, settings, curves, hybrids, confusions.

    RUNS are folders of runs or of comparisons, finished or not; several are set side by side. The page needs no network
    and no other file. Every recipe but those of ablations writes that of its own folder at its end.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs or of comparisons."""
    out: Path | None = None
    """The page's .html file; report.html in the folder of RUNS unless given, which several need."""

    def run(self) -> None:
        if not self.runs or len({run.resolve() for run in self.runs}) < len(self.runs):
            raise InputError(f"RUNS: {' '.join(map(str, self.runs)) or 'none'}; one or more are needed, each once")
        if self.out is None and len(self.runs) > 1:
            raise InputError("--out: is missing; a page of several runs needs a file of its own")
        if self.out is not None and self.out.suffix.lower() != ".html":
            raise InputError(f"--out {self.out}: a .html file is needed")
        from hybridgen.tables.report import REPORT, write_report

        out = self.out or self.runs[0] / REPORT
        write_report(self.runs, out)
        print(out)
