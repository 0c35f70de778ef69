"""Networks laid out for training compute what they computed before."""

import copy
import os
import sys
from collections import Counter
from functools import partial
from time import perf_counter
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from hybridgen.networks.registry import make_network
from hybridgen.training import batch_norm, engine
from hybridgen.training.batch_norm import CPUSyncBatchNormAct, synchronize_batch_norm
from hybridgen.training.ema import EMA
from hybridgen.training.engine import laid_out, make_accelerator, now, peak_memory
from hybridgen.types import InputError


def outcome(network: nn.Module) -> tuple[torch.Tensor, ...]:
    """Logits, gradients and batch-norm's statistics of one forward and backward."""
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = network(images)
    logits.logsumexp(1).sum().backward()
    return logits.detach(), *(p.grad.contiguous() for p in network.parameters()), *network.buffers()


@pytest.mark.parametrize("option", ["channels_last", "compiled", "synchronized"])
def test_a_network_laid_out_computes_the_same(monkeypatch, option):
    """Compiled without C++, which takes half a minute; with it, test_classifiers.py has it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    other = laid_out(copy.deepcopy(network), Accelerator(cpu=True), **{option: True})
    for ours, theirs in zip(outcome(other), outcome(network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert list(other.state_dict()) == list(network.state_dict())
    assert (other._compiled_call_impl is not None) == (option == "compiled")


@pytest.mark.parametrize(("name", "width"), [("cifar-densenet121", 0.25), ("resnet18", 1), ("efficientnet_b0", 1)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_synchronised_batch_norm_keeps_all_else_of_a_network(name, width, device):
    """Its activations, where they are of the same module (timm's BatchNormAct2d). On other devices by timm."""
    torch.manual_seed(0)
    network = make_network(name, 5, width=width).eval()
    images = torch.rand(2, 3, 32, 32)
    logits, kinds = network(images), Counter(type(module) for module in network.modules())
    synchronised = synchronize_batch_norm(network, torch.device(device))
    synchronised = synchronize_batch_norm(synchronised, torch.device(device))  # a guide of the pipeline's is it already
    torch.testing.assert_close(synchronised(images), logits, rtol=1e-4, atol=1e-5)
    left = Counter(type(module) for module in synchronised.modules())
    assert not left[nn.BatchNorm2d] + left[BatchNormAct2d]
    assert left[CPUSyncBatchNormAct] + left[SyncBatchNormAct] == kinds[BatchNormAct2d]
    assert bool(kinds[BatchNormAct2d]) == (name != "resnet18")


def test_activations_stay_where_several_processes_normalise_together(monkeypatch):
    """Each of two processes with the same images."""
    network = nn.Sequential(BatchNormAct2d(4, act_layer=nn.SiLU), nn.BatchNorm2d(4))
    images = torch.rand(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    alone = network(images)
    monkeypatch.setattr(batch_norm, "number_of_processes", lambda: 2)
    monkeypatch.setattr(batch_norm, "sum_over_processes", lambda total: 2 * total)
    together = synchronize_batch_norm(network, torch.device("cpu"))(images)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_another_kind_is_not_synchronised_on_cpus():
    class Other(nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match="sync_batchnorm: Other cannot be synchronised"):
        synchronize_batch_norm(nn.Sequential(Other(3)), torch.device("cpu"))


def test_a_network_is_laid_out_on_the_device_of_its_process(monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    network = laid_out(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), accelerator)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}


def test_what_processes_agree_on_lies_on_their_device(monkeypatch):
    """nccl takes nothing from a CPU, where an average counts its updates."""
    average, seen = EMA(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0.9).to("meta"), []
    monkeypatch.setattr(engine, "broadcast", lambda tensor: seen.append(tensor.device.type) or tensor)
    engine.agree(average, SimpleNamespace(num_processes=2))
    assert seen == ["meta"] * 7


def test_attention_is_not_cudnns():
    torch.backends.cuda.enable_cudnn_sdp(True)
    make_accelerator(keep_memory=False)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_channels_last_is_the_layout_of_every_convolution():
    network = laid_out(nn.Sequential(nn.Conv2d(4, 8, 3)), Accelerator(cpu=True), channels_last=True)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("asked", "here", "threads"), [(None, "1", 8), (None, "3", 2), (None, "9", 1), (5, "3", 5)])
def test_cores_are_divided_among_the_processes_of_this_machine(asked, here, threads, device, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    accelerator = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr("hybridgen.training.engine.Accelerator", lambda **_: accelerator)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setenv("WORLD_SIZE", "12")  # of all machines
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    make_accelerator(precision="fp32", threads=asked, keep_memory=False)
    assert given == [threads]


@pytest.mark.parametrize(("device", "asked"), [("cpu", True), ("cpu", False), ("cuda", True)])
def test_freed_memory_is_kept_on_cpus_where_it_is_asked_for(device, asked, monkeypatch):
    """By glibc's malloc.h: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD -1, M_TOP_PAD -2."""
    given = {}
    mallopt = lambda option, value: given.update({option: value})
    monkeypatch.setattr(engine, "ctypes", SimpleNamespace(CDLL=lambda name: SimpleNamespace(mallopt=mallopt)))
    monkeypatch.setattr(engine, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(engine, "Accelerator", lambda **_: SimpleNamespace(device=torch.device(device)))
    make_accelerator(precision="fp32", threads=torch.get_num_threads(), **{} if asked else {"keep_memory": False})
    assert given == ({-3: 2**30, -1: 2**31 - 1, -2: 2**28} if (device, asked) == ("cpu", True) else {})


def test_memory_is_in_bytes_and_the_clock_in_seconds():
    cpu, before = torch.device("cpu"), perf_counter()
    assert before <= now(cpu) <= perf_counter()
    if sys.platform.startswith("linux"):
        assert 2**26 < peak_memory(cpu) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
