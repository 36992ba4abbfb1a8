"""Laws of the engine: what a row says depends on nothing that happens around it, and on no size that was chosen for speed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo import programs as steps_module
from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.distributed.mesh import make_mesh, to_device
from jaxgrpo.models import attention, transformer
from jaxgrpo.programs import compile_programs
from jaxgrpo.rollout.engine import Draw, FinishedCompletion, completion_key
from tests import tiny_devices, tiny_engines
from tests.tiny_devices import output_on_devices
from tests.tiny_engines import (
    ENDS,
    GROUP,
    NETWORK,
    NEW,
    TOKENIZER,
    WIDTH,
    assert_same_texts,
    completions,
    make_engine,
    make_params,
    make_problems,
    watching_decode,
    written_without_a_cache,
)

PROBLEMS = make_problems()
NAME = "3/5/training"
"""What a wave's keys are made of: seed, step and purpose."""
MESHES = ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 8, 1))
"""Each of them decodes; in those with fsdp, activations move and matrices do not."""


def ask(engine, draw=None, params=None, problems=PROBLEMS, group_size=GROUP, step=5):
    return engine(params or make_params(), problems, group_size, draw or Draw(), step, "training")


@functools.cache
def expected(temperature=1.0):
    """What everything must be equal to."""
    return written_without_a_cache(make_params(), PROBLEMS, GROUP, NAME, temperature)


def test_there_is_something_to_be_equal_to():
    """Rows end at different times, so that slots become free one after another, and some never."""
    lengths = [len(tokens) for tokens, _ in expected()]
    assert len(set(lengths)) > 6
    assert min(lengths) < 8
    assert max(lengths) == NEW


@pytest.mark.parametrize("slots", [4, 16, 64])
@pytest.mark.parametrize("chunk", [1, 8, 32])
def test_texts_are_those_of_an_uncached_forward_pass_whatever_the_slots_and_the_chunk(slots, chunk):
    engine = make_engine(slots, chunk)
    groups = ask(engine)
    assert [group.problem for group in groups] == PROBLEMS
    assert_same_texts(completions(groups), expected())


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.7])
def test_so_they_are_at_every_temperature(temperature):
    groups = ask(make_engine(4, 8), Draw(temperature))
    assert_same_texts(completions(groups), expected(temperature))
    assert (
        completions(groups) == completions(ask(make_engine(4, 8), Draw(temperature), step=6))
    ) == (temperature == 0)


@pytest.mark.parametrize("width", [WIDTH + 5, 4 * WIDTH])
def test_the_width_of_the_left_padding_changes_nothing(width):
    groups = ask(make_engine(4, 8, width))
    assert {group.tokens.shape for group in groups} == {(GROUP, width + NEW)}
    assert_same_texts(completions(groups), expected())


@pytest.fixture(scope="module")
def changing():
    """An engine that is warm: rings of 12 and 24 columns, where a run's are 128 and more; 8 slots, in the end 4."""
    halves = steps_module._halves
    with pytest.MonkeyPatch.context() as monkeypatch:
        few = lambda most, least, multiple: halves(most, 12 if most == NEW else 4, multiple)
        monkeypatch.setattr(steps_module, "_halves", few)
        steps = tiny_engines.make_steps(8, 5)
    assert (steps.sizes, steps.rings) == ((8, 4), (12, 24))
    engine = dataclasses.replace(make_engine(4, 8), steps=steps)
    engine.warm_up(make_params())
    return engine


def test_longer_rings_and_fewer_slots_change_nothing(changing):
    seen = set()
    look = lambda arguments, _: seen.add(
        (arguments[1].live.shape[0], arguments[1].recent[0][1].shape[2])
    )
    assert_same_texts(completions(ask(watching_decode(changing, look))), expected())
    assert {size for size, _ in seen} == {8, 4}
    assert {ring for _, ring in seen} == {12, 24}


