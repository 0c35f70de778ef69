"""Who judges hybrids: what recipes and commands are told of it, without torch."""

from typing import Annotated

from pydantic import Field

from hybridgen.errors import InputError
from hybridgen.settings import NUMBER, Flat, settings

TRAINED, NONE = "trained", "none"


@settings
class OracleSettings:
    """Of the oracle that judges hybrids, a classifier that has seen all training labels."""

    oracle: Flat[str] = TRAINED
    """Folder of an oracle of these data; trained for a new one, which the user's cache keeps for the next time; none to
    judge nothing."""
    steps: Annotated[int, Field(ge=10, lt=2**31), NUMBER] | None = None
    """Training steps; by the number and size of the labelled images unless given, and at the end of a recipe, above 16
    pixels, no longer than a twentieth of the run that is judged."""
    network: str | None = None
    """Of --network; by the size of the images unless given."""

    def check(self) -> None:
        """InputError for a training that is described beside an oracle that has been trained."""
        for field in ("steps", "network"):
            if self.oracle not in (TRAINED, NONE) and getattr(self, field) is not None:
                raise InputError(
                    f"--oracle.{field}: is for training an oracle, but --oracle {self.oracle} has been trained"
                )
