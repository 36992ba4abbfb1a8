"""Scoring: the log-probabilities of a batch's tokens, by policy and reference alike.

Axes: B rows, A runs of rows that share a prompt, T columns, W prompt width, n columns of
completions and one before them, D model width, M micro-batches of R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxgrpo.device.logprobs import chosen_logprobs
from jaxgrpo.device.micro_batches import MicroBatches, scan_filled
from jaxgrpo.models import transformer
from jaxgrpo.models.attention import AttentionFn, sequence_mask, sequence_positions
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.products import repeat_rows
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.types import Params, TrainBatch


class Scores(NamedTuple):
    """The scores of a batch's tokens; 0 where none is scored."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"] | None
    """None where it is not asked for."""
    params: Params
    """The same parameters, to be passed on instead of the argument: a parameter's gradient is then
    summed in one array, where it can be."""


MakeAttention = Callable[..., AttentionFn | None]
"""(segments [B S], width of a prompt that is read apart) -> a kernel; None: attention.attend."""


def default_attention(segments: Array, prompt_width: int = 0) -> AttentionFn | None:
    """Returns no kernel, so that `attend` is used."""
    return None


@dataclass(frozen=True)
class Scorer:
    """Computes the log-probabilities of a batch's tokens. Policy and reference go through it alike.

    A subclass says how the rows are read: `RowScorer`, `GroupScorer`.

    network: whose hidden states are scored
    dtype: of matrix products
    remat: what is kept of each layer for the backward pass, one of transformer.REMAT
    vocabulary_shards: parts into which the mesh divides the vocabulary
    prompt_width: W, the columns of a prompt that is read once for its group; 0: none is
    """

    network: ModelConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    shardings: ActivationShardings = UNCONSTRAINED
    make_attention: MakeAttention = default_attention
    vocabulary_shards: int = 1
    prompt_width: int = 0

    def __call__(
        self,
        params: Params,
        batch: TrainBatch,
        temperature: Float[Array, ""] | float,
        rows_per_prompt: int,
        entropy: bool,
    ) -> Scores:
        """Returns the scores of a batch.

        rows_per_prompt: neighbouring rows that have the same prompt
        """
        hidden, params = self.hidden_states(params, batch, rows_per_prompt)  # [B, n, D]
        # The hidden state of a column decides the token of the next one: n - 1 tokens are scored.
        unscored = batch.tokens.shape[1] - (hidden.shape[1] - 1)
        logprobs, entropies, embedding = chosen_logprobs(
            hidden[:, :-1],
            transformer.output_embedding(params),
            batch.tokens[:, unscored:],
            temperature,
            entropy=entropy,
            softcap=self.network.logit_softcap,
            shards=self.vocabulary_shards,
            unused=self.network.unused_ids,
        )

        def to_batch(score: Float[Array, "B N"]) -> Float[Array, "B T"]:
            return jnp.pad(score, ((0, 0), (unscored, 0)))

        return Scores(
            logprobs=to_batch(logprobs),
            entropy=None if entropies is None else to_batch(entropies),
            params=transformer.with_output_embedding(params, embedding),
        )

    def hidden_states(
        self, params: Params, batch: TrainBatch, rows_per_prompt: int
    ) -> tuple[Float[Array, "B n D"], Params]:
        """Returns the hidden states of the last n columns; each decides the token of the next.

        The second result is the parameters, as in `Scores`.
        """
        raise NotImplementedError

    def num_columns(
        self, batch: TrainBatch, micro_batches: MicroBatches
    ) -> Int[Array, ""] | int:
        """Returns the columns that scoring a batch computes."""
        return batch.tokens.size


@dataclass(frozen=True)
class RowScorer(Scorer):
    """Reads every row whole, by itself, and scores all columns but the first."""

    def hidden_states(
        self, params: Params, batch: TrainBatch, rows_per_prompt: int
    ) -> tuple[Float[Array, "B n D"], Params]:
        """Returns the hidden states of all columns, and the parameters."""
        inputs = _sequence_inputs(batch.tokens, batch.segments)
        params, (inputs,) = transformer.look_up(
            params, (inputs,), self.dtype, self.shardings
        )
        (hidden,), params = transformer.forward_sequences(
            self.network,
            params,
            (inputs,),
            dtype=self.dtype,
            attention_fns=(self.make_attention(batch.segments),),
            remat=self.remat,
            shardings=self.shardings,
        )
        return hidden, params


