"""Laws of the engine: what a row says depends on nothing that happens around it.

Nor does it depend on any size that was chosen for speed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import programs as programs_module
from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.device.specs import ModelSpec, SamplingSpec
from jaxgrpo.distributed.mesh import make_mesh, to_device
from jaxgrpo.models import attention, transformer
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.programs import compile_sampling
from jaxgrpo.rollout.groups import FinishedCompletion, SamplingRequest
from jaxgrpo.rollout.pending import completion_key
from jaxgrpo.types import SamplingParams
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
    uncached_logits,
    watching_decode,
    written_without_a_cache,
)

PROBLEMS = make_problems()
KEY_NAME = "3/5/training"
"""Seed, step and purpose, which a session's random keys are made of."""
MESHES = ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 8, 1))
"""Each of them decodes; in those with fsdp, activations move and matrices do not."""


def make_request(sampling=None, group_size=GROUP, **changes):
    """Returns a request for training, by default of groups at temperature 1."""
    return SamplingRequest(group_size, sampling or SamplingParams(), "training", **changes)


def ask(engine, sampling=None, params=None, problems=PROBLEMS, group_size=GROUP, step=5, **changes):
    """Returns the groups of all problems; changes: fields of the request."""
    request = make_request(sampling, group_size, **changes)
    return engine(params or make_params(), problems, request, step)


def start_session(engine, problems=PROBLEMS, **changes):
    """Returns a session of step 5; changes: fields of the request."""
    return engine.session(make_params(), problems, make_request(**changes), 5)


@functools.cache
def expected(temperature=1.0):
    """Returns the rows that everything must be equal to."""
    return written_without_a_cache(make_params(), PROBLEMS, GROUP, KEY_NAME, temperature)


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
    sampling = SamplingParams(temperature)
    groups = ask(make_engine(4, 8), sampling)
    assert_same_texts(completions(groups), expected(temperature))
    next_step = ask(make_engine(4, 8), sampling, step=6)
    assert (completions(groups) == completions(next_step)) == (temperature == 0)


@pytest.mark.parametrize("width", [WIDTH + 5, 4 * WIDTH])
def test_the_width_of_the_left_padding_changes_nothing(width):
    groups = ask(make_engine(4, 8, width))
    assert {group.tokens.shape for group in groups} == {(GROUP, width + NEW)}
    assert_same_texts(completions(groups), expected())


@pytest.fixture(scope="module")
def changing():
    """Returns an engine that is warm, with 8 slots, in the end 4.

    Its rings have 12 and 24 columns, where a run's have 128 and more.
    """
    halves = programs_module._halves

    def few_halves(largest, smallest, multiple):
        return halves(largest, 12 if largest == NEW else 4, multiple)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(programs_module, "_halves", few_halves)
        programs = tiny_engines.make_programs(8, 5)
    assert (programs.slot_counts, programs.ring_lengths) == ((8, 4), (12, 24))
    engine = dataclasses.replace(make_engine(4, 8), programs=programs)
    engine.warm_up(make_params())
    return engine


def test_longer_rings_and_fewer_slots_change_nothing(changing):
    seen = set()

    def look(arguments, _):
        state = arguments[1]
        seen.add((state.active.shape[0], state.ring_cache[0][1].shape[2]))

    assert_same_texts(completions(ask(watching_decode(changing, look))), expected())
    assert {slots for slots, _ in seen} == {8, 4}
    assert {ring_length for _, ring_length in seen} == {12, 24}


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
        engine(
            make_params(), PROBLEMS, dataclasses.replace(make_request(), purpose="evaluation"), 5
        ),
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
            chosen = group.completion_mask[row]
            tokens = group.tokens[row]
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
    limits = [max_tokens_of(problem, sample) for problem in PROBLEMS for sample in range(GROUP)]
    assert limits[0] == 0  # a row that may say nothing says nothing
    cut = [
        (tokens[:limit], logprobs[:limit])
        for (tokens, logprobs), limit in zip(expected(), limits, strict=True)
    ]
    assert_same_texts(completions(groups), cut)
    finished = [bool(end) for group in groups for end in group.finished]
    assert finished == [bool(tokens) and tokens[-1] in ENDS for tokens, _ in cut]
    for limit in (1, 5, NEW + 9):
        cut = [(tokens[:limit], logprobs[:limit]) for tokens, logprobs in expected()]
        assert_same_texts(completions(ask(engine, max_tokens=limit)), cut)


