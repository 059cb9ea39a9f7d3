"""How a network is called in training: as it is, or by settings in bf16 and compiled. Evaluation is always float32."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mirl_study.settings import Settings

Restore = Callable[[Tensor], Tensor]


def forward_of(network: nn.Module, settings: Settings) -> Restore:
    """Returns the forward pass that a training uses.

    Args:
        network: on the device of the training.
        settings: ``precision`` and ``compile`` of the run.

    Returns:
        The network itself where both have their defaults; else a function that gives float32 images. The first call
        compiles, for minutes; where no compiler works, it says so and goes on without.
    """
    run: Restore = _compiled(network) if settings.compile else network
    if settings.precision == "float32":
        return run

    def in_bf16(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return run(images).float()

    return in_bf16


def _compiled(network: nn.Module) -> Restore:
    """Compiled, with CUDA graphs where there is a GPU: a step of small kernels is mostly the launching of them."""
    on_gpu = next(network.parameters()).is_cuda
    compiled: Restore | None = torch.compile(network, mode="reduce-overhead" if on_gpu else "default")

    def run(images: Tensor) -> Tensor:
        nonlocal compiled
        if compiled is None:
            return network(images)
        try:
            return compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            compiled = None
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"compile=True is not possible here ({reason}): this training goes on without", stacklevel=2)
            return network(images)

    return run
