"""Puts runs into one file of HTML, which needs nothing besides: no network, no server.

All that comes from runs is in one block of JSON, in which no "<" is left, and page.js shows it as
text: whatever a model writes, nothing of it is read as HTML.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import NamedTuple

from jaxgrpo.errors import UserError
from tools.report import curves, pass_rates
from tools.report.rollouts import (
    SavedGroup,
    extraction_methods,
    mark_foreign,
    read_answer,
    read_groups,
)
from tools.report.runs import SavedRun, differences, group_runs, read_runs

HERE = Path(__file__).parent

MAX_BYTES = 5_000_000
"""A page is smaller than this: rollouts that would make it greater are left out, evenly."""

FIELDS_BYTES = 250
"""Bytes that the fields of a completion take besides its text, about."""

HELD_OUT = {
    "reward/accuracy": "accuracy",
    "language/target_word_ratio": "words in the target language",
    "completion/tokens": "tokens of a completion",
}
"""What the table of held-out results shows: metric -> title."""

WRITTEN = ("reward", "rewards", "advantage", "tokens", "finished", "sample")
"""What the page shows of a completion as rollouts.jsonl has it."""


class Page(NamedTuple):
    """A page, and how many of the groups that were written it shows.

    html: the whole file, encoded
    """

    html: bytes
    shown: int
    written: int


class GroupHead(NamedTuple):
    """What is kept of every group that was written, however many there are.

    size: bytes that it takes on a page, about
    """

    step: int
    solved: int
    judged: int
    size: int


def make_page(folders: Sequence[Path], max_bytes: int = MAX_BYTES) -> Page:
    """Returns the page about the runs in some folders.

    Raises UserError for a folder without a run, and where the charts' library is not installed.
    """
    # 1. What is there whatever was written.
    runs = read_runs(folders)
    groups = group_runs(runs)
    heads = [[_head(group) for group in _written_groups(run)] for run in runs]
    num_written = sum(map(len, heads))
    labels = [group.label for group in groups]
    sections = [*curves.sections(groups), *_histograms(runs, heads)]
    content = {
        "title": ", ".join(labels),
        "runs": [run.name for run in runs],
        "colours": curves.colours(labels),
        "sections": [{"title": title, "charts": charts} for title, charts in sections],
        "tables": _tables(runs),
        "written": num_written,
    }
    library = charts_library()
    bare = len(_html(content | {"groups": []}, library))
    if bare >= max_bytes:
        raise UserError(
            f"the curves of {len(runs)} runs take {bare:,} bytes, and a page has {max_bytes:,}: "
            "give fewer runs"
        )

    # 2. As many groups as there is room for: every one of a run, or every second, third, ...
    total = sum(head.size for run_heads in heads for head in run_heads)
    every = max(1, -(-total // (max_bytes - bare)))
    longest = max(map(len, heads))
    while True:
        shown = [
            _shown_group(place, run, group)
            for place, run in enumerate(runs)
            for index, group in enumerate(_written_groups(run))
            # Past the longest there is not even room for one group of each run.
            if index % every == 0 and every <= longest
        ]
        html = _html(content | {"groups": shown}, library)
        if len(html) < max_bytes:
            return Page(html, len(shown), num_written)
        every += 1


def _written_groups(run: SavedRun) -> Iterator[SavedGroup]:
    """Yields the groups that a run wrote down; none where it wrote none."""
    if (run.out / "rollouts.jsonl").exists():
        yield from read_groups(run.out)


def _head(group: SavedGroup) -> GroupHead:
    problem = group.problem
    texts = [
        *(message["content"] for message in group.context),
        problem["prompt"],
        *(record["completion"] for record in group.completions),
    ]
    size = sum(len(text.encode("utf-8", "replace")) + FIELDS_BYTES for text in texts)
    return GroupHead(problem["step"], problem["solved"], problem["judged"], size)


def _histograms(
    runs: Sequence[SavedRun], heads: Sequence[Sequence[GroupHead]]
) -> Iterator[tuple[str, list[curves.Chart]]]:
    """Yields the section of pass rates, if any run has written groups."""
    charts = [
        pass_rates.histogram(run.name, run_heads)
        for run, run_heads in zip(runs, heads, strict=True)
        if any(head.judged for head in run_heads)
    ]
    if charts:
        yield "Pass rates of the groups that were written", charts


def _tables(runs: Sequence[SavedRun]) -> list[dict]:
    """Returns the tables of what runs differ in, and of their held-out results."""
    tables = []
    names = [run.name for run in runs]
    if len(runs) > 1:
        rows = [
            [name, *("-" if value is None else _shown(value) for value in values)]
            for name, values in differences(runs).items()
        ]
        tables.append(
            {
                "title": "Settings in which the runs differ",
                "columns": ["setting", *names],
                "rows": rows,
            }
        )
    finished = [run for run in runs if run.summary.get("after")]
    if finished:
        rows = [
            [run.name, *(_before_and_after(run, metric) for metric in HELD_OUT)]
            for run in finished
        ]
        tables.append(
            {
                "title": "Held-out results, before and after training",
                "columns": ["run", *HELD_OUT.values()],
                "rows": rows,
            }
        )
    return tables


def _before_and_after(run: SavedRun, metric: str) -> str:
    """Returns a held-out result before and after training, "-" where there is none."""
    values = [run.summary[when].get(metric, "-") for when in ("before", "after")]
    return " → ".join(map(_shown, values))


def _shown(value: object) -> str:
    """Returns a setting or a result as text."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown_group(place: int, run: SavedRun, group: SavedGroup) -> dict:
    """Returns a group as JSON values, its texts in pieces: see `mark_foreign`."""
    problem = group.problem
    methods = extraction_methods(run.settings)
    completions = [
        {name: record[name] for name in WRITTEN if name in record}
        | {
            "pieces": mark_foreign(record["completion"], problem["language"]),
            "read": read_answer(record["completion"], methods),
        }
        for record in group.completions
    ]
    return {
        "run": place,
        "step": problem["step"],
        "id": problem["id"],
        "language": problem["language"],
        "level": problem["level"],
        "answer": problem["answer"],
        "kept": problem["kept"],
        "solved": problem["solved"],
        "judged": problem["judged"],
        "context": [
            {
                "role": message["role"],
                "pieces": mark_foreign(message["content"], problem["language"]),
            }
            for message in group.context
        ],
        "prompt": mark_foreign(problem["prompt"], problem["language"]),
        "completions": completions,
    }


def _html(content: Mapping, library: str) -> bytes:
    """Returns the page of its contents."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    parts = {
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "library": library,
        # Without a "<" there is no end of the script, and no comment, in what a model wrote.
        "content": text.replace("<", "\\u003c"),
    }
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    # Half a surrogate pair is not UTF-8; with a backslash it is JSON's own way to write it.
    return template.substitute(parts).encode("utf-8", errors="backslashreplace")


@cache
def charts_library() -> str:
    """Returns Vega, Vega-Lite and vega-embed as one script, which a package holds: 0.9 MB."""
    try:
        import vl_convert
    except ImportError as error:
        raise UserError(
            "the page's charts need vl-convert-python: pip install 'jaxgrpo[report]'"
        ) from error
    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return library
