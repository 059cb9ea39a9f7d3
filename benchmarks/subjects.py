"""What is timed: for each row a function of the side that prepares it and returns a run.

Sides are ``ours``, ``plain`` and, where there is something to compile, ``compiled``: ours with that setting. Two things
that are no part of the network are ours alone: the allocator that keeps its memory, and the fused optimiser.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks import plain
from mirl_study import criteria, data, evaluation, load_settings, lottery
from mirl_study.machine import keep_memory
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.precision import forward_of
from mirl_study.settings import Settings

Run = Callable[[], np.ndarray]  # one run; returns what both sides must agree on, or nothing
SEED = 0
BATCHES, SIZE, PATCH = 10, 8, 64  # of the data path; a step of `paper` takes one such batch
STEPS = 10  # of `laptop` in a run
SCORED, SCORED_GPU = 20, 100  # images


def _network(side: str, settings: Settings) -> torch.nn.Module:
    return (plain.build_network if side == "plain" else build_network)(settings.network, SEED)


def _step(side: str, settings: Settings, size: int, patch: int, device: str = "cpu", steps: int = 1) -> Run:
    """Training steps of the dense network: forward, backward, optimiser.

    A run returns what its last step restored, the losses, and some derivatives of its first step over their largest.
    """
    if side != "plain":
        keep_memory()
    network = _network(side, settings).to(device)
    forward = network if side == "plain" else forward_of(network, settings)
    generator = torch.Generator().manual_seed(SEED)
    degraded, target = torch.rand(2, size, 3, patch, patch, generator=generator).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=side != "plain")

    def run() -> np.ndarray:
        losses, derivatives = [], torch.empty(0)
        for step in range(steps):
            restored = forward(degraded)
            loss = F.l1_loss(restored, target)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                largest = max(gradient.abs().max() for gradient in gradients)
                derivatives = torch.cat([gradient[::997] for gradient in gradients]).div(largest).cpu()
            optimizer.step()
            losses.append(loss.item())
        return np.concatenate([restored.detach().cpu().flatten().numpy(), losses, derivatives.numpy()])

    return run


def step_paper(side: str) -> Run:
    """Training step, network `paper`, batch of 8, 64x64."""
    return _step(side, load_settings("paper", compile=side == "compiled"), SIZE, PATCH)


def step_laptop(side: str) -> Run:
    """Ten training steps, network of `laptop`, its batch and patch; one alone would pay for cold caches."""
    settings = load_settings("laptop", compile=side == "compiled")
    return _step(side, settings, settings.batch_size, settings.patch_size, steps=STEPS)


def step_gpu(side: str) -> Run:
    """Training step on a GPU, network `paper`, batch of 8, 64x64: bf16 and compiled, against eager float32."""
    return _step(side, load_settings("paper", precision="bf16", compile=True), SIZE, PATCH, "cuda")


def images_gpu(side: str) -> Run:
    """100 images of 321x481 (as many as in Rain100L) restored and scored on a GPU, or scored one by one on the CPU."""
    network = _network(side, load_settings("paper")).to("cuda").eval()
    clean, noisy = _pairs(SCORED_GPU)

    def run() -> np.ndarray:
        rows = []
        for a, b in zip(noisy, clean, strict=True):
            restored = evaluation.restore(network, a[None].to("cuda"))
            pair = (restored[0], b.to("cuda")) if side == "ours" else (restored[0].cpu(), b)
            rows.append(_scores(side, *pair))
        return np.array(rows)

    return run


def forward_paper(side: str) -> Run:
    """Forward pass, network `paper`, one image of 320x480."""
    if side == "ours":
        keep_memory()
    network = _network(side, load_settings("paper")).eval()
    image = torch.rand(1, 3, 320, 480, generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def run() -> np.ndarray:
        return network(image).numpy()

    return run


def batches(side: str) -> Run:
    """Ten batches of 8 patches of 64x64, from photographs of 512x512 (`mirl_study.data`, or decoded for each patch)."""
    folder = TemporaryDirectory()
    rng, root = np.random.default_rng(SEED), Path(folder.name)
    coarse = torch.from_numpy(rng.random((16, 3, 64, 64), dtype=np.float32))
    photographs = F.interpolate(coarse, 512, mode="bicubic").clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()
    rows, lines = [], []
    for place, photograph in enumerate(photographs):
        task = ("denoise", "derain", "dehaze")[place % 3]
        for part, image in {"clean": photograph, "input": photograph // 2 + 60}.items():
            Image.fromarray(image).save(root / f"{place}_{part}.png")
        degraded = "" if task == "denoise" else f"{place}_input.png"
        lines += [(split, task, place, degraded, f"{place}_clean.png") for split in ("train", "val", "test")]
        rows.append((root / degraded if degraded else None, root / f"{place}_clean.png"))
    table = pd.DataFrame(lines, columns=["split", "task", "name", "input", "target"])
    table.to_csv(root / "manifest.csv", index=False)
    bank = data.load_bank(load_settings("gpu", data=str(root)), "train", root) if side == "ours" else None

    def run() -> np.ndarray:
        for step in range(BATCHES):
            if bank:
                bank.batch(SIZE, PATCH, seed=SEED, order=0, step=step)
            else:
                plain.batch(rows, SIZE, PATCH, rng)
        assert folder  # the photographs stay as long as they are needed
        return np.empty(0)

    return run


def prune_rewind(side: str) -> Run:
    """Global pruning by a fifth, and the way back to the initialisation, of all 33.2 million weights of `paper`."""
    if side == "ours":
        keep_memory()
    settings = load_settings("paper", protocol="released")
    network = build_network(settings.network, SEED + 1)
    whole = Mask.dense(network, norms=True, unused=True)
    names = dict(network.named_parameters())
    if side == "ours":

        def run() -> np.ndarray:
            scores = criteria.magnitude(criteria.Evidence(network, whole))
            mask = criteria.prune(whole, scores, settings.rate, "global")
            start = build_network(settings.network, SEED)
            mask.apply_(dict(start.named_parameters()))
            return np.array([mask.kept])

        return run
    initial = {name: value.detach().clone() for name, value in build_network(settings.network, SEED).named_parameters()}
    masks = {name: np.ones(keep.shape, np.float32) for name, keep in whole.items()}

    trained = {name: parameter.data for name, parameter in names.items()}

    def run_plainly() -> np.ndarray:
        pruned = plain.prune(names, masks, settings.rate)
        plain.rewind(network, initial, pruned)
        for name, value in trained.items():  # for the next run
            names[name].data = value
        return np.array([sum(int(mask.sum()) for mask in pruned.values())])

    return run_plainly


def metrics(side: str) -> Run:
    """PSNR and SSIM of 20 images of 321x481, against scikit-image one by one."""
    if side == "ours":
        keep_memory()
    clean, noisy = _pairs(SCORED)

    def run() -> np.ndarray:
        return np.array([_scores(side, a, b) for a, b in zip(noisy, clean, strict=True)])

    return run


def _pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and noisy images of 321x481."""
    generator = torch.Generator().manual_seed(SEED)
    clean = torch.rand(count, 3, 321, 481, generator=generator)
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def _scores(side: str, image: torch.Tensor, clean: torch.Tensor) -> tuple[float, float]:
    """PSNR and SSIM of one image."""
    if side == "ours":
        return evaluation.psnr(image[None], clean[None]).item(), evaluation.ssim(image[None], clean[None]).item()
    one, other = image.permute(1, 2, 0).numpy(), clean.permute(1, 2, 0).numpy()
    ssim = structural_similarity(one, other, channel_axis=-1, data_range=1)
    return peak_signal_noise_ratio(other, one, data_range=1), ssim


