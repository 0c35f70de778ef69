"""The accelerator of a run."""

import ctypes
import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from hybridgen.training.batch_norm import synchronize_batch_norm


def make_accelerator(*, threads: int | None = None, keep_memory: bool = True) -> Accelerator:
    """One CPU, one GPU or many processes, with the precision that `accelerate launch` was asked for.

    On CPUs the cores are divided among this machine's processes, `threads` each if given: `accelerate launch` alone
    would leave one thread to a single process. With `keep_memory`, freed memory is reused (`keep_freed_memory`).
    """
    # Without `cpu`, the processes of torchrun on a machine without GPUs would each take themselves for the only one.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        if keep_memory:
            keep_freed_memory()
    return accelerator


def laid_out(
    network: nn.Module,
    accelerator: Accelerator,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    synchronized: bool = False,
) -> nn.Module:
    """The network on this process's device, with batch-norm over all processes, in another memory layout, or compiled
    at its first call."""
    network = network.to(accelerator.device)
    if synchronized:
        network = synchronize_batch_norm(network, accelerator.device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    return network


@torch.no_grad()
def agree(module: nn.Module, accelerator: Accelerator) -> None:
    """Every process takes the first one's parameters and buffers, which are those that checkpoints hold.

    Each process gathers batch-norm statistics of its own, and averages take them over: before one is evaluated, or
    makes hybrids, this makes it one. All processes call it; nothing happens where there is one.
    """
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            if tensor.numel():
                tensor.copy_(broadcast(tensor.clone()))


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed activations instead of returning it to the system and faulting it in again.

    A training step on a CPU is a fifth to a quarter faster for it. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 1 << 28)  # M_TOP_PAD