def test_no_row_ends_before_it_has_the_fewest_tokens():
    groups = ask(make_engine(4, 8), SamplingParams(min_tokens=9))
    uncached = written_without_a_cache(make_params(), PROBLEMS, GROUP, KEY_NAME, min_tokens=9)
    assert_same_texts(completions(groups), uncached)
    assert min(len(tokens) for tokens, _ in completions(groups)) > 9
    assert min(len(tokens) for tokens, _ in expected()) < 9


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
    groups = ask(make_engine(slots, chunk), stop=stops)
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
    """A control token ends rows, alone and within a stop string; rewards do not see it."""
    rows = [tokens for tokens, _ in expected()]
    row = next(tokens for tokens in rows if len(tokens) > 8)
    control = row[3]
    engine = make_engine(4, chunk)
    hiding = dataclasses.replace(TOKENIZER, control_ids=frozenset({control}))
    for stop in (TOKENIZER.decode_all(row[3:4]), TOKENIZER.decode_all(row[2:6])):
        groups = ask(dataclasses.replace(engine, tokenizer=hiding), stop=(stop,))
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
    stop = ("think", "A")
    groups = ask(opening, stop=stop)
    plain = ask(make_engine(4, 8), stop=stop)
    assert completions(groups) == completions(plain)
    for group, other in zip(groups, plain, strict=True):
        assert group.texts == ["<think>\n" + text for text in other.texts]
        assert [text.tokens for text in group.texts] == [text.tokens for text in other.texts]


@pytest.mark.parametrize(("slots", "chunk"), [(4, 1), (4, 8), (16, 8), (64, 32)])
def test_usage_counts_tokens_steps_and_prompts(slots, chunk):
    slot_steps = []

    def look(_, result):
        output = result[1]
        slot_steps.append(int(output.num_steps) * len(output.num_tokens))

    session = start_session(watching_decode(make_engine(slots, chunk), look))
    groups = list(session.groups())
    usage = session.usage
    assert len(groups) == session.launched == len(PROBLEMS)
    assert usage.tokens == sum(len(tokens) for tokens, _ in expected())
    assert usage.tokens <= usage.slot_steps == sum(slot_steps)
    assert 0 < usage.idle_seconds < usage.seconds
    if slots == 4:
        assert usage.tokens > 0.5 * usage.slot_steps  # slots are used again


def test_problems_are_taken_as_slots_become_free_and_no_sooner():
    taken = []

    def problems():
        for problem in make_problems(40):
            taken.append(problem.id)
            yield problem

    engine = make_engine(4, 8)
    session = start_session(engine, problems())
    first = next(session.groups())
    assert len(taken) == session.launched <= 2 + 2 * engine.programs.prompts_per_prefill
    assert first[1].problem.id in taken


def test_groups_come_when_they_are_ready_and_their_indices_say_which():
    """The first has rows of up to 24 tokens, the others of one."""

    def max_tokens_of(problem, sample):
        return NEW if problem.id == "p0" else 1

    sampling = SamplingParams(min_tokens=NEW)
    session = start_session(make_engine(4, 1), sampling=sampling, max_tokens_of=max_tokens_of)
    groups = list(session.groups())
    assert [index for index, _ in groups] == [1, 2, 3, 4, 5, 6, 0]
    assert all(group.problem == PROBLEMS[index] for index, group in groups)


