"""The same computation, with gradients to the inputs and nothing else."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.func import functional_call


class _Frozen:
    """A plain object, so that a module holding it does not register the parameters a second time, and no
    closure, so that a deep copy of the holder sees the copied module."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module
        state = {name: parameter.detach() for name, parameter in module.named_parameters()}
        training = any(part.training for part in module.modules())
        for name, buffer in module.named_buffers():
            state[name] = buffer.clone() if training else buffer.detach()
        return functional_call(module, state, args, kwargs)

    def __repr__(self) -> str:
        return f"frozen({self._module!r})"


def frozen(module: nn.Module) -> Callable[..., Any]:
    """`module` with detached parameters and untouched buffers: "we only optimise the hybridisation process".

    The result computes what `module` would, in its mode (training or evaluation), on its device and with
    the values that its parameters have at the time of the call. Gradient reaches the inputs; the parameters
    get none, and batch-norm statistics stay as they are. Source: thesis, equations 2.11 and 2.12 (frozen
    criteria of the hybridization losses); the discriminator as the generator sees it.
    """
    return _Frozen(module)
