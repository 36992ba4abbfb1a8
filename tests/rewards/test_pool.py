"""The pool of workers: whatever a reward does, it answers in order, in time, and leaves nothing."""

import functools
import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import CancelledError

import hostile_rewards
import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, Weighted
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.workers import process
from jaxgrpo.rewards.workers.pool import Missing, Pool, reward_name
from jaxgrpo.rewards.workers.worker import find_reward

linux = pytest.mark.skipif(
    sys.platform != "linux",
    reason="other systems' workers are fresh processes without such limits",
)

PROBLEM = Problem("1", "question", "42", language="ko", meta={"value": 10})


def start(*names, workers=1, deadline=10.0, **options):
    return Pool(
        {name: Weighted(getattr(hostile_rewards, name)) for name in names},
        workers,
        deadline,
        **options,
    )


def verdicts(names, texts, **options):
    with start(*names, **options) as pool:
        return pool.result(pool.submit(PROBLEM, texts))


def test_results_are_in_order_with_every_reward_of_every_text():
    with start("length", "is_answer", workers=2) as pool:
        texts = [
            ["x" * (group * 7 + i) for i in range(4)] + ["42"] for group in range(20)
        ]
        tickets = [pool.submit(PROBLEM, group) for group in texts]
        for group, ticket in zip(texts, tickets, strict=True):
            expected = [
                {"length": float(len(text)), "is_answer": float(text == "42")}
                for text in group
            ]
            assert pool.result(ticket) == expected
        assert pool.result(pool.submit(PROBLEM, [])) == []


def test_numbers_of_all_kinds_become_floats():
    (values,) = verdicts(["is_answer", "numpy_is_answer", "half", "length"], ["42"])
    assert values == {
        "is_answer": 1.0,
        "numpy_is_answer": 1.0,
        "half": 0.5,
        "length": 2.0,
    }
    assert all(type(value) is float for value in values.values())


def test_what_is_no_finite_number_is_missing_with_a_reason_and_never_zero():
    reasons = {
        "raise_error": "ZeroDivisionError",
        "ask_to_exit": "SystemExit",
        "not_a_number": "not finite",
        "infinity": "not finite",
        "nothing": "not a number",
        "words": "not a number",
        "huge": "OverflowError",
    }
    (values,) = verdicts(reasons, ["text"])
    assert values == {name: Missing(reason) for name, reason in reasons.items()}
    assert all(value != 0.0 for value in values.values())
    with pytest.raises(TypeError):
        sum(values.values())


def test_a_reward_without_a_hash_is_one_like_any_other():
    with Pool({"reward": Weighted(hostile_rewards.NotFrozen(0.5))}, 1, 10.0) as pool:
        values = pool.result(pool.submit(PROBLEM, ["42", "41", "41"]))
    assert [value["reward"] for value in values] == [
        0.5,
        Missing("ZeroDivisionError"),
        Missing("ZeroDivisionError"),
    ]


@pytest.mark.parametrize("name", ["sleep_forever", "hold_the_gil", "ignore_signals"])
def test_a_verdict_that_takes_too_long_is_missing_and_the_rest_is_not_lost(name):
    before = time.monotonic()
    values = verdicts(["length", name], ["a"], deadline=0.3)
    assert values == [{"length": 1.0, name: Missing("timeout")}]
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("text", "reward"), [("sleep", "sleep_on_request"), ("exit", "exit_on_request")]
)
def test_a_lost_worker_costs_the_verdict_it_was_at(text, reward):
    with start(reward, "length", deadline=0.3) as pool:
        first = pool.submit(PROBLEM, ["a", text, "bb"])
        second = pool.submit(PROBLEM, ["ccc"])
        lost = Missing({"sleep": "timeout", "exit": "crash"}[text])
        assert [values[reward] for values in pool.result(first)] == [1.0, lost, 2.0]
        assert [values["length"] for values in pool.result(first)] == [1, len(text), 2]
        assert pool.result(second) == [{reward: 3.0, "length": 3.0}]


def test_a_worker_that_dies_between_tickets_costs_nothing():
    with start("exit_after_the_verdict") as pool:
        for _ in range(2):
            assert pool.result(pool.submit(PROBLEM, ["text"])) == [
                {"exit_after_the_verdict": 1.0}
            ]
            time.sleep(0.15)


