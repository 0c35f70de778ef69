"""The command `bench`: timings."""

from hybridgen.commands.options import Steps, Threads
from hybridgen.settings import settings


@settings
class Bench:
    """Time the parts, each against its floor: images a second and peak memory."""

    json: bool = False
    """Print JSON instead of a table."""
    only: tuple[str, ...] = ()
    """Cases to run; all unless given."""
    rounds: Steps | None = None
    """How often each case and its floor are timed; as many as the case needs unless given."""
    threads: Threads | None = None
    """CPU threads; all cores unless given."""
    quick: bool = False
    """Small networks and batches, to see that it runs; the figures are not the reported ones."""

    def run(self) -> None:
        from hybridgen.bench.measure import run

        run(json=self.json, only=self.only, rounds=self.rounds, threads=self.threads, quick=self.quick)
