"""Engines over a random network with a tokenizer of one character a token.

`written_without_a_cache` is an independent way to write what they write.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgrpo.device.logits import to_logits
from jaxgrpo.device.program import Program
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec
from jaxgrpo.distributed.mesh import make_mesh, to_device
from jaxgrpo.models import attention, transformer
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.problems import Problem
from jaxgrpo.programs import SamplingPrograms, compile_sampling
from jaxgrpo.rollout.engine import Engine, SamplingSession
from jaxgrpo.rollout.groups import Group, SamplingRequest
from jaxgrpo.rollout.pending import completion_key
from jaxgrpo.text.tokenizer import Tokenizer
from jaxgrpo.types import SamplingParams
from tests import tiny_models
from tests.tiny_models import random_params

NETWORK = replace(tiny_models.NETWORK, layers=1, windows=(9,), logit_softcap=4.0)
"""One layer, because compiling takes most of the time here.

Tests of the transformer and parity with torch are about more layers.
"""
WIDTH = 8
NEW = 24
GROUP = 3
ENDS = (7, 11, 23, 36)
PAD = 0


class Characters:
    """Stands in for a Hugging Face tokenizer.

    Id i is the character chr(40 + i), and a new line is nothing.
    """

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(
            input_ids=[ord(character) - 40 for character in text.replace("\n", "")]
        )

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        return "".join(chr(40 + i) for i in ids)


TOKENIZER = Tokenizer(Characters(), ENDS, PAD)


def make_problems(count: int = 7, longest: int = WIDTH) -> list[Problem]:
    """Returns problems with prompts of different lengths, the longest among them."""
    rng = np.random.default_rng(1)
    lengths = [longest - i % longest for i in range(count)]
    others = [i for i in range(1, NETWORK.vocab_size) if i not in ENDS]
    texts = [
        TOKENIZER.decode(rng.choice(others, length).tolist()) for length in lengths
    ]
    return [Problem(f"p{i}", text, "1") for i, text in enumerate(texts)]


def make_programs(
    slots: int,
    chunk: int,
    mesh: Mesh | None = None,
    prompt_width: int = WIDTH,
    network: ModelConfig = NETWORK,
    new_tokens: int = NEW,
    precision: Precision = Precision(),  # noqa: B008
) -> SamplingPrograms:
    """Returns the programs of an engine."""
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return compile_sampling(
        ModelSpec(network, mesh, precision),
        SamplingSpec(
            prompt_width, new_tokens, slots, ENDS, group_size=GROUP, chunk=chunk
        ),
    )


@functools.cache
def make_engine(slots: int, chunk: int, prompt_width: int = WIDTH) -> Engine:
    """Returns one engine of each size for all tests: it holds nothing but compiled programs.

    Those of another chunk are the same but for `decode`. Slots are not compacted, which would
    compile it once more for each size.
    """
    programs = make_programs(slots, chunk, prompt_width=prompt_width)
    if (chunk, prompt_width) != (8, WIDTH):
        alike = make_engine(slots, 8).programs
        names = ["publish"]
        if prompt_width == WIDTH:
            names += ["empty_state", "insert", "prefill"]
        programs = replace(programs, **{name: getattr(alike, name) for name in names})
    programs = replace(programs, slot_counts=(slots,))
    return Engine(programs, TOKENIZER, prompt_width, NEW, seed=3)


class Watched(Program):
    """A program whose calls are looked at."""

    def __init__(self, program: Program, look: Callable[..., None]):
        self._program = program
        self._look = look

    def __call__(self, *arguments):
        result = self._program(*arguments)
        self._look(arguments, result)
        return result


def watching_decode(engine: Engine, look: Callable[..., None]) -> Engine:
    """Returns the engine, with look(arguments, result) called after each call of `decode`."""
    programs = engine.programs
    watched = Watched(programs.decode, look)
    return replace(engine, programs=replace(programs, decode=watched))


@functools.cache
def make_params():
    """Returns random parameters, placed where programs on one device want them."""
    like = transformer.shapes(NETWORK)
    mesh = make_mesh(devices=jax.devices()[:1])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return to_device(
        jax.device_get(random_params(NETWORK)), jax.tree.map(lambda _: everywhere, like)
    )


@functools.cache
def uncached_logits(rows: int, columns: int):
    """Returns a compiled function of (params, tokens [rows, columns], lengths [rows]).

    It reads rows from their beginning, and returns the logits after each row's last token.
    """

    @jax.jit
    def last_logits(params, tokens, lengths):
        # Rows are padded on the right.
        segments = (jnp.arange(columns) < lengths[:, None]).astype(jnp.int32)
        inputs = SequenceInputs(
            tokens=tokens,
            positions=attention.sequence_positions(segments),
            mask=attention.sequence_mask(segments),
        )
        hidden, _ = transformer.forward(NETWORK, params, inputs)
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
        return to_logits(
            last, transformer.output_embedding(params), 1.0, NETWORK.logit_softcap
        )

    return last_logits


@jax.jit
def _uniforms(keys):
    def draw(key, n):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), n))

    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.arange(NEW))


def written_without_a_cache(
    params,
    problems: Sequence[Problem],
    group_size: int,
    key_name: str,
    temperature: float = 1.0,
    min_tokens: int = 0,
) -> list[tuple[list[int], list[float]]]:
    """Returns (tokens, log-probabilities) of each problem's completions, row by row.

    Every token is drawn after reading the whole row anew, by the cumulative distribution in
    float64. No end token comes before the row has `min_tokens`.

    key_name: SEED/STEP/PURPOSE
    """
    rows = [(problem, sample) for problem in problems for sample in range(group_size)]
    texts = [TOKENIZER.prompt(problem.prompt) for problem, _ in rows]
    prompt_lengths = [len(text) for text in texts]
    keys = np.stack(
        [completion_key(key_name, problem.id, sample) for problem, sample in rows]
    )
    uniforms = np.asarray(_uniforms(keys), np.float64)
    logprobs: list[list[float]] = [[] for _ in rows]
    columns = max(prompt_lengths) + NEW
    unfinished = list(range(len(rows)))
    for n in range(NEW):
        tokens = np.zeros((len(rows), columns), np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        lengths = np.array([len(text) for text in texts], np.int32)
        logits = uncached_logits(len(rows), columns)(params, tokens, lengths)
        logits = np.array(logits, np.float64)
        if n < min_tokens:
            logits[:, list(ENDS)] = -np.inf
        for row in unfinished:
            scaled = logits[row] / (temperature or 1.0)
            probs = np.exp(scaled - scaled.max())
            probs /= probs.sum()
            drawn = np.searchsorted(np.cumsum(probs), uniforms[row, n], side="right")
            token = int(drawn if temperature else probs.argmax())
            texts[row].append(token)
            logprobs[row].append(float(np.log(probs[token])))
        unfinished = [row for row in unfinished if texts[row][-1] not in ENDS]
    return [
        (text[prompt_length:], row_logprobs)
        for text, prompt_length, row_logprobs in zip(
            texts, prompt_lengths, logprobs, strict=True
        )
    ]


def completions(groups: Sequence[Group]) -> list[tuple[list[int], list[float]]]:
    """Returns (tokens, log-probabilities) of each row."""
    return [
        (tokens[chosen].tolist(), logprobs[chosen].tolist())
        for group in groups
        for tokens, logprobs, chosen in zip(
            group.tokens, group.logprobs, group.completion_mask, strict=True
        )
    ]


def assert_same_texts(found, expected, atol: float = 1e-4) -> None:
    """Compares rows of (tokens, log-probabilities); tokens are to be equal."""
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    for (_, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


PROBLEMS = make_problems()
KEY_NAME = "3/5/training"
"""Seed, step and purpose, which the random keys of `ask` and `start_session` are made of."""


def make_request(
    sampling: SamplingParams | None = None, group_size: int = GROUP, **changes
) -> SamplingRequest:
    """Returns a request for training, by default of groups at temperature 1."""
    return SamplingRequest(
        group_size, sampling or SamplingParams(), "training", **changes
    )


def ask(
    engine: Engine,
    sampling: SamplingParams | None = None,
    params=None,
    problems: Sequence[Problem] = PROBLEMS,
    group_size: int = GROUP,
    step: int = 5,
    **changes,
) -> list[Group]:
    """Returns the groups of all problems; changes: fields of the request."""
    request = make_request(sampling, group_size, **changes)
    return engine(params or make_params(), problems, request, step)


def start_session(
    engine: Engine, problems: Iterable[Problem] = PROBLEMS, **changes
) -> SamplingSession:
    """Returns a session of step 5; changes: fields of the request."""
    return engine.session(make_params(), problems, make_request(**changes), 5)


@functools.cache
def expected_rows(temperature: float = 1.0) -> list[tuple[list[int], list[float]]]:
    """Returns the rows that `ask` must come to, whatever the engine's sizes."""
    return written_without_a_cache(
        make_params(), PROBLEMS, GROUP, KEY_NAME, temperature
    )