def test_the_deadline_is_for_a_single_verdict():
    assert (
        verdicts(["sleep_a_little"], ["text"] * 5, deadline=0.4)
        == [{"sleep_a_little": 1.0}] * 5
    )


def test_submit_does_not_wait_and_other_workers_go_on():
    with start("sleep_on_request", workers=2, deadline=60.0) as pool:
        before = time.monotonic()
        stuck = pool.submit(PROBLEM, ["sleep"])
        tickets = [pool.submit(PROBLEM, ["x" * 100_000]) for _ in range(20)]
        assert time.monotonic() - before < 1
        assert all(
            pool.result(ticket) == [{"sleep_on_request": 100_000.0}]
            for ticket in tickets
        )
        assert not stuck.verdicts.done()


def test_what_is_cancelled_is_not_computed_and_disturbs_nothing():
    with start("sleep_a_little", "length") as pool:
        first, second, third = (
            pool.submit(PROBLEM, [text]) for text in ("a", "bb", "ccc")
        )
        pool.cancel(second)
        assert pool.result(first)[0]["length"] == 1.0
        assert pool.result(third)[0]["length"] == 3.0
        with pytest.raises(CancelledError):
            pool.result(second)
        pool.cancel(first)  # too late, and harmless
        assert pool.result(first)[0]["length"] == 1.0


def test_printing_and_reading_do_not_disturb_the_protocol():
    assert verdicts(["print_and_read", "length"], ["a", "bb"]) == [
        {"print_and_read": 7.0, "length": 1.0},
        {"print_and_read": 7.0, "length": 2.0},
    ]


def test_a_reward_that_writes_into_the_protocol_is_a_crash():
    assert verdicts(["scribble", "length"], ["a"]) == [
        {"scribble": Missing("crash"), "length": 1.0}
    ]


def test_problem_and_text_arrive_as_they_were():
    assert verdicts(["meta_echo"], ["\ud800 é \u2028 \n"]) == [{"meta_echo": 12.0}]


def test_tokens_and_ends_arrive_with_the_text_and_are_missing_of_a_plain_one():
    texts = [Completion("\ud800 é", 3), Completion("", 0, finished=False), "plain"]
    values = verdicts(["length_and_end", "length"], texts)
    assert [value["length_and_end"] for value in values] == [
        3.5,
        0.0,
        Missing("AttributeError"),
    ]
    assert [value["length"] for value in values] == [3.0, 0.0, 5.0]


def test_a_reward_that_closes_every_descriptor_is_a_crash():
    assert verdicts(["close_all_descriptors", "length"], ["a"]) == [
        {"close_all_descriptors": Missing("crash"), "length": 1.0}
    ]


@linux
def test_a_lost_worker_is_replaced_by_another_with_the_same_imports():
    with start("exit_on_request", "process_id", "importing_process_id") as pool:
        values = pool.result(pool.submit(PROBLEM, ["a", "exit", "b", "exit", "c"]))
    assert [value["exit_on_request"] for value in values] == [
        1.0,
        Missing("crash"),
        1.0,
        Missing("crash"),
        1.0,
    ]
    processes = {value["process_id"] for value in values}
    (imported,) = {value["importing_process_id"] for value in values}
    assert len(processes) == 3
    assert imported not in processes


@linux
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_reward_that_strikes_its_parent_costs_its_own_verdict(monkeypatch, name):
    monkeypatch.setattr(process, "_REAP_SECONDS", 0.5)
    with start("strike_the_parent_on_request", "length") as pool:
        values = pool.result(pool.submit(PROBLEM, ["a", name, "b"]))
    assert [value["strike_the_parent_on_request"] for value in values] == [
        1.0,
        Missing("crash"),
        1.0,
    ]
    assert [value["length"] for value in values] == [1, len(name), 1]


@linux
def test_a_reward_that_strikes_its_parent_costs_other_workers_nothing():
    with start("strike_the_parent_on_request", "sleep_a_little", workers=2) as pool:
        others = [pool.submit(PROBLEM, ["a"] * 4) for _ in range(2)]
        strikes = [pool.submit(PROBLEM, ["SIGKILL", "a"]) for _ in range(3)]
        values = [value for ticket in others + strikes for value in pool.result(ticket)]
    lost = [
        value
        for value in values
        if isinstance(value["strike_the_parent_on_request"], Missing)
    ]
    assert len(lost) == 3
    assert all(value["sleep_a_little"] == 1.0 for value in values)


