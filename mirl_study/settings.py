"""Everything that decides a result, in two frozen dataclasses; named profiles; validation; the key of a run."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml

SETTINGS = ("all_in_one", "derain", "dehaze", "denoise", "jpeg")
GRID = ("all_in_one", "derain", "dehaze", "denoise")  # the paper's: what `all` means
SCOPES = ("global", "layerwise")
ONE_SHOT = {  # method: (criterion, fraction of the weights removed at once)
    "PIR-OSM-I": ("magnitude", 0.3),
    "PIR-OSM-II": ("magnitude", 0.7),
    "PIR-OSR-I": ("random", 0.3),
    "PIR-OSR-II": ("random", 0.7),
}
LOTTERY = {"MIR-L-LW": "layerwise", "MIR-L-G": "global"}
CONTROLS = {  # what a ticket is compared with, in groups as the figures show them
    "one thing changed": ("reinit", "sign", "shuffled", "random_layers", "random_global"),
    "pruned once": ("fine_tune", "weight_rewind", "lr_rewind", "magnitude_long", "random_long"),
    "pruned at the start": ("snip", "grasp", "synflow"),
    "not pruned": ("dense_long", "small_dense"),
    "probes": ("instability", "instability_dense", "norms"),
}
COMPARED = ("mspfn", "epdn", "ffdnet", "airnet", "restormer", "mprnet", "adair")  # in the order of the paper's Table I
SIZES = ("paper", "laptop", "pico")  # of these
RECIPES = ("study", "original")
CRITERIA = ("magnitude", "random", "movement", "snip", "grasp", "synflow")
PROTOCOLS: dict[str, dict[str, Any]] = {  # where the paper, its released code and our recommendation differ
    "paper": {
        "weight_decay": 0.0,
        "prune_norms": False,
        "prune_unused": True,
        "rewind": "all",
        "augmentation": "flips",
        "noise_rounding": "none",
        "schedule": "epoch",
        "lr_start": 1e-6,
        "count": "exact",
        "drop_overlap": False,
    }
}
PROTOCOLS["released"] = PROTOCOLS["paper"] | {
    "weight_decay": 0.01,
    "prune_norms": True,
    "rewind": "weights",
    "augmentation": "dihedral",
    "noise_rounding": "truncate",
    "lr_start": 0.0,
    "count": "percentile",
}
PROTOCOLS["sound"] = PROTOCOLS["paper"] | {
    "prune_unused": False,
    "noise_rounding": "round",
    "schedule": "step",
    "drop_overlap": True,
}
METHODS = ("dense", *ONE_SHOT, *LOTTERY)
SIGMAS = (15, 25, 50)
TASKS = {  # setting: the tasks that one image of it can suffer, grouped as the batches are balanced
    "derain": ("derain",),
    "dehaze": ("dehaze",),
    "denoise": tuple(f"denoise{sigma}" for sigma in SIGMAS),
}
# The paper's three families, and no more: its tables hold no other, and every run so far was trained on these.
TASKS["all_in_one"] = tuple(task for tasks in tuple(TASKS.values()) for task in tasks)
TASKS["jpeg"] = ("jpeg",)


class SettingsError(ValueError):
    """One line that names the parameter, its value, what is allowed and the nearest valid name."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the valid name closest to ``name``, or an empty string."""
    match = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def choose(parameter: str, value: str, allowed: Iterable[str]) -> str:
    """Returns ``value`` if it is one of ``allowed``; raises SettingsError with the nearest name otherwise."""
    allowed = list(allowed)
    if value not in allowed:
        raise SettingsError(f"{parameter}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
    return value


def setting_names(text: str) -> tuple[str, ...]:
    """Reads a list of settings: ``derain,dehaze``, or ``all`` for the paper's four; repeated ones count once.

    Raises:
        SettingsError: for a name that is none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        choose("setting", name, (*SETTINGS, "all"))
    return tuple(dict.fromkeys(one for name in names for one in (GRID if name == "all" else (name,))))


def _require(ok: bool, parameter: str, value: Any, allowed: str) -> None:
    if not ok:
        raise SettingsError(f"{parameter}={value!r} is not allowed: {allowed}")


def _check_types(settings: Any, prefix: str = "") -> None:
    """Raises SettingsError unless each field is what its annotation says; int passes for float, list for tuple."""
    hints = get_type_hints(type(settings))
    for name, value in ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)):
        kind = get_origin(hints[name]) or hints[name]
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        inner = get_args(hints[name])
        if inner[:1] == (float,) and kind is tuple and isinstance(value, tuple):
            value = tuple(float(item) if type(item) is int else item for item in value)
        if kind is UnionType:
            ok = type(value) in inner
        else:
            ok = type(value) is kind and (not inner or all(type(item) is inner[0] for item in value))
        wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
        listed = "a list of whole numbers" if inner[:1] == (int,) else "a list of numbers"
        _require(ok, prefix + name, value, wanted.get(kind.__name__, listed) + " is wanted")
        object.__setattr__(settings, name, value)


@dataclass(frozen=True)
class NetworkSettings:
    """The shape of a PromptIR; the paper's size is the preset ``paper``.

    Attributes:
        dim: channels of the first level; the levels have dim, 2 dim, 4 dim and 8 dim.
        blocks: transformer blocks at the four levels (the decoder repeats the first three).
        refinement: transformer blocks after the decoder.
        heads: attention heads at the four levels.
        expansion: widening of the feed-forward part (GDFN).
        prompt_components: prompts to choose from at each of three levels.
        prompt_size: height and width of the finest prompts; the two deeper ones have a half and a quarter.
        unused: whether the six convolutions that the released model carries but never runs are there.
    """

    dim: int = 48
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    refinement: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    expansion: float = 2.66
    prompt_components: int = 5
    prompt_size: int = 64
    unused: bool = False

    recipe: ClassVar[str] = "study"

    def __post_init__(self) -> None:
        _check_types(self, "network.")
        _require(self.dim >= 4 and self.dim % 4 == 0, "network.dim", self.dim, "a multiple of 4, at least 4")
        for name in ("blocks", "heads"):
            value = getattr(self, name)
            _require(
                len(value) == 4 and min(value) >= 1, f"network.{name}", value, "four whole numbers, each at least 1"
            )
        divides = all(self.dim * 2**level % heads == 0 for level, heads in enumerate(self.heads))
        _require(divides, "network.heads", self.heads, f"each must divide its level's width ({self.dim} x 1, 2, 4, 8)")
        _require(self.refinement >= 1, "network.refinement", self.refinement, "at least 1")
        _require(self.dim * self.expansion >= 1, "network.expansion", self.expansion, "at least one hidden channel")
        _require(self.prompt_components >= 1, "network.prompt_components", self.prompt_components, "at least 1")
        size_ok = self.prompt_size >= 4 and self.prompt_size % 4 == 0
        _require(size_ok, "network.prompt_size", self.prompt_size, "a multiple of 4, at least 4")

    @property
    def prompt_channels(self) -> tuple[int, int, int]:
        """Channels of the prompts at levels 1, 2, 3: 4/3, 8/3, 20/3 of ``dim`` in fours (64, 128, 320 at 48)."""
        return tuple(max(4, 4 * round(self.dim * ratio / 12)) for ratio in (4, 8, 20))  # type: ignore[return-value]


PRESETS = {
    "paper": NetworkSettings(unused=True),
    "small": NetworkSettings(dim=16, blocks=(2, 2, 2, 2), refinement=2, prompt_size=32),
    "nano": NetworkSettings(dim=8, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 2, 2), prompt_size=16),
    "pico": NetworkSettings(
        dim=4, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 1, 1), prompt_components=2, prompt_size=4
    ),
}


@dataclass(frozen=True)
class ModelSettings:
    """One of the models that the paper compares with, by name; its shapes are presets of its own.

    Attributes:
        architecture: one of COMPARED.
        size: ``paper`` (nearest to the paper's count), ``laptop`` (about as many parameters as the preset ``nano``) or
            ``pico``.
        recipe: ``study`` trains it as everything else is trained; ``original`` by its authors' loss, optimiser and
            shape of the schedule. Numbers, the learning rate among them, are those of the settings either way.
    """

    architecture: str
    size: str = "paper"
    recipe: str = "study"

    unused: ClassVar[bool] = True  # there may be parameters that get no gradient

    def __post_init__(self) -> None:
        _check_types(self, "network.")
        choose("network.architecture", self.architecture, COMPARED)
        choose("network.size", self.size, SIZES)
        choose("network.recipe", self.recipe, RECIPES)

    @property
    def label(self) -> str:
        """Its name, with the recipe if that is not the study's."""
        return self.architecture if self.recipe == "study" else f"{self.architecture}-{self.recipe}"


SIZE_OF = {"paper": "paper", "pico": "pico"}  # of a model that takes a preset's place; beside others it is ``laptop``


@dataclass(frozen=True)
class Settings:
    """One run: what is restored, by which network, trained how, pruned how.

    Attributes:
        profile: the named set that these settings started from.
        protocol: ``paper``, ``released`` or ``sound``: the named set of points (see PROTOCOLS) that they started from;
            each point is a setting of its own and can be changed alone.
        setting: ``all_in_one`` (the paper's three families), ``derain``, ``dehaze``, ``denoise`` or ``jpeg``.
        scope: where weights compete: in the whole network (``global``) or in each tensor (``layerwise``).
        seed: of the initialisation, the data order and random criteria.
        data: ``embedded`` or a prepared data folder.
        network: a preset's name, a mapping (``preset`` and single fields), or NetworkSettings; or another model, by its
            name, a mapping (``architecture``, ``size``, ``recipe``) or ModelSettings.
        steps: optimiser steps of one round.
        warmup_steps: of those, with a learning rate that rises linearly.
        batch_size, patch_size: patches a step, and their height and width in pixels (a multiple of 8).
        lr, lr_start, lr_min: peak, first and last learning rate.
        schedule: whether the learning rate changes with each ``step`` or stays the same for an ``epoch``.
        epochs: into how many epochs the schedule of a round divides.
        weight_decay: decoupled, as in AdamW; 0 is Adam.
        clip_norm: largest norm of the gradient of what is kept; 0 is no limit.
        augmentation: ``flips`` (each of the two or not), or ``dihedral`` (one of the seven turns and flips that change
            the patch).
        noise_rounding: what happens to a noisy image's grey levels: ``round``, ``truncate`` or ``none``.
        rounds: of pruning, after the dense round 0.
        rate: fraction of the remaining prunable weights that leaves in each round.
        densities: of the rounds after the dense one, in place of ``rate`` and ``rounds``.
        output_rate: the output layer's rate as a multiple of ``rate``, in layer-wise pruning.
        criterion: the score by which weights leave.
        count: ``exact`` removes exactly the count that the rate says; ``percentile`` what lies below the rate's
            percentile, as the released code does.
        rewind: what goes back to the rewind point after pruning: ``all``, ``weights`` (prompts and temperatures carry
            their trained values over, as in the released code) or ``none`` (learning-rate rewinding).
        rewind_step: the step of the dense round that is gone back to; 0 is the initialisation.
        prune_norms: whether LayerNorm gains are prunable.
        prune_unused: whether the unused convolutions are prunable.
        precision: of the training's forward and backward pass: ``float32``, or ``bf16`` (autocast; weights, optimiser
            and evaluation stay float32).
        compile: whether the training runs on compiled kernels, torch.compile's with CUDA graphs on a GPU, those of
            ``kernels.cpp`` on a CPU (float32 alone); they round otherwise.
        drop_overlap: whether training images that show the background of a test image are left out.
        fine_tune: steps of a one-shot baseline's fine-tuning, as a fraction of ``steps``.
        fine_tune_lr: its peak learning rate (the paper does not state one).
        validate_every: steps between two looks at the validation patches.
        ticket_round: the round whose ticket the controls are played against.
        keep_weights: rounds of which the trained weights are kept.
        checkpoint_every: seconds between two checkpoints of a training, at least; 0 is one after every step.
        devices: that train one network together, each with its share of every batch; results differ by rounding alone.
    """

    profile: str = "laptop"
    protocol: str = "sound"
    setting: str = "all_in_one"
    scope: str = "global"
    seed: int = 0
    data: str = "embedded"
    network: NetworkSettings | ModelSettings = field(default_factory=lambda: PRESETS["nano"])
    steps: int = 100
    warmup_steps: int = 10
    batch_size: int = 8
    patch_size: int = 64
    lr: float = 2e-4
    lr_start: float = 1e-6
    lr_min: float = 1e-6
    schedule: str = "step"
    epochs: int = 120
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    augmentation: str = "flips"
    noise_rounding: str = "round"
    precision: str = "float32"
    compile: bool = False
    drop_overlap: bool = True
    rounds: int = 15
    rate: float = 0.2
    densities: tuple[float, ...] = ()
    output_rate: float = 0.5
    criterion: str = "magnitude"
    count: str = "exact"
    rewind: str = "all"
    rewind_step: int = 0
    prune_norms: bool = False
    prune_unused: bool = False
    fine_tune: float = 0.05
    fine_tune_lr: float = 2e-4
    validate_every: int = 50
    ticket_round: int = 12
    keep_weights: tuple[int, ...] = (0, 15)
    checkpoint_every: float = 60.0
    devices: int = 1

    def __post_init__(self) -> None:
        _check_types(self)
        choose("setting", self.setting, SETTINGS)
        choose("scope", self.scope, SCOPES)
        choose("protocol", self.protocol, PROTOCOLS)
        choose("criterion", self.criterion, CRITERIA)
        choose("count", self.count, ("exact", "percentile"))
        choose("rewind", self.rewind, ("all", "weights", "none"))
        choose("schedule", self.schedule, ("step", "epoch"))
        choose("augmentation", self.augmentation, ("flips", "dihedral"))
        choose("noise_rounding", self.noise_rounding, ("round", "truncate", "none"))
        choose("precision", self.precision, ("float32", "bf16"))
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        for name in ("steps", "batch_size", "rounds", "validate_every", "epochs", "ticket_round", "devices"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        equal = self.batch_size % self.devices == 0
        _require(equal, "devices", self.devices, f"a divisor of batch_size ({self.batch_size})")
        if self.network.recipe != "study":  # its loss is more than a forward pass
            for name, plain in (("devices", 1), ("precision", "float32"), ("compile", False)):
                _require(getattr(self, name) == plain, name, getattr(self, name), f"{plain!r} with recipe 'original'")
        warm = 0 <= self.warmup_steps < self.steps
        _require(warm, "warmup_steps", self.warmup_steps, f"0 to less than steps ({self.steps})")
        patch = self.patch_size >= 16 and self.patch_size % 8 == 0
        _require(patch, "patch_size", self.patch_size, "a multiple of 8, at least 16")
        _require(0 < self.rate < 1, "rate", self.rate, "more than 0 and less than 1")
        falls = all(a > b > 0 for a, b in zip((1.0, *self.densities), self.densities, strict=False))
        _require(falls, "densities", self.densities, "each less than the one before, between 0 and 1")
        if self.densities:
            object.__setattr__(self, "rounds", len(self.densities))
        late = 0 <= self.rewind_step < self.steps
        _require(late, "rewind_step", self.rewind_step, f"0 to less than steps ({self.steps})")
        _require(
            not self.rewind_step or self.rewind != "none", "rewind_step", self.rewind_step, "0 where rewind is 'none'"
        )
        for name in ("weight_decay", "clip_norm", "checkpoint_every"):
            value = getattr(self, name)
            _require(0 <= value < float("inf"), name, value, "0 or more")
        _require(0 < self.output_rate <= 1, "output_rate", self.output_rate, "more than 0, at most 1")
        _require(0 < self.fine_tune <= 1, "fine_tune", self.fine_tune, "more than 0, at most 1")
        for name in ("lr", "fine_tune_lr"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "more than 0 and less than 1")
        for name in ("lr_start", "lr_min"):
            _require(0 <= getattr(self, name) <= self.lr, name, getattr(self, name), f"0 to lr ({self.lr})")

    @staticmethod
    def field_names() -> tuple[str, ...]:
        """Names of all settings, for overrides."""
        return tuple(f.name for f in dataclasses.fields(Settings))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of this setting, in the order of the tables."""
        return TASKS[self.setting]

    def method(self) -> str:
        """The paper's name for the lottery of this scope: MIR-L-G or MIR-L-LW."""
        return next(method for method, scope in LOTTERY.items() if scope == self.scope)

    def rate_of(self, index: int) -> float:
        """The fraction of the remaining prunable weights that leaves before round ``index`` (1 is the first)."""
        if not self.densities:
            return self.rate
        before, after = (1.0, *self.densities)[index - 1 : index + 1]
        return 1 - after / before

    def departures(self) -> dict[str, Any]:
        """The points of the protocol that were set otherwise."""
        return {name: getattr(self, name) for name, v in PROTOCOLS[self.protocol].items() if getattr(self, name) != v}

    def plain(self) -> dict[str, Any]:
        """All settings in the types that JSON has."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def control(self, name: str) -> str:
        """The folder of a control: of the ticket's round in this scope, but for ``norms``, a layer-wise lottery."""
        choose("control", name, (name for group in CONTROLS.values() for name in group))
        return "MIR-L-LW-norms" if name == "norms" else f"{self.method()}-round{self.ticket():02d}-{name}"

    def ticket(self) -> int:
        """The round whose ticket the controls are played against; the last one if there are fewer."""
        return min(self.ticket_round, self.rounds)

    def replace(self, **overrides: Any) -> "Settings":
        """Returns a copy with some settings changed, validated like ``load_settings``."""
        return _build(dataclasses.asdict(self), overrides)

    def deciding(self, method: str) -> dict[str, Any]:
        """The settings that can change the results of ``method``, in plain types.

        What is left out may differ without a difference in the results: names of profile and protocol, how many rounds
        follow, what is kept and how often, how many devices share the work, where the images lie (their fingerprint
        decides) and, for the dense network, how it will be pruned.
        """
        free = {"profile", "protocol", "rounds", "ticket_round", "data", "drop_overlap"}
        free |= {"keep_weights", "checkpoint_every", "devices"}
        rounds = {"scope", "rate", "densities", "output_rate", "criterion", "count", "rewind", "rewind_step"}
        prunable = {"prune_norms", "prune_unused"}
        tuning = {"fine_tune", "fine_tune_lr"}
        if choose("method", method, METHODS) in LOTTERY:
            free |= tuning
        elif method in ONE_SHOT:
            free |= rounds
        else:
            free |= rounds | prunable | tuning
        return {name: value for name, value in self.plain().items() if name not in free}

    def key(self, method: str) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of ``deciding(method)``."""
        text = json.dumps(self.deciding(method), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _network(value: Any, base: NetworkSettings | ModelSettings) -> NetworkSettings | ModelSettings:
    """A preset's or a model's name, or a mapping of fields on top of a preset, a model or ``base``."""
    if isinstance(value, NetworkSettings | ModelSettings):
        return value
    if isinstance(value, str):
        known = choose("network", value, (*PRESETS, *COMPARED))
        return PRESETS[known] if known in PRESETS else _model({"architecture": known}, base)
    allowed = f"a preset ({', '.join(PRESETS)}), a model ({', '.join(COMPARED)}) or a mapping of fields"
    _require(isinstance(value, Mapping), "network", value, allowed)
    fields = dict(value)
    if "architecture" in fields or isinstance(base, ModelSettings) and not {"preset", "dim"} & set(fields):
        return _model(fields, base)
    if "preset" in fields or isinstance(base, ModelSettings):
        base = PRESETS[choose("network.preset", fields.pop("preset", "nano"), PRESETS)]
    return dataclasses.replace(base, **_known(fields, NetworkSettings))


def _model(fields: Mapping[str, Any], base: NetworkSettings | ModelSettings) -> ModelSettings:
    """A model on top of another one, or in the place of a preset, whose size it then takes."""
    if isinstance(base, NetworkSettings):
        preset = next((name for name, shape in PRESETS.items() if shape == base), "")
        return ModelSettings(**{"size": SIZE_OF.get(preset, "laptop"), **_known(fields, ModelSettings)})
    return dataclasses.replace(base, **_known(fields, ModelSettings))


def _known(fields: Mapping[str, Any], kind: type) -> Mapping[str, Any]:
    """The fields, if all are of that kind of settings."""
    for name in fields:
        choose("network field", name, [f.name for f in dataclasses.fields(kind)])
    return fields


def _build(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Settings:
    for name in overrides:
        if name not in Settings.field_names():
            known = ", ".join(Settings.field_names())
            raise SettingsError(f"unknown setting {name!r}{nearest(name, Settings.field_names())}; known are {known}")
    points = PROTOCOLS[choose("protocol", overrides["protocol"], PROTOCOLS)] if "protocol" in overrides else {}
    values = {**base, **points, **overrides}
    start = _network(base.get("network", "nano"), PRESETS["nano"])
    values["network"] = _network(values.get("network", start), start)
    return Settings(**values)


def profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    folder = resources.files("mirl_study") / "profiles"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_settings(profile: str = "laptop", **overrides: Any) -> Settings:
    """Reads a profile, changes what ``overrides`` names, and validates the whole.

    A ``protocol`` sets its points; single ones can be set beside it.

    Args:
        profile: ``smoke``, ``laptop``, ``gpu`` or ``paper``.
        **overrides: any field of Settings, by name.

    Returns:
        Frozen settings.

    Raises:
        SettingsError: one line; before any work.
    """
    choose("profile", profile, profiles())
    text = (resources.files("mirl_study") / "profiles" / f"{profile}.yaml").read_text()
    if "profile" in overrides:
        raise SettingsError(f"profile={overrides['profile']!r} cannot be an override: it is the first argument")
    values = yaml.safe_load(text) or {}
    settings = _build({"profile": profile, **PROTOCOLS[values["protocol"]], **values}, overrides)
    if "ticket_round" in overrides:  # a profile's own gives way to fewer rounds
        last = settings.rounds
        _require(settings.ticket_round <= last, "ticket_round", settings.ticket_round, f"1 to rounds ({last})")
    return settings


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Returns settings from plain values, as ``run.json`` has them; a setting that is not there has its default.

    Raises:
        SettingsError: for a value that is not allowed.
    """
    return _build({}, {name: value for name, value in values.items() if name in Settings.field_names()})