def test_a_text_depends_on_seed_step_purpose_problem_and_sample_alone():
    engine = make_engine(4, 8)
    groups = ask(engine)
    assert_same_texts(completions(ask(engine, problems=PROBLEMS[3:5])), completions(groups[3:5]))
    assert_same_texts(
        completions(ask(engine, problems=PROBLEMS[::-1]))[-GROUP:], completions(groups[:1])
    )
    more = ask(engine, group_size=5)
    assert_same_texts(
        [row for group in more for row in completions([group])[:GROUP]], completions(groups)
    )
    for other in (
        ask(engine, step=6),
        ask(dataclasses.replace(engine, seed=4)),
        engine(make_params(), PROBLEMS, GROUP, Draw(), 5, "evaluation"),
    ):
        different = [
            a != b for (a, _), (b, _) in zip(completions(other), completions(groups), strict=True)
        ]
        assert sum(different) > 15
    assert len({tuple(tokens) for tokens, _ in completions(groups)}) > 15


def test_masks_and_ends_are_what_the_rows_say():
    for group in ask(make_engine(4, 8)):
        prompt = TOKENIZER.prompt(group.problem.prompt)
        for row in range(GROUP):
            chosen, tokens = group.completion_mask[row], group.tokens[row]
            length = int(chosen.sum())
            completion = tokens[chosen].tolist()
            assert chosen.tolist() == [
                WIDTH <= column < WIDTH + length for column in range(WIDTH + NEW)
            ]
            attended = [
                WIDTH - len(prompt) <= column < WIDTH + length for column in range(WIDTH + NEW)
            ]
            assert group.attention_mask[row].tolist() == attended
            assert tokens[WIDTH - len(prompt) : WIDTH].tolist() == prompt
            assert not set(completion[:-1]) & set(ENDS)
            assert group.finished[row] == (completion[-1] in ENDS)
            assert group.finished[row] or length == NEW
            assert (tokens[~group.attention_mask[row]] == TOKENIZER.pad_id).all()
            assert (group.logprobs[row] < 0).tolist() == chosen.tolist()
            assert group.texts[row] == TOKENIZER.decode(completion)
            assert (group.texts[row].tokens, group.texts[row].finished) == (
                length,
                group.finished[row],
            )


def test_each_of_several_end_tokens_ends_a_row():
    groups = ask(make_engine(16, 8), group_size=12)
    lasts = [tokens[-1] for tokens, _ in completions(groups)]
    assert set(ENDS) <= set(lasts)


def test_limits_cut_what_would_have_been_longer():
    limit = lambda problem, sample: 3 * sample + int(problem.id[1:])
    engine = make_engine(4, 8)
    wave = engine.wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training", limit)
    groups = [group for _, group in sorted(wave.groups(), key=lambda item: item[0])]
    limits = [limit(problem, sample) for problem in PROBLEMS for sample in range(GROUP)]
    assert limits[0] == 0  # a row that may say nothing says nothing
    cut = [
        (tokens[:most], logprobs[:most])
        for (tokens, logprobs), most in zip(expected(), limits, strict=True)
    ]
    assert_same_texts(completions(groups), cut)
    finished = [bool(end) for group in groups for end in group.finished]
    assert finished == [bool(tokens) and tokens[-1] in ENDS for tokens, _ in cut]
    for most in (1, 5, NEW + 9):
        cut = [(tokens[:most], logprobs[:most]) for tokens, logprobs in expected()]
        assert_same_texts(completions(ask(engine, Draw(max_tokens=most))), cut)


def test_no_row_ends_before_it_has_the_fewest_tokens():
    groups = ask(make_engine(4, 8), Draw(min_tokens=9))
    assert_same_texts(
        completions(groups), written_without_a_cache(make_params(), PROBLEMS, GROUP, NAME, fewest=9)
    )
    assert min(len(tokens) for tokens, _ in completions(groups)) > 9
    assert min(len(tokens) for tokens, _ in expected()) < 9


def cut_after(tokens, stops):
    """The tokens up to the first with which a stop string is in the text, by reading it letter by letter."""
    for count in range(1, len(tokens) + 1):
        if any(stop in TOKENIZER.decode(tokens[:count]) for stop in stops):
            return tokens[:count], True
    return tokens, tokens[-1] in ENDS


