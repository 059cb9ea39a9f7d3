"""Figures: a frame in, a matplotlib Figure out. No global state; colours never stand alone."""

from mirl_study.figures.comparisons import barrier_figure, controls_figure, stopping_figure
from mirl_study.figures.images import restoration_panels
from mirl_study.figures.masks import (
    denominators_figure,
    density_by_inputs,
    density_map,
    mosaic,
    norm_collapse,
    overlap_curves,
    places_figure,
    similarity_matrix,
    survival_curves,
)
from mirl_study.figures.scores import baselines_below, figure1, quality_figure
from mirl_study.figures.style import MARKS, count, save
from mirl_study.figures.weights import heads_figure, prompts_figure, ranking_figure, survivors_figure

__all__ = [
    "MARKS",
    "barrier_figure",
    "baselines_below",
    "controls_figure",
    "count",
    "denominators_figure",
    "density_by_inputs",
    "density_map",
    "figure1",
    "heads_figure",
    "mosaic",
    "norm_collapse",
    "overlap_curves",
    "places_figure",
    "prompts_figure",
    "quality_figure",
    "ranking_figure",
    "restoration_panels",
    "save",
    "similarity_matrix",
    "stopping_figure",
    "survival_curves",
    "survivors_figure",
]
