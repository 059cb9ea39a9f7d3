"""What stands between a block's matrix products, compiled for this CPU: see ``kernels.cpp``.

The compiler is the machine's own, called once; the library stays in the user's cache, by what it was made from.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
VECTOR = 16  # channels; what is narrower cannot be computed


class NoKernels(RuntimeError):
    """No compiler, or none that can build the kernels; the message says why, in a line."""


class Kernels:
    """The compiled functions. Tensors are float32 on the CPU, contiguous, (B, H, W, C); kernels (C, 1, 3, 3)."""

    def __init__(self, library: Path) -> None:
        self.functions = ctypes.CDLL(str(library))

    def _call(self, name: str, shape: torch.Size, *tensors: Tensor) -> None:
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise ValueError(f"{name}: a tensor is not contiguous")
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        self.functions[name](*pointers, *map(ctypes.c_long, shape), ctypes.c_int(torch.get_num_threads()))

    def norm_backward(
        self, gradient: Tensor, x: Tensor, mean: Tensor, spread: Tensor, gain: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of LayerNorm by x, gain and bias; ``past`` is added to the first."""
        outs = torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)
        self._call("norm_backward", x.shape, gradient, x, gain, mean, spread, past, *outs)
        return outs

    def depthwise(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A 3x3 convolution of each channel by itself; and the sums of its squares along the pixels, (B, C)."""
        out, squares = torch.empty_like(x), x.new_empty(len(x), x.shape[-1])
        self._call("depthwise", x.shape, x, weight, out, squares)
        return out, squares

    def depthwise_backward(
        self, gradient: Tensor, left: Tensor, by_left: Tensor, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``depthwise`` by x and weight; those by what left it are gradient + by_left * left.

        The first takes the place of the gradient.
        """
        for_weight = torch.empty_like(weight)
        self._call("depthwise_backward", x.shape, x, weight, gradient, left, by_left, gradient, for_weight)
        return gradient.view_as(x), for_weight

    def gated(self, x: Tensor, weight: Tensor) -> Tensor:
        """gelu(depthwise(gate)) * depthwise(value); the gate is the first half of x, (B, H, W, 2 C), and of weight."""
        product = x.new_empty(*x.shape[:3], x.shape[3] // 2)
        self._call("gated", product.shape, x, weight, product)
        return product

    def gated_backward(self, inner: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of ``gated`` by x and weight; the product again takes the place of ``inner``, those by it."""
        for_x, for_weight = torch.empty_like(x), torch.empty_like(weight)
        self._call("gated_backward", inner.shape, x, weight, inner, inner, for_x, for_weight)
        return inner, for_x, for_weight


@functools.cache
def build() -> Kernels:
    """Compiles the kernels for this CPU, or finds them as they were compiled before.

    Raises:
        NoKernels: where that is not possible.
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)
    if compiler is None:
        raise NoKernels(f"no C++ compiler; looked for {', '.join(COMPILERS)}")
    made_from = (SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, platform.machine(), *_abilities())
    name = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mirl_study"
    library = folder / f"kernels-{name}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / library.name
                subprocess.run([compiler, *FLAGS, SOURCE, "-o", made], check=True, capture_output=True, text=True)
                Kernels(made)  # what cannot be loaded is not kept
                made.replace(library)
        return Kernels(library)
    except subprocess.CalledProcessError as error:
        raise NoKernels(f"{compiler}: {(error.stderr.strip() or str(error)).splitlines()[0]}") from error
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        raise NoKernels(str(error)) from error


def _abilities() -> list[str]:
    """What this CPU can do, for a library that was compiled on another one must not be taken."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else [platform.processor()]
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
