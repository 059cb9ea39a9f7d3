"""How a network is called in training: as it is, or by settings in bf16 and compiled. Evaluation is always float32."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mirl_study import kernels
from mirl_study.fused import with_kernels
from mirl_study.settings import Settings

Restore = Callable[[Tensor], Tensor]


def forward_of(network: nn.Module, settings: Settings) -> Restore:
    """Returns the forward pass that a training uses.

    Args:
        network: on the device of the training.
        settings: ``precision`` and ``compile`` of the run.

    Returns:
        The network itself where both have their defaults; else a function that gives float32 images. Where nothing
        can be compiled, it says so and goes on without.
    """
    run: Restore = network
    if settings.compile:
        run = (_compiled if next(network.parameters()).is_cuda else _with_kernels)(network)
    if settings.precision == "float32":
        return run

    def in_bf16(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return run(images).float()

    return in_bf16


def _with_kernels(network: nn.Module) -> Restore:
    """With the kernels for a CPU, which take seconds to compile, once; under autocast they have nothing to do."""
    try:
        built = kernels.build()
    except kernels.NoKernels as error:
        _go_on_without(error)
        return network

    def run(images: Tensor) -> Tensor:
        with with_kernels(built):
            return network(images)

    return run


def _compiled(network: nn.Module) -> Restore:
    """Compiled by torch with CUDA graphs, at the first call, for minutes: a step of small kernels mostly launches."""
    compiled: Restore | None = torch.compile(network, mode="reduce-overhead")

    def run(images: Tensor) -> Tensor:
        nonlocal compiled
        if compiled is None:
            return network(images)
        try:
            return compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            compiled = None
            _go_on_without(error)
            return network(images)

    return run


def _go_on_without(error: Exception) -> None:
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"compile=True is not possible here ({reason}): this training goes on without", stacklevel=3)
