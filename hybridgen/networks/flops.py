"""How much a network computes, measured."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(network: nn.Module, image_size: int) -> int:
    """Of a forward of the deployed network for one image; a multiplication and an addition are two. Attention is
    counted as the matrix products that it is, as no device's fused form runs here."""
    network = copy.deepcopy(network).to("meta").requires_grad_(False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops()
