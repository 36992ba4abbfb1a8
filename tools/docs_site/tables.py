"""Tables of settings for the documentation, from the dataclasses themselves."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from jaxgrpo import losses
from jaxgrpo.config import Config, overrides
from jaxgrpo.config.bounds import Marks, bounds_of, marks_of
from jaxgrpo.data import benchmarks, competitions
from jaxgrpo.data.arithmetic import Arithmetic
from jaxgrpo.data.gsm8k import GSM8K
from jaxgrpo.data.mixture import Mixture, Part
from jaxgrpo.data.overlap import Decontaminated
from jaxgrpo.data.table import Table
from jaxgrpo.data.translated import TranslatedGSM8K
from jaxgrpo.problems import Driven, Scheduled, Weighted
from jaxgrpo.rewards import gate, languages, layout, length, maths, repetition, rouge

ROOT = Path(__file__).parents[2]

SOURCES = (
    Arithmetic(),
    GSM8K(),
    Table(),
    Mixture({"name": Part(GSM8K())}),
    Decontaminated(GSM8K()),
    TranslatedGSM8K(),
    competitions.MATH(),
    competitions.SimpleRLZoo(),
    competitions.NuminaMath(),
    benchmarks.MATH500(),
    benchmarks.AMC23(),
    benchmarks.AIME24(),
    benchmarks.AIME25(),
    benchmarks.MinervaMath(),
    benchmarks.OlympiadBench(),
    benchmarks.MGSM(),
    benchmarks.GlobalMMLULite(),
)
"""A source of problems of each class."""

WEIGHTS = (Weighted(maths.accuracy), Scheduled(maths.accuracy), Driven(maths.accuracy))
"""Each way to weight a reward."""

REWARDS = (
    maths.Accuracy(),
    languages.Ratio(),
    languages.Threshold(),
    languages.Match(),
    length.SoftOverlong(max_tokens=512, buffer=64),
    length.Cosine(maths.accuracy, max_tokens=512),
    repetition.Repetition(),
    rouge.RougeL(),
    layout.Tags(),
    layout.Pattern(regex=""),
    gate.Gate(languages.target_word_ratio, when=maths.accuracy),
)
"""A reward of each class that has settings."""

OBJECTIVES = (
    losses.GRPO(),
    losses.DrGRPO(budget=512),
    losses.DAPO(),
    losses.GSPO(),
    losses.GSPOToken(),
    losses.RLOO(),
    losses.ReinforcePlusPlus(),
    losses.ReinforcePlusPlusBaseline(),
    losses.CISPO(),
    losses.PPO(),
    losses.MaxRL(),
    losses.DPPO(),
    losses.ScaleRL(group_size=16),
    losses.Regularised(losses.GRPO()),
    losses.Corrected(losses.GRPO()),
    losses.OffPolicyMasked(losses.GRPO(), threshold=0.5),
    losses.TrustRegionMasked(losses.GRPO(), threshold=1.0),
    losses.TopEntropy(losses.DAPO()),
    losses.EntropyTargeted(losses.GRPO()),
    losses.Distilled(losses.GRPO()),
)
"""An objective of each class."""


def settings_tables() -> str:
    """Returns every setting of a run: a table for each group, those of no group first."""
    config = Config(data=Arithmetic(), rewards={})
    settings = overrides.fields(config)
    parts = []
    top = {name: field for name, field in settings.items() if "." not in name}
    parts.append(f"## Config\n\n{_about(Config)}\n\n{_table(top, config)}")
    for group in dataclasses.fields(Config):
        node = getattr(config, group.name)
        # What these two hold differs from run to run: they have tables of their own.
        if group.name in ("data", "rewards") or not dataclasses.is_dataclass(node):
            continue
        inside = {
            name: f for name, f in settings.items() if name.startswith(f"{group.name}.")
        }
        title = f"## {group.name}\n\n{_about(type(node))}"
        parts.append(f"{title}\n\n{_table(inside, node, group.name, marks_of(group))}")
    return "\n\n".join(parts)


def _table(
    settings: dict[str, overrides.Field],
    node: object,
    prefix: str = "",
    shared: Marks | None = None,
) -> str:
    """Returns a table with a row for each setting.

    node: the dataclass whose settings they are
    prefix: of their names, which is left out to find a field of the node
    shared: marks of all of them
    """
    rows = ["| setting | default | may be | meaning |", "|---|---|---|---|"]
    for name, field in settings.items():
        # The command line's name is "batch.groups", the field's is "groups".
        short = name.removeprefix(f"{prefix}.")
        default = "required" if is_required(node, short) else f"`{_shown(field.value)}`"
        notes = _notes({**(shared or {}), **field.marks})
        meaning = _cell(". ".join([field.doc.removesuffix("."), *notes]))
        rows.append(f"| `{name}` | {default} | {_cell(_allowed(field))} | {meaning} |")
    return "\n".join(rows)


def is_required(node: object, name: str) -> bool:
    """Returns whether a field of a dataclass must be given."""
    field = getattr(node, "__dataclass_fields__", {}).get(name)
    # Not a dataclass's field: an item of a dictionary, such as a reward.
    if field is None:
        return False
    return (
        field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )


def _allowed(field: overrides.Field) -> str:
    """Returns the values that a setting may have: its type and its bounds."""
    choices = field.marks.get("one_of")
    # Where the values are named, the type says nothing more.
    if choices:
        return " or ".join(f"`{choice}`" for choice in choices)
    bounds = [
        f"{mark.replace('_', ' ')} {bound}"
        for mark, bound in bounds_of(field.marks).items()
    ]
    return ", ".join([field.expected, *bounds])


def _shown(value: object) -> str:
    """Returns a value as a config file would say it."""
    return repr(value).replace("'", '"')


def _notes(marks: Mapping[str, object]) -> list[str]:
    """Returns what the marks of a setting say besides its bounds."""
    notes = []
    if marks.get("why"):
        notes.append(f"The bound: {marks['why']}")
    if marks.get("may_change"):
        notes.append("*A resumed run may change it*")
    if marks.get("reads_policy"):
        notes.append("*Checkpoints are read by it*")
    return notes


def _cell(text: str) -> str:
    """Returns a text for a table's cell, without signs that end it or are HTML."""
    parts = text.replace("|", "\\|").split("`")
    # Within backticks "<" is itself.
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _about(cls: type) -> str:
    """Returns the first paragraph of a class's docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def class_tables(things: Iterable[object]) -> str:
    """Returns a part for each thing's class: what it is, and its settings."""
    parts = []
    for thing in things:
        cls = type(thing)
        path = f"{cls.__module__}.{cls.__qualname__}"
        part = f"### {cls.__name__}\n\n`{path}`. {_cell(_about(cls))}"
        settings = overrides.fields(thing)
        if settings:
            part += f"\n\n{_table(settings, thing)}"
        parts.append(part)
    return "\n\n".join(parts)


def shipped_configs() -> str:
    """Returns a row for each shipped config: its name, and the first line of what it says."""
    rows = ["| `--config` | what it trains |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        # Not __init__.py, which trains nothing.
        if not path.stem.startswith("_"):
            # The first line of the docstring, read as text: importing it would run it.
            first_line = text.split('"""')[1].splitlines()[0]
            rows.append(f"| `{path.stem}` | {_cell(first_line)} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_tables,
    "sources": partial(class_tables, SOURCES),
    "rewards": partial(class_tables, REWARDS),
    "weights": partial(class_tables, WEIGHTS),
    "objectives": partial(class_tables, OBJECTIVES),
    "configs": shipped_configs,
}
"""The tables that a page can have, by name."""
