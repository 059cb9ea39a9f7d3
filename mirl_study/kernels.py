"""What stands between a block's matrix products, compiled for this CPU: see ``kernels.cpp``.

The compiler is the machine's own (``CXX``, or the first of COMPILERS that is there), called once; the library stays in
the user's cache (``XDG_CACHE_HOME``, or ``~/.cache``), named by what it was made from.

Threads share the work by images, and by 64 channels where there are more: further threads find nothing to do.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mirl_study.machine import processor_facts

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w")
# The tensors that each function takes. Of B images of H x W pixels and C channels: p is (B, H, W, C), P (B, H, W, 2 C),
# k (C, 1, 3, 3), K (2 C, 1, 3, 3), m (B, H, W), b (B, C) and c (C).
FUNCTIONS = {
    "depthwise": "pkpb",
    "depthwise_backward": "pkppbpk",
    "gated": "PKp",
    "gated_backward": "PKppPK",
    "norm_backward": "ppmmcppcc",
}


class NoKernels(RuntimeError):
    """No compiler, or none that can build the kernels; the message says why, in a line."""


class Kernels:
    """The compiled functions. Tensors are float32 on the CPU, contiguous, (B, H, W, C); kernels (C, 1, 3, 3).

    Attributes:
        name: of the library, which tells apart what may round otherwise.
        lanes: channels that are computed at once, and the least that there may be, but for ``norm_backward``.
    """

    def __init__(self, library: Path) -> None:
        found = ctypes.CDLL(str(library))
        try:
            self.functions = {name: found[name] for name in FUNCTIONS}
            self.name, self.lanes = library.stem, found.lanes()
        except AttributeError as error:
            raise OSError(str(error)) from error

    def _call(self, name: str, shape: torch.Size, *tensors: Tensor) -> None:
        images, height, width, channels = shape
        pixels = images * height * width
        sizes = {"p": pixels * channels, "m": pixels, "k": 9 * channels, "b": images * channels, "c": channels}
        sizes |= {"P": 2 * sizes["p"], "K": 2 * sizes["k"]}
        if channels < self.lanes and name != "norm_backward":
            raise ValueError(f"{name}: {channels} channels are not allowed: at least {self.lanes}")
        if not height * width:
            raise ValueError(f"{name}: an image of {height}x{width} pixels is not allowed: at least 1x1")
        for tensor, kind in zip(tensors, FUNCTIONS[name], strict=True):
            if tensor.numel() != sizes[kind]:
                raise ValueError(f"{name}: a tensor {tuple(tensor.shape)} does not go with {tuple(shape)}")
            if not tensor.is_contiguous() or tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
                raise ValueError(f"{name}: a tensor is not contiguous, or not float32, or not on the CPU")
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        self.functions[name](*pointers, *map(ctypes.c_long, shape), ctypes.c_int(torch.get_num_threads()))

    def norm_backward(
        self, gradient: Tensor, x: Tensor, mean: Tensor, spread: Tensor, gain: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of LayerNorm by x, gain and bias; ``past`` is added to the first."""
        outs = torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)
        self._call("norm_backward", x.shape, gradient, x, mean, spread, gain, past, *outs)
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
        """The product again, in the place of ``inner`` (derivatives by it); and the derivatives by x and weight."""
        for_x, for_weight = torch.empty_like(x), torch.empty_like(weight)
        self._call("gated_backward", inner.shape, x, weight, inner, inner, for_x, for_weight)
        return inner, for_x, for_weight


@functools.cache
def build() -> Kernels:
    """Compiles the kernels for this CPU, or finds them as they were compiled before.

    Raises:
        NoKernels: where that is not possible.
    """
    try:
        compiler = _compiler()
        library = _cache() / f"kernels-{_made_from(compiler)}.so"
        if library.exists():
            with contextlib.suppress(OSError):  # a damaged one is made again
                return Kernels(library)
        return _compile(compiler, library)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        telling = next((line for line in lines if "error" in line), lines[-1])
        raise NoKernels(f"{shlex.join(compiler)}: {telling}") from error
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        raise NoKernels(str(error)) from error


def state() -> str:
    """Returns in words whether the kernels are there, and why not."""
    try:
        return f"{build().name} compiled"
    except NoKernels as error:
        return f"goes on without: {' '.join(str(error).split())}"


def _compiler() -> list[str]:
    """The command that compiles, with the arguments that it was given."""
    if wanted := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(wanted[0]) is None:
            raise OSError(f"CXX={os.environ['CXX']!r} is no command here")
        return wanted
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise OSError(f"no C++ compiler; looked for {', '.join(COMPILERS)}")


def _cache() -> Path:
    """The folder for compiled kernels; a relative XDG_CACHE_HOME counts as none, as its specification says."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "mirl_study"


def _made_from(compiler: list[str]) -> str:
    """Tells apart what must not be taken for another: source, compiler, flags, and what this CPU can do."""
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    abilities = sorted({line for line in processor_facts() if line.startswith(("flags", "Features", "model name"))})
    version = f"{program} {program.stat().st_size} {program.stat().st_mtime_ns}"
    parts = [SOURCE.read_text(encoding="utf-8"), *compiler, version, *FLAGS, platform.machine(), *abilities]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: list[str], library: Path) -> Kernels:
    """Compiles, and keeps what can be loaded; whole or not at all."""
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = Path(scratch) / library.name
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
        kernels = Kernels(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(library)
    return kernels
