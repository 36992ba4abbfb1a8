"""Laws of the engine: what a row says depends on nothing that happens around it.

Nor does it depend on any size that was chosen for speed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec
from jaxgrpo.distributed.mesh import make_mesh, to_device
from jaxgrpo.models import attention, transformer
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.programs import compile_sampling
from jaxgrpo.rollout.pending import completion_key
from jaxgrpo.types import SamplingParams
from tests import tiny_devices, tiny_engines
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import (
    ENDS,
    GROUP,
    KEY_NAME,
    NETWORK,
    NEW,
    PROBLEMS,
    TOKENIZER,
    WIDTH,
    ask,
    assert_same_texts,
    completions,
    expected_rows,
    make_engine,
    make_params,
    make_request,
    start_session,
    uncached_logits,
    watching_decode,
    written_without_a_cache,
)

MESHES = ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 8, 1))
"""Each of them decodes; in those with fsdp, activations move and matrices do not."""


def test_there_is_something_to_be_equal_to():
    """Rows end at different times, so that slots become free one after another, and some never."""
    lengths = [len(tokens) for tokens, _ in expected_rows()]
    assert len(set(lengths)) > 6
    assert min(lengths) < 8
    assert max(lengths) == NEW


@pytest.mark.parametrize("slots", [4, 16, 64])
@pytest.mark.parametrize("chunk", [1, 8, 32])
def test_texts_are_those_of_an_uncached_forward_pass_whatever_the_slots_and_the_chunk(
    slots, chunk
):
    engine = make_engine(slots, chunk)
    groups = ask(engine)
    assert [group.problem for group in groups] == PROBLEMS
    assert_same_texts(completions(groups), expected_rows())


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.7])
def test_so_they_are_at_every_temperature(temperature):
    sampling = SamplingParams(temperature)
    groups = ask(make_engine(4, 8), sampling)
    assert_same_texts(completions(groups), expected_rows(temperature))
    next_step = ask(make_engine(4, 8), sampling, step=6)
    assert (completions(groups) == completions(next_step)) == (temperature == 0)


@pytest.mark.parametrize("width", [WIDTH + 5, 4 * WIDTH])
def test_the_width_of_the_left_padding_changes_nothing(width):
    groups = ask(make_engine(4, 8, width))
    assert {group.tokens.shape for group in groups} == {(GROUP, width + NEW)}
    assert_same_texts(completions(groups), expected_rows())


def test_a_text_depends_on_seed_step_purpose_problem_and_sample_alone():
    engine = make_engine(4, 8)
    groups = ask(engine)
    assert_same_texts(
        completions(ask(engine, problems=PROBLEMS[3:5])), completions(groups[3:5])
    )
    assert_same_texts(
        completions(ask(engine, problems=PROBLEMS[::-1]))[-GROUP:],
        completions(groups[:1]),
    )
    more = ask(engine, group_size=5)
    assert_same_texts(
        [row for group in more for row in completions([group])[:GROUP]],
        completions(groups),
    )
    for other in (
        ask(engine, step=6),
        ask(dataclasses.replace(engine, seed=4)),
        engine(
            make_params(),
            PROBLEMS,
            dataclasses.replace(make_request(), purpose="evaluation"),
            5,
        ),
    ):
        different = [
            a != b
            for (a, _), (b, _) in zip(
                completions(other), completions(groups), strict=True
            )
        ]
        assert sum(different) > 15
    assert len({tuple(tokens) for tokens, _ in completions(groups)}) > 15


def test_masks_and_ends_are_what_the_rows_say():
    for group in ask(make_engine(4, 8)):
        prompt = TOKENIZER.prompt(group.problem.prompt)
        for row in range(GROUP):
            chosen = group.completion_mask[row]
            tokens = group.tokens[row]
            length = int(chosen.sum())
            completion = tokens[chosen].tolist()
            assert chosen.tolist() == [
                WIDTH <= column < WIDTH + length for column in range(WIDTH + NEW)
            ]
            attended = [
                WIDTH - len(prompt) <= column < WIDTH + length
                for column in range(WIDTH + NEW)
            ]
            assert group.attention_mask[row].tolist() == attended
            assert tokens[WIDTH - len(prompt) : WIDTH].tolist() == prompt
            assert not set(completion[:-1]) & set(ENDS)
            assert group.finished[row] == (completion[-1] in ENDS)
            assert group.finished[row] or length == NEW
            assert (tokens[~group.attention_mask[row]] == TOKENIZER.pad_id).all()
            assert (group.logprobs[row] < 0).tolist() == chosen.tolist()
            assert group.texts[row] == TOKENIZER.decode(completion)
            assert group.texts[row].tokens == length
            assert group.texts[row].finished == group.finished[row]


def test_each_of_several_end_tokens_ends_a_row():
    groups = ask(make_engine(16, 8), group_size=12)
    lasts = [tokens[-1] for tokens, _ in completions(groups)]
    assert set(ENDS) <= set(lasts)


def test_limits_cut_what_would_have_been_longer():
    def max_tokens_of(problem, sample):
        return 3 * sample + int(problem.id[1:])

    engine = make_engine(4, 8)
    session = start_session(engine, max_tokens_of=max_tokens_of)
    groups = [group for _, group in sorted(session.groups(), key=lambda item: item[0])]
    limits = [
        max_tokens_of(problem, sample)
        for problem in PROBLEMS
        for sample in range(GROUP)
    ]
    assert limits[0] == 0  # a row that may say nothing says nothing
    cut = [
        (tokens[:limit], logprobs[:limit])
        for (tokens, logprobs), limit in zip(expected_rows(), limits, strict=True)
    ]
    assert_same_texts(completions(groups), cut)
    finished = [bool(end) for group in groups for end in group.finished]
    assert finished == [bool(tokens) and tokens[-1] in ENDS for tokens, _ in cut]
    for limit in (1, 5, NEW + 9):
        cut = [
            (tokens[:limit], logprobs[:limit]) for tokens, logprobs in expected_rows()
        ]
        assert_same_texts(completions(ask(engine, max_tokens=limit)), cut)


def test_no_row_ends_before_it_has_the_fewest_tokens():
    groups = ask(make_engine(4, 8), SamplingParams(min_tokens=9))
    uncached = written_without_a_cache(
        make_params(), PROBLEMS, GROUP, KEY_NAME, min_tokens=9
    )
    assert_same_texts(completions(groups), uncached)
    assert min(len(tokens) for tokens, _ in completions(groups)) > 9
    assert min(len(tokens) for tokens, _ in expected_rows()) < 9


def cut_after(tokens, stops):
    """Returns the tokens up to the first that completes a stop string, and whether the row ends.

    The text is read letter by letter.
    """
    for count in range(1, len(tokens) + 1):
        if any(stop in TOKENIZER.decode(tokens[:count]) for stop in stops):
            return tokens[:count], True
    return tokens, tokens[-1] in ENDS


@pytest.mark.parametrize(("slots", "chunk"), [(4, 1), (4, 8), (16, 8), (64, 32)])
def test_a_text_ends_after_its_first_stop_string_whatever_the_chunk(slots, chunk):
    texts = [TOKENIZER.decode(tokens) for tokens, _ in expected_rows()]
    long = [text for text in texts if len(text) > 8]
    stops = (long[0][4:6], long[1][2], long[2][5:8], "never")
    wanted = [cut_after(tokens, stops) for tokens, _ in expected_rows()]
    # Some would have gone on to an end token in the same chunk, others to the limit.
    kinds = {
        tokens[-1] in ENDS
        for (tokens, _), (cut, _) in zip(expected_rows(), wanted, strict=True)
        if len(cut) < len(tokens)
    }
    assert kinds == {True, False}
    groups = ask(make_engine(slots, chunk), stop=stops)
    found = completions(groups)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    assert [bool(end) for group in groups for end in group.finished] == [
        ended for _, ended in wanted
    ]
    for (_, a), (_, b) in zip(found, expected_rows(), strict=True):
        np.testing.assert_allclose(a, b[: len(a)], atol=1e-4)
    assert [text for group in groups for text in group.texts] == [
        TOKENIZER.decode(cut) for cut, _ in wanted
    ]


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_stop_string_may_be_of_tokens_that_are_not_in_the_text(chunk):
    """A control token ends rows, alone and within a stop string; rewards do not see it."""
    rows = [tokens for tokens, _ in expected_rows()]
    row = next(tokens for tokens in rows if len(tokens) > 8)
    control = row[3]
    engine = make_engine(4, chunk)
    hiding = dataclasses.replace(TOKENIZER, control_ids=frozenset({control}))
    for stop in (TOKENIZER.decode_all(row[3:4]), TOKENIZER.decode_all(row[2:6])):
        groups = ask(dataclasses.replace(engine, tokenizer=hiding), stop=(stop,))
        wanted = [cut_after(tokens, (stop,)) for tokens in rows]
        assert [tokens for tokens, _ in completions(groups)] == [
            tokens for tokens, _ in wanted
        ]
        assert [bool(end) for group in groups for end in group.finished] == [
            ended for _, ended in wanted
        ]
        shown = [
            TOKENIZER.decode([token for token in cut if token != control])
            for cut, _ in wanted
        ]
        assert [text for group in groups for text in group.texts] == shown


def test_what_the_prompt_opened_is_in_the_text_and_nowhere_else():
    """Not among the tokens, not in their count, and not where stop strings are looked for."""
    opening = dataclasses.replace(
        make_engine(4, 8),
        tokenizer=dataclasses.replace(TOKENIZER, completion_prefix="<think>\n"),
    )
    stop = ("think", "A")
    groups = ask(opening, stop=stop)
    plain = ask(make_engine(4, 8), stop=stop)
    assert completions(groups) == completions(plain)
    for group, other in zip(groups, plain, strict=True):
        assert group.texts == ["<think>\n" + text for text in other.texts]
        assert [text.tokens for text in group.texts] == [
            text.tokens for text in other.texts
        ]


@pytest.mark.parametrize(("slots", "chunk"), [(4, 1), (4, 8), (16, 8), (64, 32)])
def test_usage_counts_tokens_steps_and_prompts(slots, chunk):
    slot_steps = []

    def look(_, result):
        output = result[1]
        slot_steps.append(int(output.num_steps) * len(output.num_tokens))

    engine = make_engine(slots, chunk)
    params = engine.programs.publish(make_params())
    session = start_session(watching_decode(engine, look))
    groups = list(session.groups())
    usage = session.usage
    assert len(groups) == session.launched == len(PROBLEMS)
    assert usage.tokens == sum(len(tokens) for tokens, _ in expected_rows())
    assert usage.tokens <= usage.slot_steps == sum(slot_steps)
    assert usage.slot_steps == usage.steps * slots
    prompts = [len(TOKENIZER.prompt(problem.prompt)) for problem in PROBLEMS]
    assert usage.prompt_tokens == sum(prompts)
    # A token reads the prompt, those before it and itself.
    lengths = np.reshape([len(tokens) for tokens, _ in expected_rows()], (-1, GROUP))
    contexts = lengths * (np.array(prompts)[:, None] + (lengths + 1) / 2)
    assert usage.context_tokens == contexts.sum()
    assert usage.weight_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert 0 < usage.idle_seconds < usage.seconds
    if slots == 4:
        assert usage.tokens > 0.5 * usage.slot_steps  # slots are used again


@pytest.mark.parametrize("slots", [4, 16])
def test_a_problem_that_is_asked_again_in_a_step_gets_new_texts(slots):
    """They are those of the samples that follow, as if it had been asked once for as many."""
    first, other = PROBLEMS[:2]
    engine = make_engine(slots, 8)
    groups = ask(engine, problems=[first, other, first, first])
    more = ask(engine, problems=[first], group_size=3 * GROUP)
    assert_same_texts(completions([groups[0], *groups[2:]]), completions(more))
    assert_same_texts(completions(groups[:2]), expected_rows()[: 2 * GROUP])
    asked = [str(completions([group])) for group in groups]
    assert len(set(asked)) == 4


@jax.jit
def scored(params, tokens, attention_mask, temperature=1.0):
    """Returns the log-probabilities of a group's tokens.

    They are from an uncached forward pass over its arrays as they are.
    """
    segments = attention_mask.astype(jnp.int32)
    inputs = SequenceInputs(
        tokens=tokens,
        positions=attention.sequence_positions(segments),
        mask=attention.sequence_mask(segments),
    )
    hidden, _ = transformer.forward(NETWORK, params, inputs)
    embedding = transformer.output_embedding(params)
    return token_logprobs(
        hidden, embedding, tokens, temperature, softcap=NETWORK.logit_softcap
    )[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_groups_arrays_score_as_the_engine_says(temperature):
    for group in ask(make_engine(4, 8), SamplingParams(temperature))[:3]:
        logprobs = scored(
            make_params(), group.tokens, group.attention_mask, temperature
        )
        gap = np.where(group.completion_mask, logprobs - group.logprobs, 0.0)
        assert np.abs(gap).max() < 1e-4


def test_bfloat16_log_probabilities_stay_near():
    """Decoding is in bfloat16, scoring in float32.

    They differ by a twentieth of a nat on average for a random network, half a nat at most.
    """
    engine = dataclasses.replace(
        make_engine(4, 8),
        programs=tiny_engines.make_programs(4, 8, precision=Precision(jnp.bfloat16)),
    )
    gaps = []
    for group in ask(engine):
        logprobs = scored(make_params(), group.tokens, group.attention_mask)
        gaps.extend((logprobs - group.logprobs)[group.completion_mask])
    assert 0 < np.abs(gaps).mean() < 0.05
    assert np.abs(gaps).max() < 0.5


def test_sampled_tokens_follow_the_distribution():
    """Chi-square of the first tokens of 1,500 completions, of all tokens and of the nucleus."""
    from scipy import stats

    count = 1500
    problems = PROBLEMS[:1]
    tokens = np.array(TOKENIZER.prompt(problems[0].prompt))[None]
    lengths = np.array([tokens.shape[1]], np.int32)
    logits = np.asarray(
        uncached_logits(1, tokens.shape[1])(make_params(), tokens, lengths)
    )[0]
    for temperature, top_p in ((1.0, 1.0), (1.5, 0.7)):
        probs = np.exp(logits.astype(np.float64) / temperature)
        probs /= probs.sum()
        order = np.argsort(-probs)
        kept = order[: int(np.sum(np.cumsum(probs[order]) - probs[order] < top_p))]
        nucleus = np.zeros_like(probs)
        nucleus[kept] = probs[kept] / probs[kept].sum()
        groups = ask(
            make_engine(64, 8),
            SamplingParams(temperature, top_p=top_p),
            problems=problems,
            group_size=count,
            max_tokens=1,
        )
        first_tokens = [tokens[0] for tokens, _ in completions(groups)]
        counts = np.bincount(first_tokens, minlength=len(probs))
        assert not counts[nucleus == 0].any()
        # Tokens that are too rare for the test are counted together.
        common = nucleus * count >= 5
        assert common.sum() > 5
        observed = counts[common]
        wanted = nucleus[common] * count
        if wanted.sum() < count - 1e-6:
            observed = np.append(observed, counts[~common].sum())
            wanted = np.append(wanted, count - wanted.sum())
        assert stats.chisquare(observed, wanted).pvalue > 1e-3, (temperature, top_p)


def test_keys_and_values_are_updated_in_place():
    """`decode` needs less memory besides its arguments than one of the cache's arrays takes.

    So none of them is copied.
    """
    network = dataclasses.replace(NETWORK, layers=2, windows=(9, 9), head_width=64)
    slots = 32
    ring_length = 512
    programs = compile_sampling(
        ModelSpec(network, make_mesh(devices=jax.devices()[:1])),
        SamplingSpec(
            prompt_width=256,
            new_tokens=256,
            slots=slots,
            eos_ids=ENDS,
            chunk=32,
        ),
    )
    state = jax.eval_shape(lambda: programs.empty_state(slots, ring_length))
    sampling = SamplingParams(*(np.float32(0) for _ in range(5)))
    stopped = np.zeros(slots, bool)
    lowered = programs.decode._jitted.lower(
        programs.params_like, state, stopped, sampling, np.int32(32), np.int32(0)
    )
    memory = lowered.compile(compiler_options=tiny_devices.DEFAULT).memory_analysis()
    one = state.cache[0][0].size * 4
    cache = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.cache))
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < one, (memory.temp_size_in_bytes, one)


def test_a_completions_key_is_a_function_of_its_arguments():
    key = completion_key("0/1/training", "p/1", 0)
    assert (key.dtype, key.shape) == (np.uint32, (2,))
    np.testing.assert_array_equal(key, completion_key("0/1/training", "p/1", 0))
    others = [
        ("1/1/training", "p/1", 0),
        ("0/1/training", "p/2", 0),
        ("0/1/training", "p/1", 1),
        ("0/1/training", "p", 10),
    ]
    keys = {tuple(key), *(tuple(completion_key(*other)) for other in others)}
    assert len(keys) == 1 + len(others)


def compare_meshes():
    """Compares every mesh with what is written without a cache on one device.

    It runs in a process with eight devices.
    """
    for sizes in MESHES:
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        programs = dataclasses.replace(
            tiny_engines.make_programs(16, 8, mesh), slot_counts=(16, 8)
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
        params = to_device(jax.device_get(make_params()), shardings)
        engine = dataclasses.replace(make_engine(16, 8), programs=programs)
        assert_same_texts(completions(ask(engine, params=params)), expected_rows())
        print("equal", *sizes)


def test_every_mesh_gives_the_same_texts():
    assert output_on_devices(compare_meshes).count("equal") == len(MESHES)
