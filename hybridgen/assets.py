"""What the repository carries beside the code."""

from pathlib import Path

import hybridgen
from hybridgen.types import InputError

HYBRIDIZER = "digits-m-scimix"
"""The hybridizer that commands and recipes take when none is given."""


def bundled(name: str = HYBRIDIZER) -> Path:
    """The folder of a hybridizer that comes with the repository.

    InputError where this installation has none of that name: assets lie in the repository, beside the
    package.
    """
    folder = Path(hybridgen.__file__).parent.parent / "assets" / "hybridizers" / name
    if not folder.is_dir():
        raise InputError(
            f"hybridizer: this installation does not carry {name}, which lies in the repository's assets/hybridizers;"
            " install from there (pip install -e .) or give a hybridizer (--hybridizer)"
        )
    return folder
