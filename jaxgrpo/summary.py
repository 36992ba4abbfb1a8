"""Evaluations as people read them: tables, what training did, and the files that hold it."""

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxgrpo.config import Config
from jaxgrpo.console import WIDTH, format_table
from jaxgrpo.distributed.processes import gather_json, print0
from jaxgrpo.errors import UserError
from jaxgrpo.files import fetched_file, write_atomically, write_json

Report = dict[str, Any]
"""An evaluation as JSON values: see `evaluate.evaluate`."""

TABLE_METRICS = {
    "accuracy": "accuracy",
    "target_word_ratio": "target words",
    "english_word_ratio": "English words",
}
"""A report's metrics by language, and what the tables call them."""

NO_BREAK = "\N{NO-BREAK SPACE}"
"""A space at which no line is wrapped."""


def tables(before: Report, after: Report | None = None) -> str:
    """Returns an evaluation as two tables, by language and by level.

    With a second one, a value is "before -> after".
    """
    reports = [before] if after is None else [before, after]
    by_language = _table("language", list(TABLE_METRICS), reports)
    by_level = _table("level", ["accuracy"], reports)
    return f"{by_language}\n\n{by_level}"


def _table(key: str, names: list[str], reports: list[Report]) -> str:
    """Returns a table with a row for each language or level, and one for all problems."""
    rows: list[dict[str, object]] = []
    for value in reports[0][f"by_{key}"]:
        parts = [report[f"by_{key}"].get(value, {}) for report in reports]
        rows.append(
            {key: value}
            | {
                TABLE_METRICS[name]: before_and_after(
                    [part.get(name) for part in parts]
                )
                for name in names
            }
        )
    # The last row is of all problems, whose metrics have longer names in a report.
    total: dict[str, object] = {key: "all"}
    for name in names:
        group = "reward" if name == "accuracy" else "language"
        values = [report[f"{group}/{name}"] for report in reports]
        total[TABLE_METRICS[name]] = before_and_after(values)
    rows.append(total)
    return format_table(rows, list(total))


def scores_table(report: Report) -> str:
    """Returns an evaluation's scores with their intervals, and a line on its completions."""
    found = report["scores"]
    rows = [
        {
            "score": name.replace("_at_", "@"),
            "mean": found[name],
            "low": found[f"{name}_low"],
            "high": found[f"{name}_high"],
        }
        for name in found
        if f"{name}_low" in found
    ]
    table = format_table(rows, list(rows[0]))
    kept = {"language": "all", **_kept_language(found)}
    by_language = [
        {"language": name, **_kept_language(part)}
        for name, part in report["by_language"].items()
    ]
    languages = format_table([*by_language, kept], list(kept))
    about = (
        "low, high: a 95 % interval over problems\n"
        f"{found['tokens']:.1f} tokens a completion, {found['truncated']:.1%} cut off, "
        f"{found['missing']:.1%} of verdicts missing"
    )
    return f"{table}\n\n{languages}\n\n{about}"


def score_line(step: int, scores: Mapping[str, float]) -> str:
    """Returns `step 10 evaluated: accuracy 0.412 (0.371 to 0.455)  pass@4 0.612`.

    In lines of 80 columns.
    """
    parts = []
    for name, value in scores.items():
        if f"{name}_low" in scores and name != "pass_at_1":
            parts.append(f"{name.replace('_at_', '@')} {value:.3f}")
    if "accuracy_low" in scores:
        parts[0] += f" ({scores['accuracy_low']:.3f} to {scores['accuracy_high']:.3f})"
    # A line ends between two scores, and not between a score's name and its value.
    whole = [part.replace(" ", NO_BREAK) for part in parts]
    line = f"step {step} evaluated: {'  '.join(whole)}"
    wrapped = textwrap.fill(line, WIDTH, subsequent_indent="    ")
    return wrapped.replace(NO_BREAK, " ")


def _kept_language(part: Report) -> Report:
    """Returns the columns about completions that kept the language."""
    return {
        "kept it": part["in_language"],
        "accuracy of those": part["accuracy_in_language"],
    }


def write_csv(path: Path, reports: Sequence[Report]) -> None:
    """Writes the scores of evaluations, a row for all problems, each language and each level."""
    rows = []
    for report in reports:
        about = {name: report.get(name) for name in ("policy", "step", "set")}
        parts = {("all", ""): report["scores"]}
        parts |= {("language", name): x for name, x in report["by_language"].items()}
        parts |= {("level", name): x for name, x in report["by_level"].items()}
        for (part, value), found in parts.items():
            rows.append({**about, "part": part, "value": value, **found})
    # Evaluations have the same samples, and so the same scores.
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode("utf-8"))


def before_and_after(values: list[float | None]) -> object:
    """Returns the one value, or two as "0.531 -> 0.719"."""
    if len(values) == 1:
        return values[0]
    return " -> ".join("-" if value is None else f"{value:.3f}" for value in values)


def summarise(before: Report, after: Report, **others: object) -> Report:
    """Returns the content of OUT/summary.json: what training did to held-out accuracy and language.

    It holds nulls and {} without an evaluation.

    others: further values at the top level
    """
    return {
        "accuracy_before": before.get("reward/accuracy"),
        "accuracy_after": after.get("reward/accuracy"),
        **others,
        "by_language": _compare(before, after, "by_language"),
        "by_level": _compare(before, after, "by_level"),
        "before": before,
        "after": after,
    }


def _compare(before: Report, after: Report, part: str) -> Report:
    """Returns the metrics of each language or level before and after."""
    compared: Report = {}
    for name in before.get(part, {}):
        compared[name] = {
            f"{metric}_{when}": report[part][name][metric]
            for metric in TABLE_METRICS
            for when, report in (("before", before), ("after", after))
        }
    return compared


def headline(summary: Report) -> str:
    """Returns `40 steps, accuracy 0.312 -> 0.455`."""
    steps = summary["steps"]
    text = f"{steps} step{'' if steps == 1 else 's'}"
    before = summary["accuracy_before"]
    after = summary["accuracy_after"]
    if before is None or after is None:
        return text
    return f"{text}, accuracy {before:.3f} -> {after:.3f}"


def make_once(path: Path, make: Callable[[], Report]) -> Report:
    """Returns what `make` returned the first time; it is read from the file ever after."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    first_process_saved = gather_json(saved)[0]
    if first_process_saved:
        return first_process_saved
    value = make()
    if jax.process_index() == 0 and value:
        write_json(path, value)
    return value


def check_shared(out: str) -> None:
    """Raises UserError in all processes if one of them does not see what process 0 has written."""
    gather_json(None)
    sees_config = gather_json(fetched_file(out, "config.json").exists())
    blind = [process for process, sees in enumerate(sees_config) if not sees]
    if blind:
        raise UserError(
            f"{out}: process 0 writes there, and {len(blind)} of {jax.process_count()} processes, "
            f"the first of them {blind[0]}, do not see it: give an --config.out that all of them "
            "share"
        )


def is_finished(config: Config) -> bool:
    """Returns whether OUT holds the summary of all the steps that are wanted; then says so."""
    path = fetched_file(config.out, "summary.json")
    saved = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": -1}
    )
    summary = gather_json(saved)[0]
    if summary["steps"] < config.steps:
        return False
    if config.quiet:
        return True
    print0(
        f"{config.out} is finished: {headline(summary)}; to go on raise --config.steps, to begin "
        "anew change --config.out"
    )
    return True
