"""Shapes and types of every annotated function of the package are checked while the tests run."""

import os

import torch
from jaxtyping import install_import_hook

install_import_hook("hybridgen", "beartype.beartype")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