def chain_bytes(side: str, weights: bool = False) -> int:
    """Bytes on disk of a 16-round chain of `paper`: our masks, or 16 checkpoints with both moments of the optimiser.

    Args:
        side: ``ours`` or ``plain``.
        weights: whether the trained weights that the profile keeps are counted with ours.
    """
    settings = load_settings("paper")
    network = build_network(settings.network, SEED)
    if side == "plain":
        return 16 * 3 * sum(4 * parameter.numel() for parameter in network.parameters())
    with TemporaryDirectory() as folder:
        mask, total = lottery.dense_mask(settings), 0
        scores = criteria.magnitude(criteria.Evidence(network, mask))
        for index in range(settings.rounds + 1):
            path = Path(folder) / f"{index}.npz"
            mask.save(path)
            total += path.stat().st_size
            mask = criteria.prune(mask, scores, settings.rate, settings.scope)
    kept = len(settings.keep_weights) if weights else 0
    return total + kept * 4 * sum(parameter.numel() for parameter in network.parameters())


TIMED = {
    row.__name__: row
    for row in (
        batches,
        step_paper,
        forward_paper,
        step_laptop,
        prune_rewind,
        metrics,
        step_gpu,
        images_gpu,
    )
}


def work(row: str) -> dict[str, int]:
    """What one run of a row gets done: how many of what."""
    small = STEPS * load_settings("laptop").batch_size
    return {
        "batches": {"batches": BATCHES, "images": BATCHES * SIZE},
        "step_paper": {"steps": 1, "images": SIZE},
        "forward_paper": {"images": 1},
        "step_laptop": {"steps": STEPS, "images": small},
        "metrics": {"images": SCORED},
        "step_gpu": {"steps": 1, "images": SIZE},
        "images_gpu": {"images": SCORED_GPU},
    }.get(row, {})
