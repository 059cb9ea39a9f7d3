"""Explorers beside the stations: restorations side by side, and whatever lies in a results folder."""

import html
import io
from typing import Any

import numpy as np
import pandas as pd
import torch
from ipywidgets import widgets as ipy
from PIL import Image, ImageOps, UnidentifiedImageError

from mirl_study import evaluation
from mirl_study.analysis import open_run
from mirl_study.data import Sample
from mirl_study.degradations import gaussian_noise
from mirl_study.settings import LOTTERY, SettingsError
from mirl_study.store import read_json
from mirl_study.widgets.lab import CROP, Lab, middle, options, rate
from mirl_study.widgets.panel import Choice, Panel, png
from mirl_study.widgets.told import NAMES

ZOOM = 8  # screen pixels for a pixel
NOISE = 25  # sigma, in grey levels, that is added to a clean picture of one's own


class Viewer:
    """Two versions of one picture, left and right of a line that can be moved.

    Args:
        lab: whose networks.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.own: dict[str, Sample] = {}
        versions = {"input": ("input", 0), "dense": ("dense", 0)}
        for method in (method for method in NAMES if method in LOTTERY):
            versions |= {f"{NAMES[method]} ticket, round {k}": (method, k) for k in lab.kept(method) if k}
        targets = {**versions, "target": ("target", 0)}
        tasks = list(lab.samples)
        places = {f"{share} %": share / 100 for share in range(0, 101, 5)}
        tickets = [text for text in versions if "ticket" in text]
        self.panel = Panel(
            {
                "picture": Choice("Picture", options(tasks), tasks[0]),
                "left": Choice("Left", targets, "input"),
                "right": Choice("Right", targets, tickets[0] if tickets else "dense"),
                "place": Choice("Split", places, "50 %", "slider"),
            },
            self.draw,
            [{"picture": task} for task in (tasks[0], tasks[-1])],
            CROP * ZOOM,
        )

    def draw(self, picture: str, left: tuple[str, int], right: tuple[str, int], place: float) -> tuple[bytes, str]:
        """Joins two versions at a line; says what each scores."""
        made = {side: self.version(picture, *which) for side, which in (("left", left), ("right", right))}
        told = []
        for (side, one), (name, index) in zip(made.items(), (left, right), strict=True):
            known = f"{one.psnr:.2f} dB, SSIM {one.ssim:.3f}" if one.psnr == one.psnr else "no target to compare with"
            known = "what it should be" if name == "target" and one.psnr == one.psnr else known
            if picture not in self.own and name != "target":
                given = self.lab.levels.input_psnr[picture]
                whole = given if name == "input" else self.lab.curve(name, picture)[index]
                known += f" on this crop; {whole:.2f} dB over all test images of this task"
            label = f"{NAMES[name]}, round {index}" if name in NAMES else name
            told.append(f"{side}: <b>{label}</b> ({known})")
        return png(_split(made["left"].image, made["right"].image, place)), "; ".join(told)

    def version(self, picture: str, method: str, index: int) -> Any:
        """A picture as it is, restored, or as it should be; restored once."""
        sample = self.own.get(picture)
        if sample is None:
            return self.lab.restored(picture, method, index)
        known = not torch.equal(sample.degraded, sample.target)
        if method in ("input", "target"):
            return rate(sample.degraded if method == "input" else sample.target, sample.target if known else None)
        key = (picture, id(sample), method, index)
        if key not in self.lab._restored:
            image = evaluation.restore(self.lab.network(method, index), sample.degraded)
            self.lab._restored[key] = rate(image, sample.target if known else None)
        return self.lab._restored[key]

    def add(self, name: str, content: bytes, noise: bool = False) -> str:
        """Takes in a picture of one's own; the middle of it, shrunk, is restored.

        Args:
            name: of the file.
            content: of the file.
            noise: whether it is clean, so that noise is added and the picture itself is the target.

        Returns:
            The name under which it can be chosen.

        Raises:
            SettingsError: if it is no picture, or too small.
        """
        try:
            with Image.open(io.BytesIO(content)) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise SettingsError(f"picture {name!r} cannot be read: {error}") from error
        if min(image.size) < CROP:
            size = "x".join(map(str, image.size))
            raise SettingsError(f"picture {name!r} is {size} pixels, at least {CROP}x{CROP} is wanted")
        image = ImageOps.fit(image, (CROP, CROP), Image.Resampling.LANCZOS)
        target = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        degraded = target
        if noise:
            generator = torch.Generator().manual_seed(0)
            degraded = gaussian_noise(target, torch.tensor([float(NOISE)]), generator, self.lab.settings.noise_rounding)
        label = f"{name} (noise {NOISE} added)" if noise else name
        self.own[label] = middle(Sample("own", label, degraded, target))
        return label

    def widget(self) -> ipy.VBox:
        """The panel, with a way to bring a picture of one's own."""
        panel = self.panel.widget()
        upload = ipy.FileUpload(accept="image/*", description="A picture of your own")
        clean = ipy.Checkbox(description=f"it is clean: add noise {NOISE}", value=False, indent=False)
        said = ipy.HTML()
        upload.layout.width = "14rem"

        def take(_: Any) -> None:
            if not upload.value:
                return
            file, said.value = upload.value[-1], ""
            try:
                label = self.add(file["name"], bytes(file["content"]), clean.value)
            except SettingsError as error:
                said.value = html.escape(str(error))
                return
            chosen = self.panel.inputs["picture"]
            chosen.options = [*options([*self.lab.samples, *self.own]).items()]
            chosen.value = label

        upload.observe(take, names="value")
        return ipy.VBox([panel, ipy.HBox([upload, clean]), said])

    def show(self, live: bool) -> Any:
        """Returns the widget, or displays its stills."""
        return self.widget() if live else self.panel.show(False)


