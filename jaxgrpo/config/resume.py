"""OUT/config.json: the settings a run began with, and how a later run or evaluation differs.

What a later run may change is marked beside each field: `may_change`, `reads_policy` and
`measures` (see bounds.Marks).
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxgrpo import files
from jaxgrpo.config.bounds import marked
from jaxgrpo.config.overrides import children, default_of, describe, renamed
from jaxgrpo.config.schema import Config
from jaxgrpo.config.sft_schema import AnyConfig
from jaxgrpo.errors import UserError

MOVED = {
    "jaxgrpo.config": "jaxgrpo.config.schema",
    "jaxgrpo.data.jsonl:Jsonl": "jaxgrpo.data.table:Table",
    "jaxgrpo.rewards.format": "jaxgrpo.rewards.layout",
    "jaxgrpo.rewards.language": "jaxgrpo.rewards.languages.consistency",
    "jaxgrpo.rewards.math": "jaxgrpo.rewards.maths.verifier",
}
"""Modules that were moved, and where to. A config.json names classes as "module:qualname".

A single class or function that was moved stands here as "module:qualname" itself.
"""

MAX_LISTED = 3
"""Settings that a message lists; of further ones it says how many."""


class Change(NamedTuple):
    """The values of a setting in OUT/config.json and in this run, as JSON has them."""

    then: object
    now: object


def save(config: AnyConfig, out: str) -> None:
    """Writes the config's description to OUT/config.json, whole or not at all."""
    path = files.run_folder(out) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(describe(config), indent=2, ensure_ascii=False) + "\n"
    # Half a surrogate pair is not UTF-8; with a backslash it is JSON's own way to write it.
    files.write_atomically(path, text.encode("utf-8", errors="backslashreplace"))


def check_same(config: AnyConfig, out: str) -> list[str]:
    """Checks that OUT/config.json describes a config that this run may go on with.

    Returns lines that say what the settings that did change mean for the run.

    Raises UserError if it describes a config that computes something else.
    """
    allowed = marked(type(config), "may_change")
    changes = _changes(config, out)
    refused = {
        name: change
        for name, change in changes.items()
        if not _is_within(name, allowed)
    }
    if refused:
        raise UserError(
            f"{out} holds a run with other settings: {_listed(refused)}; give another "
            "--config.out, or go back"
        )
    notes = [_rate_note(config, changes), _evaluation_note(changes)]
    return [note for note in notes if note]


def changes_evaluation(config: AnyConfig, out: str) -> bool:
    """Returns whether evaluations differ from those that OUT/config.json describes."""
    return any(_is_evaluation(name) for name in _changes(config, out))


def _is_evaluation(name: str) -> bool:
    """Returns whether a setting decides what an evaluation measures."""
    is_measured = _is_within(name, marked(Config, "measures"))
    return name.startswith("evaluation.") and is_measured


def _evaluation_note(changes: dict[str, Change]) -> str:
    """Returns a line that says what other evaluations mean; "" where they are the same."""
    changed = {name: change for name, change in changes.items() if _is_evaluation(name)}
    if not changed:
        return ""
    return f"{_listed(changed)}: the policy that the run began with is evaluated again"


def _rate_note(config: AnyConfig, changes: dict[str, Change]) -> str:
    """Returns a line that says what other settings mean for the learning rate.

    "" where they mean nothing for it.
    """
    names = {"optimizer.learning_rate"}
    # A schedule that ends at the last step depends on which step that is.
    if config.optimizer.schedule != "constant":
        names |= {"steps", "epochs"}
    changed = {name: change for name, change in changes.items() if name in names}
    if not changed:
        return ""
    return (
        f"{_listed(changed)}: from here on the learning rate is that of a run begun so, warm-up "
        f"over {config.optimizer.warmup_steps} steps, then {_schedule_words(config)}"
    )


def _schedule_words(config: AnyConfig) -> str:
    """Returns how the learning rate goes on after the warm-up."""
    optimizer = config.optimizer
    if optimizer.schedule == "constant":
        return f"constant at {optimizer.learning_rate:g}"
    # Without steps, as many as the epochs take.
    last = f"step {config.steps}" if config.steps else "the last step"
    return f"{optimizer.schedule} from {optimizer.learning_rate:g} to 0 at {last}"


def compare(config: Config, out: str) -> str | None:
    """Returns a line that says in which settings this evaluation differs from the run in OUT.

    None if it differs in none that matters.

    Raises UserError if OUT/config.json is there and its policy is read by other settings than
    these.
    """
    changes = _changes(config, out)
    _check_policy(changes, out, "--config.out")
    measured = _only(changes, "measures")
    if not measured:
        return None
    return f"measured with other settings than the run in {out}: {_listed(measured)}"


JUDGES = {"data", "rewards", "solved_by", "evaluation.problems", "model"}
"""Settings that an evaluation depends on, but not what the policy writes to a given prompt."""


def text_settings(config: Config) -> dict[str, object]:
    """Returns the settings that a policy's completions of a held-out prompt depend on, by name."""
    names = marked(Config, "measures") | marked(Config, "reads_policy")
    return {
        name: value
        for name, value in flat(describe(config)).items()
        if _is_within(name, names) and not _is_within(name, JUDGES)
    }


