"""Reads runs: settings, metrics, held-out results; and groups those that differ only in a seed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo import metrics
from jaxgrpo.config import flat
from jaxgrpo.errors import UserError

Settings = Mapping[str, object]
Record = Mapping[str, int | float | None]


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder has it.

    name: a short one, unlike that of any other run on the page
    out: the folder
    settings: by dotted name, as OUT/config.json has them
    records: the lines of OUT/metrics.jsonl, one a step
    summary: OUT/summary.json; {} for a run that has not ended
    """

    name: str
    out: Path
    settings: Settings
    records: Sequence[Record]
    summary: Mapping[str, Mapping]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but their seeds, which are drawn as one."""

    label: str
    runs: Sequence[SavedRun]


def read_runs(folders: Sequence[Path]) -> list[SavedRun]:
    """Returns the runs in folders. Raises UserError for a folder that holds none."""
    names = _short_names(folders)
    return [_read_run(out, name) for out, name in zip(folders, names, strict=True)]


def _read_run(out: Path, name: str) -> SavedRun:
    records = metrics.read(out)
    if not records:
        raise UserError(
            f"{out} holds no steps (metrics.jsonl): give the --config.out of a training run"
        )
    return SavedRun(
        name=name,
        out=out,
        settings=flat(read_json(out / "config.json")),
        records=records,
        summary=read_json(out / "summary.json"),
    )


def read_json(path: Path) -> dict:
    """Returns an object of JSON, {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no run's ({error})") from error


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Returns the last parts of the folders' paths, as many of them as tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("a folder is given twice: give each run once")


def group_runs(runs: Sequence[SavedRun]) -> list[RunGroup]:
    """Returns the runs in groups that differ in nothing but seeds and where they were made."""
    groups: dict[str, list[SavedRun]] = {}
    for run in runs:
        same = {
            name: value
            for name, value in run.settings.items()
            if not _is_only_a_seed(name)
        }
        # A run without a config.json is like no other.
        key = json.dumps(same, sort_keys=True) if same else run.name
        groups.setdefault(key, []).append(run)
    labels = _labels(list(groups.values()))
    return [
        RunGroup(label, members)
        for label, members in zip(labels, groups.values(), strict=True)
    ]


def _is_only_a_seed(name: str) -> bool:
    """Returns whether a setting is a seed, or says where the run was made."""
    first, last = name.split(".")[0], name.split(".")[-1]
    return last == "seed" or name == "out" or first == "distributed"


def _labels(groups: Sequence[Sequence[SavedRun]]) -> list[str]:
    """Returns a label for each group: its run's name, or what its runs' names have in common."""
    labels: list[str] = []
    for runs in groups:
        label = runs[0].name
        if len(runs) > 1:
            # Of the letters: "grpo-0" and "grpo-1" have "grpo" in common.
            names = [run.name for run in runs]
            common = os.path.commonprefix(names).rstrip("-_. /")  # noqa: RUF071
            label = f"{common or label} ({len(runs)} seeds)"
        # Two groups may have the same beginning.
        labels.append(label if label not in labels else f"{label} [{len(labels) + 1}]")
    return labels


def differences(runs: Sequence[SavedRun]) -> dict[str, list[object]]:
    """Returns the settings in which runs differ: name -> each run's value, None where it has none.

    Where a run is written is not among them.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {
        name: row
        for name, row in values.items()
        if name != "out" and any(value != row[0] for value in row)
    }
