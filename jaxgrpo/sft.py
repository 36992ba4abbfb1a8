"""The cold start: supervised fine-tuning on prompts with written-out completions.

Examples are packed, so that nothing is padding. The update is the trainer's own, with the objective
`Supervised` in GRPO's place.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxgrpo.distributed.mesh import to_device
from jaxgrpo.losses import Supervised
from jaxgrpo.programs import Programs
from jaxgrpo.types import TrainBatch, TrainState


class Example(NamedTuple):
    """Token ids of a prompt, which is read, and of its completion, which is learned.

    The end token is the completion's last.
    """

    prompt: list[int]
    completion: list[int]


def pack(
    examples: Iterable[Example], rows: int, width: int, pad_id: int
) -> Iterator[TrainBatch]:
    """Yields batches [rows, width] of NumPy arrays into which examples are packed whole.

    Each example is a segment of its own. It goes into the first row that has room; when none has,
    the batch goes out and a new one begins, so that order is kept.

    Raises ValueError for an example longer than the width, or with no prompt to predict its
    completion's first token from.
    """
    batch = _empty_batch(rows, width, pad_id)
    lengths = [0] * rows
    segments = [0] * rows
    for example in examples:
        ids = example.prompt + example.completion
        if not example.prompt:
            raise ValueError(
                f"an example of {len(ids)} tokens has no prompt, which is what its first token is "
                "predicted from"
            )
        if len(ids) > width:
            raise ValueError(
                f"an example of {len(ids)} tokens does not fit into rows of {width}"
            )
        # First fit: no search for a better one, which would change the order.
        row = next(
            (row for row in range(rows) if lengths[row] + len(ids) <= width), None
        )
        if row is None:
            yield batch
            batch = _empty_batch(rows, width, pad_id)
            lengths = [0] * rows
            segments = [0] * rows
            row = 0
        begin = lengths[row]
        end = begin + len(ids)
        # The prompt is read and not learned: its tokens are not in the completion mask.
        segments[row] += 1
        batch.tokens[row, begin:end] = ids
        batch.segments[row, begin:end] = segments[row]
        batch.completion_mask[row, begin + len(example.prompt) : end] = True
        lengths[row] = end
    if any(lengths):
        yield batch


def train(
    programs: Programs, state: TrainState, batches: Iterable[TrainBatch]
) -> Iterator[tuple[TrainState, dict]]:
    """Makes one update for each batch; yields the new state and its metrics.

    The metrics are device scalars: fetching them waits.

    Raises ValueError for programs that would not score a completion left of a prompt width.
    """
    if programs.shared_prompt_width:
        raise ValueError(
            "the programs read one prompt for a group's rows, in the first "
            f"{programs.shared_prompt_width} columns, which they do not score, and packed examples "
            "stand anywhere: compile them with UpdateSpec(prompt_width=None)"
        )
    for batch in batches:
        placed = to_device(batch, programs.row_sharding)
        state, metrics = programs.update(state, None, placed, Supervised(), 1.0)
        yield state, metrics


def _empty_batch(rows: int, width: int, pad_id: int) -> TrainBatch:
    shape = (rows, width)
    return TrainBatch(
        tokens=np.full(shape, pad_id, np.int32),
        segments=np.zeros(shape, np.int32),
        completion_mask=np.zeros(shape, bool),
        rewards=np.zeros(rows, np.float32),
        sampler_logprobs=np.zeros(shape, np.float32),
    )