def _split(left: torch.Tensor, right: torch.Tensor, place: float) -> np.ndarray:
    """Pixels of two images (3, H, W), joined at a share of the width, with a line between them."""
    pair = [(image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for image in (left, right)]
    large = [image.repeat(ZOOM, 0).repeat(ZOOM, 1) for image in pair]
    cut = round(place * large[0].shape[1])
    joined = np.concatenate((large[0][:, :cut], large[1][:, cut:]), axis=1)
    joined[:, max(cut - 2, 0) : cut + 2] = (255, 255, 255)
    joined[:, max(cut - 1, 0) : cut + 1] = 0
    return joined


def browse(lab: Lab) -> Panel:
    """The run browser: the settings and the scores of every finished run of a results folder."""
    runs = {
        f"{run.setting}, {run.method}, seed {run.seed}": run.folder
        for run in lab.found[lab.found.finished].itertuples()
    }
    for folder in sorted(lab.folders["dense"].parents[1].glob("controls/*/seed*/summary.csv")):
        runs[f"{lab.setting}, {folder.parents[1].name}, {folder.parent.name.replace('seed', 'seed ')}"] = folder.parent

    def draw(folder: Any) -> tuple[None, str]:
        facts = read_json(folder / "run.json")
        settings, scores = open_run(folder).settings, pd.read_csv(folder / "summary.csv")
        dense = facts["method"] == "dense"
        line = {
            "method": facts.get("control") or facts["method"],
            "prunable weights": f"by {settings.criterion}, {settings.scope}, {settings.rate:.0%} a round",
            "training": f"{settings.steps} steps{'' if dense else ' a round'}, batches of {settings.batch_size}",
            "device": facts.get("device", ""),
            "torch": facts.get("versions", {}).get("torch", ""),
            "started": facts.get("started", ""),
        }
        if dense:
            del line["prunable weights"]
        table = scores  # of a probe: it has no rounds
        if {"round", "density"} <= set(scores):
            places = ["round", "density"]
            table = scores.pivot_table(index=places, columns="task", values="psnr", sort=False).reset_index()
        head = "; ".join(f"{name}: <b>{html.escape(str(value))}</b>" for name, value in line.items())
        shown = table.to_html(index=False, float_format=lambda v: f"{v:.3f}", border=0)
        return None, f"{head}<p>PSNR / dB by task (means over test images)</p>{shown}"

    return Panel({"folder": Choice("Run", runs, next(iter(runs)))}, draw)