@linux
def test_when_the_process_that_imported_dies_another_does():
    with start("importing_process_id", workers=2) as pool:

        def importing_ids():
            values = [pool.result(pool.submit(PROBLEM, ["a"]))[0] for _ in range(8)]
            return {value["importing_process_id"] for value in values}

        (first,) = importing_ids()
        os.kill(int(first), signal.SIGKILL)
        time.sleep(0.3)  # those that it forked die with it
        (second,) = importing_ids()
    assert second != first


def test_what_a_reward_has_started_dies_with_it(tmp_path):
    values = verdicts(
        ["start_a_process_and_hang", "length"], [str(tmp_path / "id")], deadline=0.5
    )
    assert values[0]["start_a_process_and_hang"] == Missing("timeout")
    started = int((tmp_path / "id").read_text())
    until = time.monotonic() + 10
    # Its parent is dead, too, so the system's first process has to wait for it.
    while is_alive(started) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(started)


def test_a_worker_has_loaded_what_a_call_would_import():
    rewards = {
        "accuracy": Weighted(verifier.accuracy),
        "loaded": Weighted(hostile_rewards.imports_math_verify),
    }
    with Pool(rewards, 1, 10.0) as pool:
        assert pool.result(pool.submit(PROBLEM, [r"\boxed{42}"])) == [
            {"accuracy": 1.0, "loaded": 1.0}
        ]


def test_a_worker_has_not_imported_jax():
    assert verdicts(["imports_jax"], ["text"]) == [{"imports_jax": 0.0}]


@linux
def test_memory_is_bounded():
    assert verdicts(["eat_memory"], ["text"], memory=2**30) == [
        {"eat_memory": Missing("MemoryError")}
    ]


def nested():
    def reward(problem, text):
        return 1.0

    return reward


def named(module, qualname):
    reward = nested()
    reward.__module__, reward.__qualname__ = module, qualname
    return reward


@pytest.mark.parametrize(
    "reward",
    [
        lambda problem, text: 1.0,
        nested(),
        functools.partial(hostile_rewards.length),
        named("__main__", "reward"),
        named("no_such_module", "reward"),
        named("hostile_rewards", "no_such_reward"),
        named("hostile_rewards", "not_callable"),
        named("hostile_rewards", "length"),
    ],
    ids=lambda reward: getattr(reward, "__qualname__", type(reward).__name__),
)
def test_a_reward_that_workers_cannot_import_is_refused_in_one_line(reward):
    with pytest.raises(UserError) as error:
        Pool(
            {"good": Weighted(hostile_rewards.length), "bad": Weighted(reward)}, 1, 1.0
        )
    assert "\n" not in str(error.value)


def test_reward_names_find_the_reward():
    assert reward_name(hostile_rewards.length) == "hostile_rewards:length"
    assert find_reward("hostile_rewards:length") is hostile_rewards.length


def test_a_module_that_only_the_parent_has_is_refused_by_the_workers(monkeypatch):
    module = types.ModuleType("made_up_in_the_parent")
    module.reward = named("made_up_in_the_parent", "reward")
    monkeypatch.setitem(sys.modules, "made_up_in_the_parent", module)
    with pytest.raises(
        UserError,
        match="importing made_up_in_the_parent failed with ModuleNotFoundError",
    ):
        Pool({"reward": Weighted(module.reward)}, 2, 1.0)


def write_module(folder, monkeypatch, name, text):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return __import__(name)


KILLS_THE_WORKER = """
import os, sys
'pytest' in sys.modules or os._exit(3)
def reward(problem, text): return 1.0
"""


def test_a_module_that_kills_the_worker_is_refused(tmp_path, monkeypatch):
    module = write_module(tmp_path, monkeypatch, "kills_the_worker", KILLS_THE_WORKER)
    with pytest.raises(UserError, match="did not get through importing"):
        Pool({"reward": Weighted(module.reward)}, 1, 1.0)


