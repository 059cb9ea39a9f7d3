"""The figures of the report: which there are, of what, and what is said below each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mirl_study import analysis, figures, similarity, trained
from mirl_study.analysis import RUN
from mirl_study.crew import Together, one_by_one
from mirl_study.effective import classes_of
from mirl_study.settings import LOTTERY, load_settings


@dataclass(frozen=True)
class Study:
    """All frames that a report is made from, gathered once.

    Attributes:
        found: what ``analysis.runs`` returned.
        scores, densities, ended, lives, counts, costs: of ``analysis``; ``counts`` are its ``denominators``.
        chains: what ``similarity.chains`` returned.
        unused: what ``analysis.unused_part`` returned, with what names the run.
        recorded: the tables of ``trained``, by name.
        ticket: the round whose tickets are compared.
    """

    found: pd.DataFrame
    scores: pd.DataFrame
    densities: pd.DataFrame
    ended: pd.DataFrame
    lives: pd.DataFrame
    counts: pd.DataFrame
    costs: pd.DataFrame
    chains: pd.DataFrame
    unused: pd.DataFrame
    recorded: dict[str, pd.DataFrame]
    ticket: int


@dataclass(frozen=True)
class Plate:
    """A figure with its name (of the files), its title and what is said below it."""

    figure: Figure
    name: str
    title: str
    text: str


def look(found: pd.DataFrame, together: Together = one_by_one) -> Study:
    """Gathers the frames of a profile's runs.

    Args:
        found: what ``analysis.runs`` returned.
        together: does the work on each chain; see ``crew``.
    """
    scores = analysis.scores(found)
    first = analysis.open_run(found[found.finished].folder.iloc[0]).settings
    chains = np.flatnonzero(found.finished & found.method.isin(LOTTERY))
    looked = together([partial(_look_at, found.iloc[[place]]) for place in chains]) or [_look_at(found.iloc[:0])]
    densities, lives, unused = (_joined([chain[at] for chain in looked]) for at in range(3))
    return Study(
        found,
        scores,
        densities,
        analysis.collapse(scores, densities),
        lives,
        analysis.denominators(lives, analysis.parameters(first.network)),
        analysis.costs(found),
        similarity.chains({name: masks for *_, bits in looked for name, masks in bits.items()}),
        unused,
        {name: trained.gather(found, name) for name in trained.TABLES},
        load_settings(first.profile).ticket(),
    )


def _look_at(chain: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict]:
    """What the masks of one chain, a row of ``analysis.runs``, tell: they are read once."""
    unused = pd.DataFrame(columns=[*RUN, "round", "share"])
    for run in chain.itertuples():
        kinds = analysis.kinds(analysis.open_run(run.folder).settings.network)
        if "unused" in kinds.values():
            table = analysis.unused_part(analysis.load_masks(run.folder), kinds)
            unused = table.assign(setting=run.setting, method=run.method, seed=run.seed)
    return analysis.densities(chain), analysis.lives(chain), unused, similarity.packed(chain)


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Joins frames, of which some may be empty."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def draw(study: Study, setting: str, pictures: bool = True) -> tuple[list[Plate], list[str]]:
    """Draws the figures of one setting.

    Args:
        study: what ``look`` returned.
        setting: whose.
        pictures: whether to show test images.

    Returns:
        The figures, and sentences on those that could not be drawn.
    """
    own = study.found[study.found.finished & (study.found.setting == setting)]
    lotteries = [method for method in reversed(LOTTERY) if method in set(own.method)]
    if not lotteries:
        return [], ["No lottery is finished: there is no curve and no mask to draw."]
    plates = [
        *_scores(study, setting),
        *_places(study, own, setting, lotteries),
        *_pairs(study, own, setting, lotteries),
    ]
    plates += _weights(study, own, setting)
    if not pictures:
        return plates, ["No restored images: they were not wanted (--no-pictures)."]
    try:
        plates += _images(own, setting)
    except FileNotFoundError as error:
        return plates, [f"No restored images: {error}"]
    return plates, []


def _of(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    return table[table.setting == setting]


def _scores(study: Study, setting: str) -> Iterator[Plate]:
    """What the networks score, and at what cost."""
    below = figures.baselines_below(study.scores, setting)
    yield Plate(
        figures.figure1(study.scores, study.ended, setting),
        "figure1",
        "PSNR against the parameters that are left",
        "A point is a seed, lines join the means over seeds"
        + ("; an arrow stands for a baseline below the panel." if below else "."),
    )
    yield Plate(
        figures.quality_figure(study.scores, study.costs, setting),
        "quality",
        "What a score costs",
        "Bytes are those of the trained network, four a parameter and one bit a prunable weight; training is all that "
        "it took to get there; restoring is dense arithmetic whatever the mask, and scatters with the machine's load.",
    )


def _places(study: Study, own: pd.DataFrame, setting: str, lotteries: list[str]) -> Iterator[Plate]:
    """Where the weights are, and which of them do anything."""
    for method in lotteries:
        run = analysis.open_run(analysis.find(own, setting, method))
        part = study.densities[
            (study.densities[RUN] == pd.Series((setting, method, run.settings.seed), index=RUN)).all(axis=1)
        ]
        label = f"{method}, seed {run.settings.seed}"
        text = "Layers at the same place in a run of blocks are pooled."
        yield Plate(figures.density_map(part, label), f"density-{method}", f"Where the weights of {label} are", text)
    yield Plate(
        figures.places_figure(analysis.by_place(_of(study.densities, setting))),
        "levels",
        "How full the levels of the network are",
        "Level 1 is full size, each next one half of it; io is the first and the last layer; prompt are the blocks "
        "that mix prompts in. Means over seeds.",
    )
    yield Plate(
        figures.denominators_figure(_of(study.counts, setting)),
        "denominators",
        "Denominators of sparsity",
        "A weight is effective if it carries the image to the output and its size matters. It is idle if the output is "
        "the same without it; what is neither sets but a sign, or carries a constant. A unit whose kept weights are "
        "all idle is dead. Lines join the means over seeds, a small mark is a seed.",
    )


def _pairs(study: Study, own: pd.DataFrame, setting: str, lotteries: list[str]) -> Iterator[Plate]:
    """Which weights leave, and what masks have in common."""
    masks, labels, curves = {}, {}, {}
    for method in lotteries:
        run = analysis.open_run(analysis.find(own, setting, method))
        masks[method], labels[method] = analysis.load_masks(run.folder), f"{method}, seed {run.settings.seed}"
        kinds = analysis.kinds(run.settings.network)
        curves[labels[method]] = analysis.survival(masks[method], kinds, since=[min(masks[method])])
    text = "The share of the weights that are left in each round, by kind of layer."
    yield Plate(figures.survival_curves(curves), "survival", "Which kinds of layers lose their weights", text)
    chain = masks[lotteries[0]]
    parts = classes_of(chain.values(), run.settings.network)
    live = {index: part["effective"] for index, part in zip(chain, parts, strict=True)}
    layer = sparsest(chain)
    yield Plate(
        figures.mosaic(chain, layer, live=live),
        "mosaic",
        f"One layer of {labels[lotteries[0]]}, weight by weight",
        "The layer that emptied first, or else the one that is emptiest in the last round. What is kept but not "
        "effective sets a sign, carries a constant, or is idle.",
    )
    if len({label.rpartition(" ")[2] for label in labels.values()}) == 1 < len(lotteries):
        text = (
            "How much the two masks of a round share; what masks with the same layer densities share by chance, and "
            "what they share if each keeps the largest initial values of each layer, and has seen no image."
        )
        shared = similarity.over_rounds(*masks.values())
        yield Plate(figures.overlap_curves(shared), "overlap", "Do both scopes keep the same weights?", text)
    index = min(study.ticket, max(chain))
    pairs = similarity.compare(own, index)
    if len(pairs) > 1:
        yield Plate(
            figures.similarity_matrix(pairs, f"masks of round {index}"),
            "similarity",
            "What tickets have in common",
            "IoU, and in brackets by chance, for as many weights in each layer. One seed: the same initial values; "
            "behind the bar is what masks of the largest of them would have.",
        )


def sparsest(chain: dict) -> str:
    """Returns the layer that emptied first, or else the one that is emptiest in the last round.

    Args:
        chain: masks by round.
    """
    for _, mask in sorted(chain.items()):
        if mask.emptied():
            return mask.emptied()[0].removesuffix(".weight")
    densities = chain[max(chain)].densities()
    return min(densities, key=densities.get).removesuffix(".weight")


def _weights(study: Study, own: pd.DataFrame, setting: str) -> Iterator[Plate]:
    """What trained weights have told."""
    stayed, order = (_of(study.recorded[name], setting) for name in ("survivors", "ranking"))
    stayed, order = (table[table.method.isin(LOTTERY)] for table in (stayed, order))
    if len(stayed):
        whose = "Of the effective weights, and of all that are kept"
        whose = whose if (stayed.part == "effective").any() else "Of all weights that are kept, the idle ones included"
        yield Plate(
            figures.survivors_figure(stayed),
            "survivors",
            "What survives: size and sign at initialisation",
            f"{whose}: where they stood in their tensor at the start, and whether training has turned their sign. A "
            "weight without a gradient cannot turn it. Means over seeds.",
        )
        yield Plate(
            figures.ranking_figure(order),
            "ranking",
            "Does the order of the weights last?",
            "From trained values, so between the rounds whose weights were kept; the start is the initialisation. The "
            "largest are taken in the whole network; layer-wise pruning does not ask for those.",
        )
    prompts, heads = (_of(study.recorded[name], setting) for name in ("prompt_weights", "heads"))
    heads = heads[heads.off.notna()]  # earlier versions estimated what happens; the page says so
    for name, table, figure, title, text in (
        (
            "prompt_weights",
            prompts,
            figures.prompts_figure,
            "Prompt components by task",
            "Means over the test images, and in brackets their range.",
        ),
        (
            "heads",
            heads,
            figures.heads_figure,
            "Heads and prompts switched off, one by one",
            "The rise of the mean absolute error on the middle of the first test image of each task: one image, so an "
            "illustration.",
        ),
    ):
        for method in ("dense", "MIR-L-G"):
            part = table[table.method == method]
            if part.empty or method not in set(own.method):
                continue
            part = part[part.seed == part.seed.min()]
            index = min(part["round"].unique(), key=lambda there: abs(there - study.ticket))
            label = f"{method}{f' round {index}' if index else ''}, seed {part.seed.iloc[0]}"
            why = f" Of the rounds whose weights were kept, {index} is nearest to the ticket's, {study.ticket}."
            why = why if index not in (0, study.ticket) else ""
            yield Plate(
                figure(part[part["round"] == index], label), f"{name}-{method}", f"{title}: {label}", text + why
            )


def _images(own: pd.DataFrame, setting: str) -> Iterator[Plate]:
    """What the networks make of an image."""
    middle = [tasks[len(tasks) // 2] for tasks in analysis.FAMILIES.values()]  # of each family
    for item in (item for item in trained.restorations(trained.panels(own, setting)) if item.task in middle):
        yield Plate(
            figures.restoration_panels([item]),
            f"restored-{item.task}",
            f"What the networks make of an image: {item.task}",
            "The middle of the first test image, in rounds whose weights were kept; PSNR and SSIM of the whole image.",
        )
