"""The best network so far by a score on the validation part: never on the test set."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn


class Selected(nn.Module):
    """A copy of the network that had the highest validation score; of equals, and without scores (nan), the latest."""

    score: Tensor
    step: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.register_buffer("score", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    def offer(self, network: nn.Module, score: float, step: int) -> None:
        """Keep `network` if its score is at least the best one, or nan: there is no validation image."""
        if math.isnan(score) or score >= float(self.score):
            self.network.load_state_dict(network.state_dict())
            self.score.fill_(score)
            self.step.fill_(step)
