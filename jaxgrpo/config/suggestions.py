"""Names of settings near to one that there is not."""

import difflib
from collections.abc import Collection

SYNONYMS = {
    "batch_size": ("batch.groups", "batch.micro_batch", "packing.rows"),
    "beta": ("objective.kl",),
    "epsilon": ("objective.clip_low", "objective.clip_high"),
    "kl_coef": ("objective.kl",),
    "loss_type": ("objective",),
    "lr": ("optimizer.learning_rate",),
    "max_completion_length": ("sampling.max_new_tokens",),
    "max_length": ("packing.width",),
    "max_prompt_length": ("sampling.prompt_width",),
    "max_steps": ("steps",),
    "model_name_or_path": ("model",),
    "num_generations": ("batch.group_size",),
    "num_train_epochs": ("epochs",),
    "output_dir": ("out",),
}
"""Settings by the last part of other names for them: habit's, TRL's, verl's."""

MAX_SUGGESTED = 3
"""Names that a message suggests, at most."""


def suggest(name: str, known: Collection[str]) -> list[str]:
    """Returns the settings that a mistyped or foreign name may mean, the likeliest first.

    known: dotted names of settings
    """
    last = name.rpartition(".")[2]
    # An objective is no setting, and can be set by its name.
    has_objective = any(other.startswith("objective.") for other in known)
    settable = {*known, "objective"} if has_objective else known
    synonyms = [other for other in SYNONYMS.get(last, ()) if other in settable]
    # A name with a mistake in it, and one without its group.
    close = difflib.get_close_matches(name, known, n=MAX_SUGGESTED, cutoff=0.7)
    same_end = [other for other in known if other.rpartition(".")[2] == last]
    return list(dict.fromkeys(synonyms + close + same_end))[:MAX_SUGGESTED]


def flag_near(name: str, known: Collection[str]) -> str:
    """Returns the flag that an argument such as `lr=3e-4` may mean: "" if nothing is near.

    known: dotted names of settings
    """
    key, equals, value = name.partition("=")
    near = [key] if key in known else suggest(key, known)
    return f"--config.{near[0]}{equals}{value}" if near else ""