@pytest.mark.parametrize(("slots", "chunk"), [(4, 1), (4, 8), (16, 8), (64, 32)])
def test_a_text_ends_after_its_first_stop_string_whatever_the_chunk(slots, chunk):
    texts = [TOKENIZER.decode(tokens) for tokens, _ in expected()]
    long = [text for text in texts if len(text) > 8]
    stops = (long[0][4:6], long[1][2], long[2][5:8], "never")
    wanted = [cut_after(tokens, stops) for tokens, _ in expected()]
    # Some would have gone on to an end token in the same chunk, others to the limit.
    kinds = {
        tokens[-1] in ENDS
        for (tokens, _), (cut, _) in zip(expected(), wanted, strict=True)
        if len(cut) < len(tokens)
    }
    assert kinds == {True, False}
    groups = ask(make_engine(slots, chunk), Draw(stop=stops))
    found = completions(groups)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    assert [bool(end) for group in groups for end in group.finished] == [
        ended for _, ended in wanted
    ]
    for (_, a), (_, b) in zip(found, expected(), strict=True):
        np.testing.assert_allclose(a, b[: len(a)], atol=1e-4)
    assert [text for group in groups for text in group.texts] == [
        TOKENIZER.decode(cut) for cut, _ in wanted
    ]


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_stop_string_may_be_of_tokens_that_are_not_in_the_text(chunk):
    """A control token ends rows, alone and within a stop string, and is dropped from what rewards see."""
    rows = [tokens for tokens, _ in expected()]
    row = next(tokens for tokens in rows if len(tokens) > 8)
    control = row[3]
    engine = make_engine(4, chunk)
    hiding = dataclasses.replace(TOKENIZER, control_ids=frozenset({control}))
    for stop in (TOKENIZER.decode_all(row[3:4]), TOKENIZER.decode_all(row[2:6])):
        groups = ask(dataclasses.replace(engine, tokenizer=hiding), Draw(stop=(stop,)))
        wanted = [cut_after(tokens, (stop,)) for tokens in rows]
        assert [tokens for tokens, _ in completions(groups)] == [tokens for tokens, _ in wanted]
        assert [bool(end) for group in groups for end in group.finished] == [
            ended for _, ended in wanted
        ]
        shown = [
            TOKENIZER.decode([token for token in cut if token != control]) for cut, _ in wanted
        ]
        assert [text for group in groups for text in group.texts] == shown


def test_what_the_prompt_opened_is_in_the_text_and_nowhere_else():
    """Not among the tokens, not in their count, and not where stop strings are looked for."""
    opening = dataclasses.replace(
        make_engine(4, 8), tokenizer=dataclasses.replace(TOKENIZER, completion_prefix="<think>\n")
    )
    draw = Draw(stop=("think", "A"))
    groups, plain = ask(opening, draw), ask(make_engine(4, 8), draw)
    assert completions(groups) == completions(plain)
    for group, other in zip(groups, plain, strict=True):
        assert group.texts == ["<think>\n" + text for text in other.texts]
        assert [text.tokens for text in group.texts] == [text.tokens for text in other.texts]


@pytest.mark.parametrize(("slots", "chunk"), [(4, 1), (4, 8), (16, 8), (64, 32)])
def test_usage_counts_tokens_steps_and_prompts(slots, chunk):
    engine = make_engine(slots, chunk)
    computed = []
    counting = watching_decode(
        engine, lambda _, result: computed.append(int(result[1].steps) * len(result[1].n))
    )
    wave = counting.wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    groups = list(wave.groups())
    assert len(groups) == wave.launched == len(PROBLEMS)
    assert wave.usage.tokens == sum(len(tokens) for tokens, _ in expected())
    assert wave.usage.tokens <= wave.usage.computed == sum(computed)
    assert 0 < wave.usage.waited < wave.usage.seconds
    if slots == 4:
        assert wave.usage.tokens > 0.5 * wave.usage.computed  # slots are used again


def test_problems_are_taken_as_slots_become_free_and_no_sooner():
    taken = []

    def problems():
        for problem in make_problems(40):
            taken.append(problem.id)
            yield problem

    engine = make_engine(4, 8)
    wave = engine.wave(make_params(), problems(), GROUP, Draw(), 5, "training")
    first = next(wave.groups())
    assert len(taken) == wave.launched <= 2 + 2 * engine.steps.prompts
    assert first[1].problem.id in taken


