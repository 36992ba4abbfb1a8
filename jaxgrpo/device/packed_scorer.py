"""Scoring of bins, into which rollout/packing.py has packed the rows of a batch.

Axes: B rows, T columns, W prompt width, R bins of a micro-batch, S columns of a bin, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrpo.device.logprobs import chosen_logprobs
from jaxgrpo.device.micro_batches import MicroBatches, num_filled, take_entries
from jaxgrpo.device.scorer import Scorer, Scores
from jaxgrpo.models import transformer
from jaxgrpo.models.attention import (
    AttentionFn,
    sequence_positions,
    shared_prompt_mask,
)
from jaxgrpo.models.products import take_columns
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.types import Params, TrainBatch

MakeMaskedAttention = Callable[[Array, Array], AttentionFn | None]
"""(mask [R S S], positions [R S]) -> a kernel; None: attention.attend."""


def default_masked_attention(mask: Array, positions: Array) -> AttentionFn | None:
    """Returns no kernel, so that `attend` is used."""
    return None


class BinColumns(NamedTuple):
    """The columns of bins."""

    groups: Int[Array, "R S"]
    """The group that a column belongs to, from 1; 0 holds no token."""
    completions: Int[Array, "R S"]
    """The row, from 1, of a column of a completion; 0 elsewhere."""
    deciding: Int[Array, "R S"]
    """The column whose hidden state decides a column's token: the one before it, or the prompt's
    last."""


@dataclass(frozen=True)
class PackedScorer(Scorer):
    """Reads bins, in which completions stand after the prompt that they share.

    group_size: G, neighbouring rows with the same prompt
    make_masked_attention: makes the kernel, in the place of make_attention
    """

    group_size: int = 1
    make_masked_attention: MakeMaskedAttention = default_masked_attention

    def __call__(
        self,
        params: Params,
        batch: TrainBatch,
        temperature: Float[Array, ""] | float,
        rows_per_prompt: int,
        entropy: bool,
    ) -> Scores:
        """Returns the scores [B, T] of what is in batch.bins.

        The rows need not be split: bins are.

        rows_per_prompt: not needed, bins say what stands where
        """
        bins = _bins_of(batch)
        columns = self.read_columns(bins, batch.tokens.shape[1])
        inputs = SequenceInputs(
            tokens=take_entries(batch.tokens, bins),
            positions=take_entries(sequence_positions(batch.segments), bins),
            mask=shared_prompt_mask(columns.groups, columns.completions),
        )
        params, (inputs,) = transformer.look_up(
            params, (inputs,), self.dtype, self.shardings
        )
        attention_fn = self.make_masked_attention(inputs.mask, inputs.positions)
        (hidden,), params = transformer.forward_sequences(
            self.network,
            params,
            (inputs,),
            dtype=self.dtype,
            attention_fns=(attention_fn,),
            remat=self.remat,
            shardings=self.shardings,
        )
        logprobs, entropies, embedding = chosen_logprobs(
            take_columns(hidden, columns.deciding),
            transformer.output_embedding(params),
            inputs.tokens,
            temperature,
            entropy=entropy,
            softcap=self.network.logit_softcap,
            shards=self.vocabulary_shards,
            unused=self.network.unused_ids,
        )
        num_entries = batch.tokens.size
        # The scores of prompts and of unused columns go past the last entry, and are dropped.
        entries = jnp.where(columns.completions > 0, bins, num_entries)

        def to_rows(score: Float[Array, "R S"]) -> Float[Array, "B T"]:
            zeros = jnp.zeros(num_entries, score.dtype)
            flat = zeros.at[entries].add(score, mode="drop")
            return flat.reshape(batch.tokens.shape)

        return Scores(
            logprobs=to_rows(logprobs),
            entropy=None if entropies is None else to_rows(entropies),
            params=transformer.with_output_embedding(params, embedding),
        )

    def read_columns(self, bins: Int[Array, "R S"], num_columns: int) -> BinColumns:
        """Returns what stands in the columns of bins.

        num_columns: T, columns of a row
        """
        is_token = bins >= 0
        row = bins // num_columns
        column = bins % num_columns  # of the batch
        is_completion = is_token & (column >= self.prompt_width)
        place = jnp.arange(bins.shape[1])  # in the bin
        # Prompts are padded on the left: their last tokens are in column W - 1 of the batch.
        is_prompt_end = is_token & (column == self.prompt_width - 1)
        prompt_end = jax.lax.cummax(jnp.where(is_prompt_end, place, 0), axis=1)
        is_first = is_completion & (column == self.prompt_width)
        return BinColumns(
            groups=jnp.where(is_token, row // self.group_size + 1, 0),
            completions=jnp.where(is_completion, row + 1, 0),
            deciding=jnp.where(is_first, prompt_end, jnp.maximum(place - 1, 0)),
        )

    def num_columns(
        self, batch: TrainBatch, micro_batches: MicroBatches
    ) -> Int[Array, ""]:
        """Returns the columns of all micro-batches that are not empty."""
        bins = micro_batches.split(_bins_of(batch))  # [M, R, S]
        return num_filled(bins) * bins[0].size


def _bins_of(batch: TrainBatch) -> Int[Array, "bins S"]:
    """Returns a batch's bins. Raises ValueError where it has none."""
    if batch.bins is None:
        raise ValueError("the batch has no bins: pack it first (rollout/packing.py)")
    return batch.bins
