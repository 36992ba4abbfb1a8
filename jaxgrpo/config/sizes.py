"""Sizes of a step that follow from a config, as numbers and in words."""

from jaxgrpo.config.schema import Batch, Config


def trained_group_size(config: Config) -> int:
    """Returns the completions of a prompt that an update has places for."""
    return config.filter.train_rows or config.batch.group_size


def num_rows(config: Config) -> int:
    """Returns the completions of a batch that its updates have places for."""
    return config.batch.groups * trained_group_size(config)


def rows_per_update(config: Config) -> int:
    """Returns the completions that an optimizer step learns from."""
    return num_rows(config) // config.batch.updates


def micro_batch_size(config: Config) -> int:
    """Returns the rows of a micro-batch; with packing its bins, 0 for one a device."""
    batch = config.batch
    if batch.micro_batch or batch.pack:
        return batch.micro_batch
    # Not all rows of a batch: it is scored in the shapes of an update.
    return rows_per_update(config)


def batch_line(config: Config) -> str:
    """Returns the sizes of a step in words.

    "32 prompts x 8 = 256 rows a step, 4 updates of 64 rows, micro-batches of 16"
    """
    batch = config.batch
    rows = rows_per_update(config)
    parts = [
        f"{batch.groups} prompts x {_group_words(config)} = {num_rows(config)} rows a step",
        f"{batch.updates} update{'s' * (batch.updates > 1)} of {rows} rows",
        _micro_batch_words(batch, rows),
    ]
    if batch.epochs > 1:
        parts[1] = f"{batch.epochs} epochs of {parts[1]}"
    return ", ".join(parts)


def _group_words(config: Config) -> str:
    """Returns "8", or "8 of 32" where so many of a group are trained on."""
    sampled = config.batch.group_size
    trained = trained_group_size(config)
    return str(sampled) if trained == sampled else f"{trained} of {sampled}"


def off_policy_note(config: Config) -> str:
    """Returns a line for a run that trains on tokens of other policies without a correction."""
    kinds = []
    age = max_trained_age(config)
    if age:
        kinds.append(f"up to {age} step{'s' * (age > 1)} old")
    if config.sampling.weights == "int8":
        kinds.append("drawn by int8 matrices")
    if not kinds or config.batch.old_logprobs == "trainer":
        return ""
    return (
        f"tokens {' and '.join(kinds)} are trained on, and what the policy differs by counts "
        "against the clip range; batch.old_logprobs='trainer' and Corrected(...) around the "
        "objective correct for it apart"
    )


def sampler_precision(config: Config) -> str:
    """Returns what the matrices are that tokens are drawn with: "int8", or the config's dtype."""
    weights = config.sampling.weights
    return config.dtype if weights == "dtype" else weights


def max_trained_age(config: Config) -> int:
    """Returns the greatest age of a token that counts in the loss, in steps."""
    if not config.sampling.keep_in_flight:
        return 0
    if config.batch.mask_older is None:
        return config.sampling.max_age
    return min(config.batch.mask_older, config.sampling.max_age)


def _micro_batch_words(batch: Batch, rows: int) -> str:
    """Returns "micro-batches of 16", or of so many bins."""
    if not batch.pack:
        return f"micro-batches of {batch.micro_batch or rows}"
    number = f"{batch.micro_batch} bins" if batch.micro_batch else "a bin a device"
    return f"micro-batches of {number}, {batch.pack} columns each"


def num_slots(config: Config) -> int:
    """Returns the rows that are sampled side by side."""
    batch = config.batch
    return config.sampling.slots or 2 * batch.groups * batch.group_size


def max_prompts(config: Config) -> int:
    """Returns the prompts that a step may ask, at most."""
    if config.filter.rule == "off" or not config.filter.refill:
        return config.batch.groups
    return int(config.filter.max_prompts * config.batch.groups)