def check_named_out(out: str, argv: Iterable[str]) -> None:
    """Raises UserError if a command line names a folder to evaluate that is not there.

    argv: the command line, which need not name one
    """
    is_named = any(argument.partition("=")[0] == "--config.out" for argument in argv)
    if not is_named or files.is_folder(out):
        return
    folder = Path(out)
    runs = {
        path.parent.name: path.parent for path in folder.parent.glob("*/config.json")
    }
    near = difflib.get_close_matches(folder.name, runs, n=1)
    hint = f" (did you mean {runs[near[0]]}?)" if near else ""
    raise UserError(
        f"--config.out={out}: there is no such folder{hint}; to evaluate the model itself, and "
        "write there what it is worth, make the folder first"
    )


def check_start(config: Config) -> None:
    """Raises UserError if init_from is no run, or one whose policy is read by other settings."""
    folder = config.init_from
    if not files.fetched_file(folder, "config.json").exists():
        raise UserError(
            f"init_from is {folder!r}, which holds no run (no config.json): give the --config.out "
            "of a run"
        )
    _check_policy(_changes(config, folder), folder, "--config.init_from")


def _check_policy(changes: dict[str, Change], out: str, flag: str) -> None:
    """Raises UserError for changes of settings that the policy of a run is read by.

    flag: that names the run
    """
    policy = _only(changes, "reads_policy")
    if policy:
        raise UserError(
            f"{out} holds a run whose policy has other settings: {_listed(policy)}; give another "
            f"{flag}, or go back"
        )


def _only(changes: dict[str, Change], mark: str) -> dict[str, Change]:
    """Returns the changes of settings that have a mark, or are in a group that has."""
    names = marked(Config, mark)
    return {name: change for name, change in changes.items() if _is_within(name, names)}


def _is_within(name: str, names: set[str]) -> bool:
    """Returns whether a setting is one of these, or in a group that is."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def _changes(config: AnyConfig, out: str) -> dict[str, Change]:
    """Returns the settings that differ from OUT/config.json, {} without a file.

    A setting that the file lacks, since the run began before there was one, had its default.
    """
    now = flat(describe(config))
    written = _read(files.fetched_file(out, "config.json"), now)
    if written is None:
        return {}
    # Defaults of what is there now alone: a reward that is new has none.
    begun = {name: value for name, value in defaults(config).items() if name in now}
    begun |= written
    # In the order of this run's settings, then those that it has not.
    names = [*now, *(name for name in begun if name not in now)]
    changes = {name: Change(begun.get(name), now.get(name)) for name in names}
    return {
        name: change for name, change in changes.items() if change.then != change.now
    }


def _read(path: Path, now: dict[str, object]) -> dict[str, object] | None:
    """Returns a config.json's settings by dotted name, under their present names; None without one.

    now: the settings of this run
    """
    if not path.exists():
        return None
    try:
        written = flat(dict(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        hint = "give another --config.out, or remove it if you know that the settings are the same"
        raise UserError(f"{path} cannot be read ({error}); {hint}") from error
    return {_present_name(name, now): _moved(value) for name, value in written.items()}


def _present_name(name: str, now: dict[str, object]) -> str:
    """Returns the name that a setting of a config.json has today."""
    new = renamed(name)
    # A class of somebody's own may have a setting of the old name.
    return new if new in now and name not in now else name


def _moved(value: object) -> object:
    """Returns the present "module:qualname" of what was moved; any other value as it is."""
    if not isinstance(value, str) or ":" not in value:
        return value
    if value in MOVED:
        return MOVED[value]
    module, _, name = value.partition(":")
    return f"{MOVED.get(module, module)}:{name}"


def _listed(changes: dict[str, Change]) -> str:
    """Returns changes as a message says them: "seed (then 0, now 1) and 2 more"."""
    listed = [
        f"{name} (then {change.then!r}, now {change.now!r})"
        for name, change in changes.items()
    ]
    more = len(listed) - MAX_LISTED
    return ", ".join(listed[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def flat(description: object, prefix: str = "") -> dict[str, object]:
    """Returns a description's leaves by dotted name. Lists of plain values are leaves."""
    # Items that have settings of their own are named by their position.
    if isinstance(description, list) and any(
        isinstance(item, dict | list) for item in description
    ):
        description = {str(index): item for index, item in enumerate(description)}
    if not isinstance(description, dict):
        return {prefix: description}
    leaves: dict[str, object] = {}
    for name, value in description.items():
        leaves |= flat(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def defaults(node: object) -> dict[str, object]:
    """Returns the defaults of a tree's settings as `flat(describe(...))` has them.

    Settings that must be given are left out.
    """
    values: dict[str, object] = {}
    for name, (value, _) in children(node).items():
        default = _default(node, name)
        if default is not dataclasses.MISSING:
            values |= flat(describe(default), name)
        # Of a group that is there, the defaults of its own class.
        values |= {f"{name}.{below}": inner for below, inner in defaults(value).items()}
    return values


def _default(node: object, name: str) -> object:
    """Returns the default of a dataclass's field; dataclasses.MISSING where there is none."""
    field = getattr(node, "__dataclass_fields__", {}).get(name)
    return dataclasses.MISSING if field is None else default_of(field)
