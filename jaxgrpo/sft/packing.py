"""Packs examples into the rows of batches, so that hardly anything is padding."""

from collections.abc import Iterable, Iterator

import numpy as np

from jaxgrpo.data.examples import Example
from jaxgrpo.types import TrainBatch


def pack(
    examples: Iterable[Example], rows: int, width: int, pad_id: int
) -> Iterator[TrainBatch]:
    """Yields batches [rows, width] of NumPy arrays into which examples are packed whole.

    Each example is a segment of its own, which attends to itself alone. It goes into the first row
    that has room; when none has, the batch goes out and a new one begins, so that order is kept.

    Raises ValueError for an example longer than the width, or with no prompt to predict its
    completion's first token from.
    """
    batch = _empty_batch(rows, width, pad_id)
    lengths = [0] * rows
    segments = [0] * rows
    for example in examples:
        ids = example.ids
        if not example.prompt:
            raise ValueError(
                f"an example of {len(ids)} tokens has no prompt, which is what its first token is "
                "predicted from"
            )
        if len(ids) > width:
            raise ValueError(
                f"an example of {len(ids)} tokens does not fit into rows of {width}"
            )
        row = _first_with_room(lengths, len(ids), width)
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


def count_batches(lengths: Iterable[int], rows: int, width: int) -> int:
    """Returns how many batches `pack` yields for examples of these lengths."""
    batches = 0
    filled: list[int] = []
    for length in lengths:
        row = _first_with_room(filled, length, width)
        if row is None:
            batches += 1
            filled = [0] * rows
            row = 0
        filled[row] += length
    return batches


def count_examples(batch: TrainBatch) -> int:
    """Returns how many examples a batch holds."""
    return int(batch.segments.max(axis=1).sum())


def _first_with_room(filled: list[int], length: int, width: int) -> int | None:
    """Returns the first row that has room, None if none has.

    There is no search for a better one, which would change the order.

    filled: tokens in each row
    """
    rows = (row for row, tokens in enumerate(filled) if tokens + length <= width)
    return next(rows, None)


def _empty_batch(rows: int, width: int, pad_id: int) -> TrainBatch:
    shape = (rows, width)
    return TrainBatch(
        tokens=np.full(shape, pad_id, np.int32),
        segments=np.zeros(shape, np.int32),
        completion_mask=np.zeros(shape, bool),
        rewards=np.zeros(rows, np.float32),
        sampler_logprobs=np.zeros(shape, np.float32),
    )
