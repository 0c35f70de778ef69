"""Batch-norm with the statistics of all processes."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from hybridgen.training.processes import number_of_processes, sum_over_processes
from hybridgen.types import InputError, Network, single


def synchronize_batch_norm(network: Network, device: torch.device) -> Network:
    """The network with torch's `SyncBatchNorm` as every batch-norm; on CPUs, which it refuses, `CPUSyncBatchNorm`.

    Of timm's, which activate what they have normalised, the activations stay; so does what is synchronised already.
    InputError, on CPUs, for batch-norm of another kind.
    """
    from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm

    if device.type != "cpu":
        for parent in list(network.modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
                    setattr(parent, name, convert_sync_batchnorm(part))
        return network
    kinds = {nn.BatchNorm2d: CPUSyncBatchNorm, BatchNormAct2d: CPUSyncBatchNormAct}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not isinstance(module, CPUSyncBatchNorm):
            if type(module) not in kinds:
                raise InputError(f"sync_batchnorm: {type(module).__name__} cannot be synchronised on CPUs")
            module.__class__ = kinds[type(module)]  # which differs in what `forward` does, and in nothing that it holds
    return network


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch-norm in training with mean and variance over all processes, whose batches may differ in size.

    Computed in float32 or above, the variance from what is left without the mean: the mean of squares less the square
    of the mean would lose the digits of a small one.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or number_of_processes() == 1:
            return super().forward(input)
        wide = single(input)
        count = wide.new_full((1,), input.numel() / input.shape[1])
        total = sum_over_processes(torch.cat([wide.sum((0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = wide - mean[:, None, None]
        variance = sum_over_processes(centred.square().sum((0, 2, 3))) / count
        if self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_(variance.detach() * count / (count - 1), share)
        y = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)


class CPUSyncBatchNormAct(CPUSyncBatchNorm):
    """Followed by the activation of timm's `BatchNormAct2d`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))