def test_groups_come_when_they_are_ready_and_their_indices_say_which():
    """The first has rows of up to 24 tokens, the others of one."""
    limits = lambda problem, sample: NEW if problem.id == "p0" else 1
    wave = make_engine(4, 1).wave(
        make_params(), PROBLEMS, GROUP, Draw(min_tokens=NEW), 5, "training", limits
    )
    found = list(wave.groups())
    assert [index for index, _ in found] == [1, 2, 3, 4, 5, 6, 0]
    assert all(group.problem == PROBLEMS[index] for index, group in found)


def test_a_new_policy_goes_on_with_what_the_old_one_wrote():
    """Every token says which step's policy wrote it; what the first wrote is what it would have written anyway."""
    other = jax.tree.map(lambda leaf: leaf * 1.5, make_params())
    wave = make_engine(16, 1).wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    items = iter(wave)
    groups = [next(items) for _ in range(6)]  # a few tokens of every row
    wave.renew(other, 6)
    groups = sorted(
        (item for item in [*groups, *items] if isinstance(item, tuple)), key=lambda item: item[0]
    )
    mixed = 0
    for index, group in groups:
        for row, (tokens, logprobs) in enumerate(expected()[index * GROUP : (index + 1) * GROUP]):
            chosen = group.completion_mask[row]
            written, count = group.written[row, chosen], int(np.sum(group.written[row] == 5))
            assert set(written) <= {5, 6}
            assert (np.diff(written) >= 0).all()
            assert group.tokens[row, chosen][:count].tolist() == tokens[:count]
            np.testing.assert_allclose(
                group.logprobs[row, chosen][:count], logprobs[:count], atol=1e-4
            )
            mixed += 0 < count < len(written)
    assert mixed > 3


def test_a_group_has_the_random_numbers_of_the_step_that_launched_it():
    """Where the policy stays what it was, so does every text, of rows that had not begun, too."""
    wave = make_engine(4, 1).wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    items = iter(wave)
    while wave.launched < 2:
        next(items)
    assert wave.launched * GROUP > 4  # rows wait for a slot
    before = wave.launched
    wave.renew(make_params(), 6)
    found = dict(item for item in items if isinstance(item, tuple))
    groups = [found[index] for index in sorted(found)]
    later = written_without_a_cache(make_params(), PROBLEMS, GROUP, "3/6/training")
    assert_same_texts(completions(groups), expected()[: before * GROUP] + later[before * GROUP :])


@pytest.mark.parametrize("slots", [4, 16])
def test_a_problem_that_is_asked_again_in_a_step_gets_new_texts(slots):
    """They are those of the samples that follow, as if it had been asked once for as many."""
    first, other = PROBLEMS[:2]
    engine = make_engine(slots, 8)
    groups = ask(engine, problems=[first, other, first, first])
    more = ask(engine, problems=[first], group_size=3 * GROUP)
    assert_same_texts(completions([groups[0], *groups[2:]]), completions(more))
    assert_same_texts(completions(groups[:2]), expected()[: 2 * GROUP])
    asked = [str(completions([group])) for group in groups]
    assert len(set(asked)) == 4


def test_a_wave_holds_problems_back_and_goes_on_when_it_may(changing):
    """At the bound it neither ends nor gives up slots, and what it writes is the same."""
    sizes = []
    look = lambda arguments, _: sizes.append(arguments[1].live.shape[0])
    engine = watching_decode(changing, look)
    wave = engine.wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    before = programs(changing.steps)
    found = {}
    nothing = 0
    wave.max_launched = 1
    for item in wave:
        if isinstance(item, tuple):
            found[item[0]] = item[1]
        nothing = nothing + 1 if item is None else 0
        assert wave.launched <= wave.max_launched
        if nothing == 4:  # nothing is under way, and the wave does not end
            assert len(found) == wave.launched == wave.max_launched
            assert set(sizes) == {8}
            wave.max_launched += 3
    assert wave.launched == len(PROBLEMS)
    assert_same_texts(completions([found[index] for index in sorted(found)]), expected())
    assert programs(changing.steps) == before