def test_a_new_policy_goes_on_with_what_the_old_one_wrote():
    """Every token says which step's policy wrote it.

    What the first wrote is what it would have written anyway.
    """
    other_params = jax.tree.map(lambda leaf: leaf * 1.5, make_params())
    session = start_session(make_engine(16, 1))
    events = iter(session)
    early_events = [next(events) for _ in range(6)]  # a few tokens of every row
    session.set_policy(other_params, 6)
    groups = dict(event for event in [*early_events, *events] if isinstance(event, tuple))
    mixed_rows = 0
    for index in sorted(groups):
        group = groups[index]
        for row, (tokens, logprobs) in enumerate(expected()[index * GROUP : (index + 1) * GROUP]):
            chosen = group.completion_mask[row]
            steps = group.policy_steps[row, chosen]
            count = int(np.sum(group.policy_steps[row] == 5))
            assert set(steps) <= {5, 6}
            assert (np.diff(steps) >= 0).all()
            assert group.tokens[row, chosen][:count].tolist() == tokens[:count]
            np.testing.assert_allclose(
                group.logprobs[row, chosen][:count], logprobs[:count], atol=1e-4
            )
            mixed_rows += 0 < count < len(steps)
    assert mixed_rows > 3


def test_a_group_has_the_random_numbers_of_the_step_that_launched_it():
    """Where the policy stays what it was, so does every text, of rows that had not begun, too."""
    session = start_session(make_engine(4, 1))
    events = iter(session)
    while session.launched < 2:
        next(events)
    assert session.launched * GROUP > 4  # rows wait for a slot
    before = session.launched
    session.set_policy(make_params(), 6)
    by_index = dict(event for event in events if isinstance(event, tuple))
    groups = [by_index[index] for index in sorted(by_index)]
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


def test_a_session_holds_problems_back_and_goes_on_when_it_may(changing):
    """At the bound it neither ends nor gives up slots, and what it writes is the same."""
    slot_counts = []

    def look(arguments, _):
        slot_counts.append(arguments[1].active.shape[0])

    session = start_session(watching_decode(changing, look))
    before = compiled_versions(changing.programs)
    groups = {}
    nones_in_a_row = 0
    session.max_launched = 1
    for event in session:
        if isinstance(event, tuple):
            groups[event[0]] = event[1]
        nones_in_a_row = nones_in_a_row + 1 if event is None else 0
        assert session.launched <= session.max_launched
        if nones_in_a_row == 4:  # nothing is under way, and the session does not end
            assert len(groups) == session.launched == session.max_launched
            assert set(slot_counts) == {8}
            session.max_launched += 3
    assert session.launched == len(PROBLEMS)
    assert_same_texts(completions([groups[index] for index in sorted(groups)]), expected())
    assert compiled_versions(changing.programs) == before


def test_the_call_that_is_under_way_is_the_earlier_policys():
    """Its tokens say so, and are counted there: of each step as many as carry its number."""
    session = start_session(make_engine(4, 2))
    tokens_of_step = {}
    groups = []
    for event in session:
        if isinstance(event, tuple):
            groups.append(event[1])
        if event is None and session.launched >= len(tokens_of_step) + 2:
            step = 5 + len(tokens_of_step)
            session.wait_for_call()
            tokens_of_step[step] = session.usage.tokens
            session.set_policy(make_params(), step + 1)
    tokens_of_step[5 + len(tokens_of_step)] = session.usage.tokens
    steps = np.concatenate([group.policy_steps[group.completion_mask] for group in groups])
    assert len(tokens_of_step) > 3
    assert {step: int(np.sum(steps == step)) for step in tokens_of_step} == tokens_of_step


def test_texts_come_as_they_end_and_before_their_groups():
    session = start_session(make_engine(4, 8))
    texts = {}
    groups_after_other_texts = 0
    for event in session:
        if isinstance(event, FinishedCompletion):
            assert event.problem == PROBLEMS[event.index]
            texts[event.index, event.sample] = event.text
        elif event:
            index, group = event
            assert group.texts == [texts[index, sample] for sample in range(GROUP)]
            groups_after_other_texts += len(texts) > GROUP * (groups_after_other_texts + 1)
    assert len(texts) == GROUP * len(PROBLEMS)
    # Texts of the next groups had ended when a group was complete.
    assert groups_after_other_texts > 0


def test_no_problems_are_no_groups():
    assert ask(make_engine(4, 8), problems=[]) == []


def compiled_versions(programs):
    """Returns how many compiled versions of every program there are."""
    sealed = [programs.prefill, programs.insert, programs.decode, programs.compact]
    jitted = [programs.publish, programs.empty_state, programs.grow]
    return [
        *(program.compiled for program in sealed),
        *(function._cache_size() for function in jitted),
    ]


