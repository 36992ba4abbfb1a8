"""Packing: rows of several lengths in bins of one length, so that an update has little padding.

    bin = [prompt g][completion][completion] [prompt h][completion] ... [unused]

A bin holds groups whose prompts are there once. A group that does not fit is split between bins,
and its prompt is repeated in each. A completion is never split. The device reads bins in
device/packed_scorer.py.

Axes: B rows, T columns of a row, S columns of a bin.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxgrpo.types import NO_ENTRY, TrainBatch


@dataclass
class UnpackedGroup:
    """The rows of a group that are in no bin yet.

    prompt: tokens of its prompt
    completions: each row's tokens after the prompt, by row of the batch, the longest first
    """

    prompt: int
    completions: dict[int, int]

    def columns(self) -> int:
        """Returns the columns of a bin that all of it takes."""
        return self.prompt + sum(self.completions.values())

    def take_rows(self, room: int) -> list[int]:
        """Takes the rows that fit into `room` columns with their prompt, and returns them."""
        left = room - self.prompt
        taken = []
        for row, length in self.completions.items():
            if length <= left:
                taken.append(row)
                left -= length
        for row in taken:
            del self.completions[row]
        return taken


def pack_groups(groups: list[UnpackedGroup], columns: int) -> Iterator[list[list[int]]]:
    """Yields each bin as the rows of each group in it.

    A bin takes the largest group that fits, and again the largest; when none fits any more, it
    takes those rows of the largest that do, whose rest then counts as a group. Each row must fit
    into a bin with its prompt.

    columns: S, of a bin
    """
    size = UnpackedGroup.columns
    rest = sorted(groups, key=size)
    while rest:
        room = columns
        parts = []
        while num_fitting := bisect_right(rest, room, key=size):
            group = rest.pop(num_fitting - 1)
            room -= group.columns()
            parts.append(list(group.completions))
        if rest:
            split = rest.pop()
            rows = split.take_rows(room)
            if rows:
                parts.append(rows)
            insort(rest, split, key=size)
        yield parts


@dataclass(frozen=True)
class Packer:
    """Packs batches into bins whose number and length are fixed, so that nothing compiles anew.

    group_size: G, neighbouring rows with the same prompt
    prompt_width: W, columns of a prompt
    columns: S, of a bin; at least T
    bins_at_once: bins of a micro-batch
    """

    group_size: int
    prompt_width: int
    columns: int
    bins_at_once: int

    def num_bins(self, num_rows: int) -> int:
        """Returns the bins of so many rows: one a row at worst, in whole micro-batches."""
        return -(-num_rows // self.bins_at_once) * self.bins_at_once

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """Returns a batch of NumPy arrays with its bins."""
        return batch._replace(bins=self.bins(batch))

    def bins(self, batch: TrainBatch) -> Int[np.ndarray, "bins S"]:
        """Returns the bins of a batch of NumPy arrays; rows with an empty mask are in none."""
        num_rows = len(batch.tokens)
        bins = np.full((self.num_bins(num_rows), self.columns), NO_ENTRY, np.int32)
        groups = self._groups(batch)
        for number, parts in enumerate(pack_groups(groups, self.columns)):
            entries = [self._entries(batch, rows) for rows in parts]
            joined = np.concatenate(entries)
            bins[number, : len(joined)] = joined
        # Micro-batches are filled one after another. `MicroBatches.split` gives micro-batch m the
        # bins m, m + M, m + 2M, ...: [M, bins at once, S] -> [bins, S].
        by_micro_batch = bins.reshape(-1, self.bins_at_once, self.columns)
        return by_micro_batch.swapaxes(0, 1).reshape(-1, self.columns)

    def _groups(self, batch: TrainBatch) -> list[UnpackedGroup]:
        """Returns the groups of a batch that have a row to be read."""
        is_token = batch.segments > 0
        prompts = is_token[:, : self.prompt_width].sum(axis=1).tolist()
        lengths = is_token[:, self.prompt_width :].sum(axis=1).tolist()
        read_rows = np.flatnonzero(batch.completion_mask.any(axis=1)).tolist()
        groups: dict[int, UnpackedGroup] = {}
        # The longest first, for take_rows; the sort is stable, so that ties are always alike.
        for row in sorted(read_rows, key=lambda row: -lengths[row]):
            group = row // self.group_size
            groups.setdefault(group, UnpackedGroup(prompts[row], {}))
            groups[group].completions[row] = lengths[row]
        return list(groups.values())

    def _entries(self, batch: TrainBatch, rows: list[int]) -> Int[np.ndarray, "n"]:
        """Returns the entries of a prompt, and of the completions that follow it in a bin."""
        num_columns = batch.tokens.shape[1]
        columns = np.arange(num_columns)
        is_token = batch.segments[rows] > 0  # [rows, T]
        # The prompt is that of the first of the rows.
        is_token[1:, columns < self.prompt_width] = False
        place, column = np.nonzero(is_token)
        return np.asarray(rows)[place] * num_columns + column