@dataclass(frozen=True)
class GroupScorer(Scorer):
    """Reads the prompt of a group once for all of its rows (arXiv 2506.05433).

    All columns after the first prompt_width are scored.
    """

    def hidden_states(
        self, params: Params, batch: TrainBatch, rows_per_prompt: int
    ) -> tuple[Float[Array, "B n D"], Params]:
        """Returns the hidden states of the columns from W - 1 on, and the parameters.

        The keys and values of a prompt, the first W columns, are read by all rows that have it.
        """
        width = self.prompt_width

        def first_of_each(x: Array) -> Array:
            return x.reshape(-1, rows_per_prompt, *x.shape[1:])[:, 0]

        # [A, W], A = B / rows_per_prompt
        prompt_segments = first_of_each(batch.segments)[:, :width]
        prompts = _sequence_inputs(
            first_of_each(batch.tokens)[:, :width], prompt_segments
        )
        # [B, T - W], whose queries read all T columns
        rows = _sequence_inputs(batch.tokens, batch.segments)
        completions = SequenceInputs(
            tokens=rows.tokens[:, width:],
            positions=rows.positions[:, width:],
            mask=rows.mask[:, width:],
            key_positions=rows.positions,
        )
        params, (prompts, completions) = transformer.look_up(
            params, (prompts, completions), self.dtype, self.shardings
        )
        # Both pass through each layer in one call: the backward pass forms each weight gradient
        # once, and fsdp gathers each weight once.
        (prompt_hidden, hidden), params = transformer.forward_sequences(
            self.network,
            params,
            (prompts, completions),
            dtype=self.dtype,
            attention_fns=(
                self.make_attention(prompt_segments),
                self.make_attention(batch.segments, width),
            ),
            remat=self.remat,
            shardings=self.shardings,
        )
        # The prompt's last hidden state decides the first token of each of its completions. Prompts
        # are padded on the left, so it is in the last column.
        last = repeat_rows(prompt_hidden[:, -1:], rows_per_prompt)
        return jnp.concatenate([last, hidden], axis=1), params

    def num_columns(
        self, batch: TrainBatch, micro_batches: MicroBatches
    ) -> Int[Array, ""] | int:
        """Returns the columns of the completions, and of each prompt as often as it is read."""
        rows, columns = batch.tokens.shape
        prompts = rows // micro_batches.rows_per_prompt
        completion_columns = columns - self.prompt_width
        return prompts * self.prompt_width + rows * completion_columns


def _sequence_inputs(
    tokens: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> SequenceInputs:
    """Returns the inputs of texts that are read from their beginnings."""
    return SequenceInputs(tokens, sequence_positions(segments), sequence_mask(segments))


def real_tokens(
    batch: TrainBatch, prompt_width: int, group_size: int
) -> Int[Array, ""]:
    """Returns the tokens of a batch's rows that choose one, and of their prompts.

    prompt_width: W, columns of a prompt that counts once for its group; 0: there is none
    """
    has_choice = batch.completion_mask.any(axis=1, keepdims=True)
    is_read = (batch.segments > 0) & has_choice  # [B, T]
    num_groups = len(is_read) // group_size
    prompts = is_read[:, :prompt_width].reshape(num_groups, group_size, prompt_width)
    num_prompt_tokens = prompts.any(axis=1).sum(dtype=jnp.int32)
    return num_prompt_tokens + is_read[:, prompt_width:].sum(dtype=jnp.int32)


def batch_logprobs(
    scorer: Scorer,
    params: Params,
    batch: TrainBatch,
    temperature: Float[Array, ""] | float,
    micro_batches: MicroBatches,
) -> Float[Array, "B T"]:
    """Returns the log-probabilities of a whole batch, of which no gradient is taken."""

    # A micro-batch at a time, in the shapes in which the policy is scored: rounding is alike.
    def score(rows: TrainBatch) -> Float[Array, "R T"]:
        rows_per_prompt = micro_batches.rows_per_prompt
        return scorer(
            params, rows, temperature, rows_per_prompt, entropy=False
        ).logprobs

    if batch.bins is None:
        return micro_batches.merge(jax.lax.map(score, micro_batches.split(batch)))

    def add(logprobs: Array, bins: Int[Array, "R S"]) -> tuple[Array, None]:
        return logprobs + score(batch._replace(bins=bins)), None

    zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
    logprobs, _ = scan_filled(add, zeros, micro_batches.split(batch.bins))
    return logprobs
