"""What comes with the code: recipes, hybridizers and lists of classes."""

from pathlib import Path
from typing import Literal

import hybridgen
from hybridgen.errors import InputError

HYBRIDIZER = "digits-m-scimix"
"""The hybridizer that commands and recipes take when none is given."""


def carried(what: Literal["assets", "recipes"]) -> Path:
    """The folder of a checkout, beside the package, or of a wheel, inside it. InputError where there is neither."""
    package = Path(hybridgen.__file__).parent
    for folder in (package / f"_{what}", package.parent / what):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{what}: this installation does not carry them; install a wheel of hybridgen, or from a checkout "
        "(pip install -e .)"
    )


def bundled(name: str = HYBRIDIZER) -> Path:
    """The folder of a hybridizer that comes with the code. InputError where this installation has none of that name."""
    try:
        folder = carried("assets") / "hybridizers" / name
    except InputError as error:
        raise InputError(f"hybridizer: {name} is not there ({error}); or give a hybridizer (--hybridizer)") from error
    if not folder.is_dir():
        raise InputError(f"hybridizer: this installation does not carry {name}; give a hybridizer (--hybridizer)")
    return folder
