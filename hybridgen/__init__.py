"""Semi-supervised generative augmentation of images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridgen.hybridizer import Hybridize, Hybridizer
    from hybridgen.mixing.transform import Mix
    from hybridgen.networks.classifiers import load_classifier

__version__ = "0.1.0"
__all__ = ["Hybridize", "Hybridizer", "Mix", "load_classifier"]

_PLACES = {
    "Hybridize": "hybridgen.hybridizer",
    "Hybridizer": "hybridgen.hybridizer",
    "Mix": "hybridgen.mixing.transform",
    "load_classifier": "hybridgen.networks.classifiers",
}


def __getattr__(name: str) -> Any:
    """What training loops take from here, imported when it is asked for: `import hybridgen` alone is light."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
