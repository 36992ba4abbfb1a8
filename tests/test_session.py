"""Laws of sessions: the order of events, slots that change, policies that change.

And nothing is compiled once an engine is warm.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxgrpo import programs as programs_module
from jaxgrpo.rollout.groups import FinishedCompletion
from jaxgrpo.types import SamplingParams
from tests import tiny_engines
from tests.tiny_engines import (
    GROUP,
    NEW,
    PROBLEMS,
    ask,
    assert_same_texts,
    completions,
    expected_rows,
    make_engine,
    make_params,
    make_problems,
    start_session,
    watching_decode,
    written_without_a_cache,
)


@pytest.fixture(scope="module")
def changing():
    """Returns an engine that is warm, with 8 slots, in the end 4.

    Its rings have 8, 16 and 32 columns, where a run's have 256 and more.
    """
    halves = programs_module._halves
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            programs_module,
            "_halves",
            lambda slots, _, multiple: halves(slots, 4, multiple),
        )
        monkeypatch.setattr(programs_module, "_ring_lengths", lambda _: (8, 16, 32))
        programs = tiny_engines.make_programs(8, 5)
    assert (programs.slot_counts, programs.ring_lengths) == ((8, 4), (8, 16, 32))
    engine = dataclasses.replace(make_engine(4, 8), programs=programs)
    engine.warm_up(make_params())
    return engine


def test_longer_rings_and_fewer_slots_change_nothing(changing):
    seen = set()

    def look(arguments, _):
        state = arguments[1]
        seen.add((state.active.shape[0], state.cache[0][1].shape[2]))

    assert_same_texts(
        completions(ask(watching_decode(changing, look))), expected_rows()
    )
    assert {slots for slots, _ in seen} == {8, 4}
    assert {ring_length for _, ring_length in seen} == {16, 32}


def test_rows_that_start_later_find_their_slots(changing):
    """One row of each group starts, all others when it has ended, or those of p2 and p5 never.

    As long as a group may go on there are no fewer slots: at the end of the problems, too.
    """
    session = start_session(changing, screened=1)
    groups = {}
    for event in session:
        if isinstance(event, tuple):
            groups[event[0]] = event[1]
        if event is None:
            for index in list(session._screening._undecided):
                session.decide(index, goes_on=index not in (2, 5))
    in_order = [groups[index] for index in range(len(PROBLEMS))]
    assert [len(group.texts) for group in in_order] == [3, 3, 1, 3, 3, 1, 3]
    kept = [place for place in range(21) if place not in (7, 8, 16, 17)]
    expected = expected_rows()
    assert_same_texts(completions(in_order), [expected[place] for place in kept])


def test_a_ring_grows_with_the_rows_that_are_there(changing):
    """It has no more columns than the longest prompt and completion of the session need."""
    seen = set()

    def look(arguments, _):
        seen.add(arguments[1].cache[0][1].shape[2])

    engine = watching_decode(changing, look)
    short = make_problems(count=3, longest=3)
    groups = ask(engine, problems=short, max_tokens=5)
    assert seen == {8}
    assert_same_texts(
        completions(groups),
        completions(ask(make_engine(8, 8), problems=short, max_tokens=5)),
    )


@pytest.mark.parametrize("longest", [8, 200, 300, 496, 768, 1024, 2560, 40_000])
def test_ring_lengths_are_few_and_of_whole_tiles(longest):
    *shorter, last = programs_module._ring_lengths(longest)
    assert last == longest
    assert len(shorter) < 4
    assert all(length % 128 == 0 and length >= 256 for length in shorter)
    # None is so near the next that it would not be worth a program.
    steps = np.diff([0, *shorter, last])
    assert min(steps) * 2 >= max(steps) or not shorter


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
    session = start_session(
        make_engine(4, 1), sampling=sampling, max_tokens_of=max_tokens_of
    )
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
    groups = dict(
        event for event in [*early_events, *events] if isinstance(event, tuple)
    )
    mixed_rows = 0
    for index in sorted(groups):
        group = groups[index]
        for row, (tokens, logprobs) in enumerate(
            expected_rows()[index * GROUP : (index + 1) * GROUP]
        ):
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
    assert_same_texts(
        completions(groups), expected_rows()[: before * GROUP] + later[before * GROUP :]
    )


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
    assert_same_texts(
        completions([groups[index] for index in sorted(groups)]), expected_rows()
    )
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
    steps = np.concatenate(
        [group.policy_steps[group.completion_mask] for group in groups]
    )
    assert len(tokens_of_step) > 3
    assert {
        step: int(np.sum(steps == step)) for step in tokens_of_step
    } == tokens_of_step


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
            groups_after_other_texts += len(texts) > GROUP * (
                groups_after_other_texts + 1
            )
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
    for program in (
        programs.prefill,
        programs.insert,
        programs.decode,
        programs.compact,
    ):
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
        problems = [
            PROBLEMS[i] for i in rng.permutation(len(PROBLEMS))[: rng.integers(1, 4)]
        ]
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