def test_the_call_that_is_under_way_is_the_earlier_policys():
    """Its tokens say so, and are counted there: of each step as many as carry its number."""
    wave = make_engine(4, 2).wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    counted, groups = {}, []
    for item in wave:
        if isinstance(item, tuple):
            groups.append(item[1])
        if item is None and wave.launched >= len(counted) + 2:
            step = 5 + len(counted)
            wave.finish_call()
            counted[step] = wave.usage.tokens
            wave.renew(make_params(), step + 1)
    counted[5 + len(counted)] = wave.usage.tokens
    written = np.concatenate([group.written[group.completion_mask] for group in groups])
    assert len(counted) > 3
    assert {step: int(np.sum(written == step)) for step in counted} == counted


def test_texts_come_as_they_end_and_before_their_groups():
    wave = make_engine(4, 8).wave(make_params(), PROBLEMS, GROUP, Draw(), 5, "training")
    ended, groups = {}, 0
    for item in wave:
        if isinstance(item, FinishedCompletion):
            assert item.problem == PROBLEMS[item.index]
            ended[item.index, item.sample] = item.text
        elif item:
            index, group = item
            assert group.texts == [ended[index, sample] for sample in range(GROUP)]
            groups += len(ended) > GROUP * (groups + 1)
    assert len(ended) == GROUP * len(PROBLEMS)
    assert groups > 0  # texts of the next groups had ended when a group was whole


def test_no_problems_are_no_groups():
    assert ask(make_engine(4, 8), problems=[]) == []


def programs(steps):
    """How many versions of every program there are."""
    named = [
        steps.prefill.compiled,
        steps.insert.compiled,
        steps.decode.compiled,
        steps.compact.compiled,
    ]
    return [*named, *(jitted._cache_size() for jitted in (steps.publish, steps.empty, steps.grow))]


def test_two_hundred_steps_of_changing_settings_compile_nothing(changing):
    """Lengths among them: prompts, completions and the number of rows, so that slots are compacted and rings grow."""
    engine, params, rng = changing, make_params(), np.random.default_rng(0)
    before = programs(engine.steps)
    for program in (
        engine.steps.prefill,
        engine.steps.insert,
        engine.steps.decode,
        engine.steps.compact,
    ):
        assert program.sealed
    tokens = 0
    for step in range(200):
        draw = Draw(
            temperature=float(rng.choice([0.0, 0.5, 1.0, 1.3])),
            top_k=int(rng.integers(0, 9)),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.05])),
            min_tokens=int(rng.integers(0, 3)),
            max_tokens=int(rng.choice([1, 3, 5, 16])),
            stop=("A",) if step % 3 else (),
        )
        asked = dataclasses.replace(engine, seed=int(rng.integers(0, 2**31)))
        chosen = [PROBLEMS[i] for i in rng.permutation(len(PROBLEMS))[: rng.integers(1, 4)]]
        groups = ask(asked, draw, params, chosen, group_size=int(rng.integers(1, 5)), step=step)
        tokens += sum(len(tokens) for tokens, _ in completions(groups))
    assert tokens > 1000
    assert programs(engine.steps) == before


def test_a_compile_after_warm_up_is_an_error():
    steps = tiny_engines.make_steps(4, 3)
    compact = steps.compact
    slots = steps.empty(4, NEW)
    compact(slots, np.arange(2, dtype=np.int32))
    compact.seal()
    compact(slots, np.arange(2, dtype=np.int32))
    with pytest.raises(
        RuntimeError, match=r"compact was compiled again after warm-up, for .*int32"
    ):
        compact(slots, np.arange(3, dtype=np.int32))


@jax.jit
def scored(params, tokens, attention_mask, temperature=1.0):
    """The log-probabilities of a group's tokens, from an uncached forward pass over its arrays as they are."""
    segments = attention_mask.astype(jnp.int32)
    positions, mask = attention.sequence_positions(segments), attention.sequence_mask(segments)
    hidden, _ = transformer.forward(NETWORK, params, tokens, positions, mask)
    embedding = transformer.output_embedding(params)
    return token_logprobs(hidden, embedding, tokens, temperature, softcap=NETWORK.logit_softcap)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_groups_arrays_score_as_the_engine_says(temperature):
    for group in ask(make_engine(4, 8), Draw(temperature))[:3]:
        found = scored(make_params(), group.tokens, group.attention_mask, temperature)
        gap = np.where(group.completion_mask, found - group.logprobs, 0.0)
        assert np.abs(gap).max() < 1e-4


