"""The command `push`: what a finished run left, on the Hugging Face hub."""

from pathlib import Path

import tyro

from hybridgen.settings import settings


@settings
class Push:
    """Upload a finished run's hybridizer or classifier to the Hugging Face hub, with a model card.

    MODEL is a run's folder, that of a hybridizer, or a network.safetensors; the repository is made if it is not there.
    The card is the README.md that lies there, or else one that is made and left there: figures with their intervals,
    how it was trained, how it is loaded. Log in by `hf auth login`, or set HF_TOKEN.
    """

    model: tyro.conf.Positional[Path]
    """A finished run's folder, that of a hybridizer, or a network.safetensors."""
    repository: tyro.conf.Positional[str]
    """Its id on the hub: owner/name."""
    private: bool = False
    """Of a repository that is made: show it to its owner alone."""
    revision: str | None = None
    """Branch, made if it is not there; the repository's first unless given."""
    license: str | None = None
    """Name of its licence as the hub has it (apache-2.0, cc-by-4.0, ...); the card has none unless given."""

    def run(self) -> None:
        from hybridgen.tables.card import push

        print(push(self.model, self.repository, private=self.private, revision=self.revision, license=self.license))