HAS_A_THREAD = """
import os, sys, threading
'pytest' in sys.modules or threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


IMPORTING_ID = """
imported = os.getpid()
def reward(problem, text): return imported if text else os._exit(1)
"""


def test_a_module_that_starts_a_thread_is_imported_by_every_worker_afresh(
    tmp_path, monkeypatch
):
    module = write_module(
        tmp_path, monkeypatch, "has_a_thread", HAS_A_THREAD + IMPORTING_ID
    )
    rewards = {
        "reward": Weighted(module.reward),
        "id": Weighted(hostile_rewards.process_id),
    }
    with Pool(rewards, 1, 10.0) as pool:
        first, lost, second = pool.result(pool.submit(PROBLEM, ["a", "", "b"]))
    assert lost["reward"] == Missing("crash")
    assert first["reward"] == first["id"] != second["id"] == second["reward"]


LEAVES_NO_FORK = """
import mmap, os, signal, sys, threading
sys.path[:] = {path!r}
from jaxgrpo.rewards.workers.worker import is_fork_safe
assert is_fork_safe({{0, 1, 2}})
file = open(os.devnull)
assert not is_fork_safe({{0, 1, 2}})
assert is_fork_safe({{0, 1, 2, file.fileno()}})
file.close()
shared = mmap.mmap(-1, 4096)
assert not is_fork_safe({{0, 1, 2}})
shared.close()
process = os.fork() or signal.pause()
assert not is_fork_safe({{0, 1, 2}})
os.kill(process, signal.SIGKILL)
os.waitpid(process, 0)
assert is_fork_safe({{0, 1, 2}})
threading.Thread(target=threading.Event().wait, daemon=True).start()
assert not is_fork_safe({{0, 1, 2}})
"""


@linux
def test_a_process_with_threads_files_children_or_shared_memory_is_no_template():
    program = LEAVES_NO_FORK.format(path=sys.path)
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def test_a_replacement_that_does_not_start_is_an_error_not_a_hang(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = HAS_A_THREAD + "def reward(problem, text): os._exit(1)\n"
    module = write_module(tmp_path, monkeypatch, "soon_gone", text)
    with Pool({"reward": Weighted(module.reward)}, 1, 1.0) as pool:
        for file in tmp_path.rglob("soon_gone*"):
            file.unlink()
        with pytest.raises(UserError, match="soon_gone"):
            pool.result(pool.submit(PROBLEM, ["a", "b"]))


@pytest.mark.parametrize(
    ("workers", "deadline"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))]
)
def test_impossible_settings_are_refused(workers, deadline):
    with pytest.raises(UserError):
        start("length", workers=workers, deadline=deadline)


def test_a_pool_without_rewards_is_refused():
    with pytest.raises(UserError):
        Pool({}, 1, 1.0)


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_close_leaves_no_process_whatever_the_workers_are_doing():
    with (  # noqa: PT012
        pytest.raises(KeyError),
        start("process_id", "sleep_on_request", workers=2, deadline=60.0) as pool,
    ):
        ids = {
            int(pool.result(pool.submit(PROBLEM, [""]))[0]["process_id"])
            for _ in range(50)
        }
        assert all(map(is_alive, ids))
        tickets = [pool.submit(PROBLEM, ["sleep"]) for _ in range(4)]
        time.sleep(0.2)
        before = time.monotonic()
        raise KeyError
    assert time.monotonic() - before < 3
    assert not any(map(is_alive, ids))
    for ticket in tickets:
        with pytest.raises(CancelledError):
            pool.result(ticket)
    with pytest.raises(RuntimeError):
        pool.submit(PROBLEM, ["text"])
    pool.close()


PARENT = """
import sys, time
sys.path[:] = {path!r}
import hostile_rewards
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.workers.pool import Pool
pool = Pool({{"reward": Weighted(hostile_rewards.hang_on_request)}}, 2, 100.0)
problem = Problem("1", "question", "42")
pool.result(pool.submit(problem, ["text"]))
for _ in range(2):
    pool.submit(problem, [{text!r}])
time.sleep(0.1)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize(
    "text", ["sleep", "hold the GIL"] if sys.platform == "linux" else ["sleep"]
)
def test_workers_die_with_a_killed_parent(text):
    program = PARENT.format(path=sys.path, text=text)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdout.readline() == b"ready\n"
    parent.kill()
    parent.communicate(
        timeout=10
    )  # the workers hold stderr: it ends when the last of them is gone
