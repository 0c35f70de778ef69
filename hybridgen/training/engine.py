"""The accelerator of a run."""

import ctypes
import os
import sys
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, is_bf16_available
from torch import nn

from hybridgen.training.batch_norm import synchronize_batch_norm
from hybridgen.types import InputError, Network

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of convolutions and matrix products while an objective computes. Parameters, optimizers and averages are float32, and
so are softmax, norms, losses and what differentiates twice; networks are evaluated in float32."""

ACCELERATES: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What accelerate calls them."""


class Taken(NamedTuple):
    """A precision, and why it is this one."""

    precision: Precision
    why: str


def taken_precision(asked: Precision) -> Taken:
    """What a run takes that asks for this. `auto`: what `accelerate launch --mixed_precision` asks for; without, bf16
    where the processor computes in it, else fp32.

    InputError for what the processor lacks, and where `accelerate launch` asks for another one. (Its own default, no
    mixed precision, asks for nothing.)
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no" and asked not in ("auto", launched):
        raise InputError(
            f"precision: {asked}, but accelerate launch has --mixed_precision {launched}; leave out one of them, "
            f"or where a preset has {asked} give --precision {launched}"
        )
    processor, unit = look_for_bf16()
    if asked == "auto" and launched == "no":
        return Taken("bf16", f"{processor} has {unit}") if unit else Taken("fp32", f"{processor} has {LACKING}")
    taken = launched if asked == "auto" else asked
    if taken == "bf16" and not unit:
        raise InputError(f"precision: bf16, but {processor} has {LACKING}; there is fp32, which auto takes here")
    if taken == "fp16" and processor == CPU:
        raise InputError(f"precision: fp16 is of GPUs; {CPU} has fp32{' and bf16' if unit else ''}")
    if taken not in ACCELERATES:
        raise InputError(f"precision: {taken}, of accelerate launch, is none of {', '.join(ACCELERATES)}")
    return Taken(taken, "accelerate launch asks for it" if asked == "auto" else "--precision asks for it")


CPU = "this CPU"
LACKING = "no bf16 (of CPUs: amx_bf16, avx512_bf16)"


def look_for_bf16() -> tuple[str, str]:
    """What this process trains on, and its unit that computes in bfloat16: empty where there is none, or none that is
    faster than float32's."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        there = torch.cpu.get_capabilities()
        return CPU, next((unit for unit in ("amx_bf16", "avx512_bf16") if there.get(unit)), "")
    if device.type == "cuda":
        return torch.cuda.get_device_name(), "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    return f"this {device.type} device", "bf16" if is_bf16_available(ignore_tpu=True) else ""


def precision_of(accelerator: Accelerator) -> Precision:
    """What was taken."""
    return {name: ours for ours, name in ACCELERATES.items()}[accelerator.mixed_precision]


def make_accelerator(
    *, precision: Precision = "auto", threads: int | None = None, keep_memory: bool = True
) -> Accelerator:
    """One CPU, one GPU or many processes; what is trained with it takes this precision (`taken_precision`).

    The cores are divided among this machine's processes, `threads` each if given: `accelerate launch` alone would leave
    one thread to a single process, and several runs that share a GPU would each start a thread a core. With
    `keep_memory`, memory that is freed on CPUs is reused (`keep_freed_memory`). On GPUs attention is not cuDNN's, whose
    gradients in bf16 are NaN at times (64 tokens; pytorch/pytorch#196678): the other fused ones are as fast.
    """
    # Without `cpu`, the processes of torchrun on a machine without GPUs would each take themselves for the only one.
    taken = ACCELERATES[taken_precision(precision).precision]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=taken)
    torch.backends.cuda.enable_cudnn_sdp(False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if keep_memory and accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def laid_out(
    network: Network,
    accelerator: Accelerator,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    synchronized: bool = False,
) -> Network:
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


class LossScale(nn.Module):
    """By what fp16's losses are multiplied, a part of checkpoints. An accelerator has one for all that it trains; it
    begins anew for each run."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        assert accelerator.scaler is not None
        self.scaler: torch.amp.GradScaler = accelerator.scaler
        self.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())

    def get_extra_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


@torch.no_grad()
def agree(module: nn.Module, accelerator: Accelerator) -> None:
    """Every process takes the first one's parameters and buffers, which are those that checkpoints hold.

    Each process gathers batch-norm statistics of its own, and averages take them over: before one is evaluated, or
    makes hybrids, this makes it one. All processes call it; nothing happens where there is one.
    """
    if accelerator.num_processes > 1:
        for tensor in chain(module.parameters(), module.buffers()):
            if tensor.numel():
                tensor.copy_(broadcast(tensor.clone()))


def now(device: torch.device) -> float:
    """Seconds of a clock, read when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's, or this process's largest resident size.

    Not `ru_maxrss`, which starts at the size of the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