def test_bfloat16_log_probabilities_stay_near():
    """Decoding in bfloat16, scored in float32: a twentieth of a nat on average for a random network, half a nat at most."""
    engine = dataclasses.replace(
        make_engine(4, 8), steps=tiny_engines.make_steps(4, 8, dtype=jnp.bfloat16)
    )
    gaps = []
    for group in ask(engine):
        found = scored(make_params(), group.tokens, group.attention_mask)
        gaps.extend((found - group.logprobs)[group.completion_mask])
    assert 0 < np.abs(gaps).mean() < 0.05
    assert np.abs(gaps).max() < 0.5


def test_sampled_tokens_follow_the_distribution():
    """Chi-square of the first tokens of 1,500 completions, of all tokens and of the nucleus."""
    from scipy import stats

    params, problem = make_params(), PROBLEMS[:1]
    tokens = np.array(TOKENIZER.prompt(problem[0].prompt))[None]
    logits = np.asarray(
        tiny_engines._uncached(1, tokens.shape[1])(
            params, tokens, np.array([tokens.shape[1]], np.int32)
        )
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
            Draw(temperature, top_p=top_p, max_tokens=1),
            problems=problem,
            group_size=1500,
        )
        found = np.bincount([tokens[0] for tokens, _ in completions(groups)], minlength=len(probs))
        assert not found[nucleus == 0].any()
        common = nucleus * 1500 >= 5
        assert common.sum() > 5
        counts, wanted = found[common], nucleus[common] * 1500
        if wanted.sum() < 1500 - 1e-6:
            counts, wanted = (
                np.append(counts, found[~common].sum()),
                np.append(wanted, 1500 - wanted.sum()),
            )
        assert stats.chisquare(counts, wanted).pvalue > 1e-3, (temperature, top_p)


def test_keys_and_values_are_updated_in_place():
    """What `decode` needs besides its arguments is less than a single one of the cache's arrays: none of them is copied."""
    model = dataclasses.replace(NETWORK, layers=2, windows=(9, 9), head_width=64)
    slots, ring = 32, 256
    steps = compile_programs(
        model,
        optax.sgd(1.0),
        make_mesh(devices=jax.devices()[:1]),
        prompt_width=256,
        new_tokens=ring,
        micro_batch=0,
        ends=ENDS,
        slots=slots,
        chunk=32,
    )
    state = jax.eval_shape(lambda: steps.empty(slots, ring))
    how = tuple(np.float32(0) for _ in range(5))
    halt = np.zeros(slots, bool)
    lowered = steps.decode._jitted.lower(
        steps.params_like, state, halt, how, np.int32(32), np.int32(0)
    )
    memory = lowered.compile(compiler_options=tiny_devices.DEFAULT).memory_analysis()
    one = state.recent[0][0].size * 4
    cache = sum(leaf.size * 4 for leaf in jax.tree.leaves((state.prompt, state.recent)))
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
    assert len({tuple(key), *(tuple(completion_key(*other)) for other in others)}) == 1 + len(
        others
    )


def compare_meshes():
    """Run in a process with eight devices: every mesh gives what is written without a cache on one."""
    for sizes in MESHES:
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        steps = dataclasses.replace(tiny_engines.make_steps(16, 8, mesh), sizes=(16, 8))
        params = to_device(
            jax.device_get(make_params()),
            jax.tree.map(lambda leaf: leaf.sharding, steps.params_like),
        )
        engine = dataclasses.replace(make_engine(16, 8), steps=steps)
        assert_same_texts(completions(ask(engine, params=params)), expected())
        print("equal", *sizes)


def test_every_mesh_gives_the_same_texts():
    assert output_on_devices(compare_meshes).count("equal") == len(MESHES)
