"""What would take longer than the training of a toy is left out of the tests' trainings."""

import os
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import memory

from hybridgen.data.readers import embedded


def lighten(patch: pytest.MonkeyPatch) -> None:
    """In this process and in those that it forks."""
    patch.setattr(embedded, "digits_m", cache(embedded.digits_m))
    patch.setattr(os, "fsync", lambda file: None)  # nobody cuts the power
    patch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))  # which looks at all that pytest holds
    if not torch.cuda.is_available():  # torch keeps the whole stack beside a seed until there is a GPU
        patch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