def test_two_hundred_steps_of_changing_settings_compile_nothing(changing):
    """Lengths change, too: prompts, completions and the number of rows.

    So slots are compacted and rings grow.
    """
    engine = changing
    params = make_params()
    rng = np.random.default_rng(0)
    programs = engine.programs
    before = compiled_versions(programs)
    for program in (programs.prefill, programs.insert, programs.decode, programs.compact):
        assert program.sealed
    num_tokens = 0
    for step in range(200):
        sampling = SamplingParams(
            temperature=float(rng.choice([0.0, 0.5, 1.0, 1.3])),
            top_k=int(rng.integers(0, 9)),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.05])),
            min_tokens=int(rng.integers(0, 3)),
        )
        max_tokens = int(rng.choice([1, 3, 5, 16]))
        seeded = dataclasses.replace(engine, seed=int(rng.integers(0, 2**31)))
        problems = [PROBLEMS[i] for i in rng.permutation(len(PROBLEMS))[: rng.integers(1, 4)]]
        groups = ask(
            seeded,
            sampling,
            params,
            problems,
            group_size=int(rng.integers(1, 5)),
            step=step,
            max_tokens=max_tokens,
            stop=("A",) if step % 3 else (),
        )
        num_tokens += sum(len(tokens) for tokens, _ in completions(groups))
    assert num_tokens > 1000
    assert compiled_versions(programs) == before


def test_a_compile_after_warm_up_is_an_error():
    programs = tiny_engines.make_programs(4, 3)
    compact = programs.compact
    state = programs.empty_state(4, NEW)
    compact(state, np.arange(2, dtype=np.int32))
    compact.seal()
    compact(state, np.arange(2, dtype=np.int32))
    with pytest.raises(
        RuntimeError, match=r"compact was compiled again after warm-up, for .*int32"
    ):
        compact(state, np.arange(3, dtype=np.int32))


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
    return token_logprobs(hidden, embedding, tokens, temperature, softcap=NETWORK.logit_softcap)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_groups_arrays_score_as_the_engine_says(temperature):
    for group in ask(make_engine(4, 8), SamplingParams(temperature))[:3]:
        logprobs = scored(make_params(), group.tokens, group.attention_mask, temperature)
        gap = np.where(group.completion_mask, logprobs - group.logprobs, 0.0)
        assert np.abs(gap).max() < 1e-4


def test_bfloat16_log_probabilities_stay_near():
    """Decoding is in bfloat16, scoring in float32.

    They differ by a twentieth of a nat on average for a random network, half a nat at most.
    """
    engine = dataclasses.replace(
        make_engine(4, 8), programs=tiny_engines.make_programs(4, 8, dtype=jnp.bfloat16)
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
    logits = np.asarray(uncached_logits(1, tokens.shape[1])(make_params(), tokens, lengths))[0]
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
    ring_length = 256
    programs = compile_sampling(
        ModelSpec(network, make_mesh(devices=jax.devices()[:1])),
        SamplingSpec(prompt_width=256, new_tokens=ring_length, slots=slots, eos_ids=ENDS, chunk=32),
    )
    state = jax.eval_shape(lambda: programs.empty_state(slots, ring_length))
    sampling = SamplingParams(*(np.float32(0) for _ in range(5)))
    stopped = np.zeros(slots, bool)
    lowered = programs.decode._jitted.lower(
        programs.params_like, state, stopped, sampling, np.int32(32), np.int32(0)
    )
    memory = lowered.compile(compiler_options=tiny_devices.DEFAULT).memory_analysis()
    one = state.ring_cache[0][0].size * 4
    cache = sum(leaf.size * 4 for leaf in jax.tree.leaves((state.prompt_cache, state.ring_cache)))
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
        programs = dataclasses.replace(tiny_engines.make_programs(16, 8, mesh), slot_counts=(16, 8))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
        params = to_device(jax.device_get(make_params()), shardings)
        engine = dataclasses.replace(make_engine(16, 8), programs=programs)
        assert_same_texts(completions(ask(engine, params=params)), expected())
        print("equal", *sizes)


def test_every_mesh_gives_the_same_texts():
    assert output_on_devices(compare_meshes).count("equal") == len(MESHES)
