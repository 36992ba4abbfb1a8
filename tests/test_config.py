"""Mistakes are told in one line that says what to do; what is right reaches the config typed."""

import dataclasses
import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jaxgrpo
from jaxgrpo import losses
from jaxgrpo.config import (
    Batch,
    Config,
    Sampling,
    catalogue,
    changes_evaluation,
    check_same,
    compare,
    describe,
    load,
    load_sft,
    loader,
    overrides,
    parse_command_line,
    parse_sft_command_line,
    save,
    sizes,
    text_settings,
    validate,
)
from jaxgrpo.config.bounds import marked
from jaxgrpo.config.command_line import run_main
from jaxgrpo.config.loader import find_file, shipped_configs
from jaxgrpo.config.objective_names import OBJECTIVES, make_objective
from jaxgrpo.config.resume import MOVED
from jaxgrpo.config.schema import any_config
from jaxgrpo.config.sft_schema import any_sft_config
from jaxgrpo.errors import UserError
from jaxgrpo.models.lora import Lora
from jaxgrpo.problems import Driven, Weighted

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Part:
    share: float = 1


@dataclass(frozen=True)
class Data:
    """Problems of nobody's.

    languages: those of the problems,
        of all of them
    levels: theirs
    """

    languages: tuple[str, ...] = ("en",)
    levels: tuple[int, ...] = (1, 2)
    limit: int | None = None
    shuffle: bool = True
    parts: tuple[Part, ...] = (Part(), Part(2))

    def __post_init__(self):
        if "xx" in self.languages:
            raise ValueError("no such language: xx")

    def train(self):
        return []

    heldout = train


def right(problem, text):
    return 1.0


def make(**changes):
    rewards = {"accuracy": Weighted(right), "my-language": Weighted(right)}
    rewards["my-language"].weight = 1  # as people write it
    return Config(**({"data": Data(), "rewards": rewards} | changes))


FILE = """
import test_config

def get_config():
    return test_config.make()
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    # Restores sys.path, to which load adds the file's folder.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_config", sys.modules[__name__])
    path = tmp_path / "run_config.py"
    path.write_text(FILE)
    yield str(path)
    sys.modules.pop("run_config", None)


def message(function, *arguments):
    """Returns what the UserError of a call says."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("flag", "name", "expected"),
    [
        ("batch.groups=16", "batch.groups", 16),
        ("sampling.temperature=1", "sampling.temperature", 1.0),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("objective.kl=0.1", "objective.kl", 0.1),
        ("rewards.my-language.weight=0.3", "rewards.my-language.weight", 0.3),
        ("mesh.data=-1", "mesh.data", -1),
        ("out=a=b", "out", "a=b"),
        ("out=1e5", "out", "1e5"),
        ("out=None", "out", "None"),
        ("model=", "model", ""),
        ("system=Think\nfirst.", "system", "Think\nfirst."),
        ('data.languages=("en","ko")', "data.languages", ("en", "ko")),
        ("data.languages=en,ko", "data.languages", ("en", "ko")),
        ("data.languages=ko", "data.languages", ("ko",)),
        ("data.levels=3,4", "data.levels", (3, 4)),
        ("data.levels=[5]", "data.levels", (5,)),
        ("data.limit=3", "data.limit", 3),
        ("data.limit=None", "data.limit", None),
        ("data.shuffle=false", "data.shuffle", False),
        ("data.parts.1.share=0.5", "data.parts.1.share", 0.5),
    ],
)
def test_an_override_changes_one_setting(file, flag, name, expected):
    before = overrides.fields(load(file))
    after = overrides.fields(load(file, [f"--config.{flag}"]))
    assert after[name].value == expected
    assert type(after[name].value) is type(expected)
    assert {key for key in before if before[key].value != after[key].value} <= {name}


def test_the_last_override_wins_and_the_original_is_left_alone():
    original = make()
    changed = overrides.override(
        original, ["--config.steps=1", "--config.objective.kl=0.5", "--config.steps=2"]
    )
    assert (changed.steps, changed.objective.kl) == (2, 0.5)
    assert original == make()


@pytest.mark.parametrize(
    ("flag", "fragments"),
    [
        (
            "--config.sampling.temprature=1",
            ["sampling.temprature", "did you mean sampling.temperature"],
        ),
        (
            "--config.temperature=1",
            ["did you mean", "sampling.temperature", "evaluation.temperature"],
        ),
        ("--config.zzz=1", ["no such setting", "--help"]),
        ("--config.lr=1", ["did you mean optimizer.learning_rate?"]),
        (
            "--config.sampling=1",
            ["group", "sampling.temperature", "sampling.prompt_width"],
        ),
        ("--config.data=1", ["group", "data.languages"]),
        ("--config.rewards.accuracy.function=print", ["no such setting"]),
        ("--config.steps=twenty", ["steps is a whole number", "'twenty'", "now 100"]),
        ("--config.steps=2.5", ["steps is a whole number", "'2.5'"]),
        ("--config.steps=", ["a whole number", "''"]),
        (
            "--config.sampling.temperature=hot",
            ["sampling.temperature is a number", "'hot'", "=1.0"],
        ),
        ("--config.data.shuffle=maybe", ["true or false", "'maybe'"]),
        ("--config.data.limit=few", ["a whole number or None"]),
        ('--config.data.languages=("en",', ["a tuple of str"]),
        ("--config.data.languages=(1, 2)", ["a tuple of str", "(1, 2)"]),
        ("--config.data.levels=en", ["a tuple of int", "'en'"]),
        (
            "--config.data.languages=xx",
            ["--config.data.languages=xx", "no such language"],
        ),
        ("--config.steps", ["--config.name=value"]),
        ("steps=3", ["--config.name=value"]),
        ("--config.batch.updates=3", ["is 3", "batch.groups=8", "2 and 4"]),
        ("--config.batch.micro_batch=7", ["is 7", "8 * 8 = 64", "4 and 8"]),
    ],
)
def test_a_wrong_override(file, flag, fragments):
    text = message(load, file, [flag])
    assert all(fragment in text for fragment in fragments), text


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_chosen_by_its_name(file, name):
    """Whichever way it is written; what it has no default for is the run's own."""
    sizes_of_the_run = [
        "--config.sampling.max_new_tokens=31",
        "--config.batch.group_size=5",
    ]
    chosen = load(file, [f"--config.objective={name}", *sizes_of_the_run]).objective
    assert type(chosen) is OBJECTIVES[name]
    assert getattr(chosen, "group_size", 5) == 5
    if name == "dr_grpo":
        assert chosen.budget == 31.0
    for other in (name.upper(), name.replace("_", "-"), name.replace("plus", "+")):
        assert make_objective(other, make()) == make_objective(name, make())


def test_the_settings_of_a_named_objective_follow_it_in_any_order(file):
    flags = ["--config.objective.clip_high=0.3", "--config.objective=dapo"]
    assert load(file, flags).objective == losses.DAPO(clip_high=0.3)
    both = ["--config.objective=rloo", "--config.objective=dapo"]
    assert load(file, both).objective == losses.DAPO()
    text = message(load, file, ["--config.objective=dapo", "--config.objective.kl=1"])
    assert "--config.objective.kl: no such setting" in text
    assert "did you mean grpo?" in message(load, file, ["--config.objective=grop"])
    assert "choose one of grpo, dr_grpo" in message(
        load, file, ["--config.objective=x"]
    )


def groups_of(node):
    """Yields a tree's dataclasses that can be changed."""
    if dataclasses.is_dataclass(node) and not node.__dataclass_params__.frozen:
        yield node
    for value, _ in overrides.children(node).values():
        yield from groups_of(value)


def test_a_mistyped_field_is_refused_where_it_is_set(file, tmp_path):
    config = load(str(ROOT / "configs" / "quickstart.py"))
    groups = list(groups_of(config))
    assert {type(group) for group in groups} >= {Config, Batch, Sampling, Weighted}
    for group in groups:
        name = dataclasses.fields(group)[0].name
        with pytest.raises(AttributeError, match=f"did you mean {name}"):
            setattr(group, f"{name}x", 16)
        setattr(group, name, getattr(group, name))
    lines = "c = make()\n    c.batch.gruop_size = 16\n    return c"
    (tmp_path / "run_config.py").write_text(
        FILE.replace(
            "return test_config.make()", lines.replace("make", "test_config.make")
        )
    )
    assert message(load, file).endswith(
        "run_config.py, line 6: AttributeError: Batch has no gruop_size: did you mean "
        "group_size?; mend the file"
    )


@pytest.mark.parametrize("entry", catalogue.sources(), ids=lambda entry: entry.name)
def test_the_sources_of_the_package_refuse_a_mistyped_field(entry):
    module, _, name = entry.name.rpartition(".")
    # Not its constructor, which may need what problems are read from.
    source = object.__new__(getattr(importlib.import_module(module), name))
    with pytest.raises(
        AttributeError
    ):  # a frozen one's error is an AttributeError, too
        source.no_such_field = 1


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["no get_config()"]),
        ("get_config = 3", ["no get_config()"]),
        (
            "def get_config():\n    pass",
            ["returned a NoneType", "jaxgrpo.config:Config"],
        ),
        (
            "def get_config():\n    return 1 / 0\n",
            ["run_config.py, line 2", "ZeroDivisionError: division by zero"],
        ),
        ("def get_config()\n    pass", ["run_config.py, line 1", "SyntaxError"]),
        (
            "import nowhere_to_be_found",
            ["line 1", "ModuleNotFoundError", "nowhere_to_be_found"],
        ),
        (FILE.replace("make()", "make(stesp=1)"), ["line 5", "TypeError", "stesp"]),
        (FILE.replace("make()", "make(steps=-1)"), ["steps is -1", "at least 0"]),
    ],
)
def test_a_wrong_file(file, tmp_path, text, fragments):
    (tmp_path / "run_config.py").write_text(text)
    found = message(load, file)
    assert all(fragment in found for fragment in fragments), found


def test_a_file_of_the_other_kind_of_training(file, tmp_path):
    supervised = "SFTConfig(data=test_config.Data())"
    text = FILE.replace("test_config.make()", f"configs.{supervised}")
    (tmp_path / "run_config.py").write_text(
        text.replace(
            "import test_config",
            "import test_config\nfrom jaxgrpo import config as configs",
        )
    )
    text = message(load, file)
    assert text.endswith("jaxgrpo.config:Config; run python -m jaxgrpo.sft with it")
    config = load_sft(file, ["--config.packing.rows=3", "--config.solution.field=x"])
    assert (config.packing.rows, config.solution.field) == (3, "x")
    assert "no such setting" in message(load_sft, file, ["--config.batch.groups=3"])
    assert "did you mean" in message(load_sft, file, ["--config.packing.row=3"])
    # `evaluate` takes both: what such a config has not, has its default.
    (tmp_path / "run_config.py").write_text(FILE)
    assert "run python -m jaxgrpo.train with it" in message(load_sft, file)


@pytest.mark.parametrize("name", ["sft", "cold_start"])
def test_shipped_configs_of_supervised_training(name):
    config = load_sft(name)
    assert config.out == f"out/{name}"
    about = find_file(name).read_text(encoding="utf-8").split('"""')[1]
    assert f"python -m jaxgrpo.sft --config configs/{name}.py" in about
    sys.modules.pop(name, None)


def test_a_cold_start_asks_as_the_training_after_it():
    cold = load_sft("cold_start")
    after = load("qwen2_5_3b_v5e8")
    assert (cold.system, cold.model, cold.lora) == (
        after.system,
        after.model,
        after.lora,
    )
    for name in ("cold_start", "qwen2_5_3b_v5e8"):
        sys.modules.pop(name, None)


def test_a_missing_file(file):
    assert "did you mean" in message(load, file.replace("run_config", "run_confg"))
    assert "no such file" in message(load, "/nowhere/at/all.py")


def test_a_file_is_read_anew(file, tmp_path):
    """The bytecode of what it said a moment ago, of the same size and time, is not taken."""
    for steps in ("11", "12"):
        (tmp_path / "run_config.py").write_text(
            FILE.replace("make()", f"make(steps={steps})")
        )
        assert load(file).steps == int(steps)


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart.py", "configs/quickstart.py"]
)
def test_a_shipped_config_is_found_by_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find_file(name).samefile(ROOT / "configs" / "quickstart.py")
    config = load(name, ["--config.steps=3"])
    assert (config.out, config.steps) == ("out/quickstart", 3)
    sys.modules.pop("quickstart", None)


@pytest.mark.parametrize("is_package", [True, False])
def test_a_shipped_config_is_found_where_the_package_holds_them(
    tmp_path, monkeypatch, is_package
):
    """As packaging lays them out: jaxgrpo/configs/*.py, with or without an __init__.py."""
    folder = tmp_path / "jaxgrpo" / "configs"
    folder.mkdir(parents=True)
    (folder / "shipped.py").write_text(FILE)
    if is_package:
        (folder / "__init__.py").write_text("")
    monkeypatch.setattr(jaxgrpo, "__path__", [str(folder.parent)])
    monkeypatch.delitem(sys.modules, "jaxgrpo.configs", raising=False)
    importlib.invalidate_caches()
    try:
        assert shipped_configs() == {"shipped": folder / "shipped.py"}
        assert find_file("configs/shipped.py") == folder / "shipped.py"
    finally:
        sys.modules.pop("jaxgrpo.configs", None)
        vars(jaxgrpo).pop("configs", None)


def test_a_checkout_has_its_own_shipped_configs(tmp_path, monkeypatch):
    """Also where the package jaxgrpo.configs is that of another checkout; none without either."""
    monkeypatch.setattr(jaxgrpo, "__path__", [str(tmp_path / "jaxgrpo")])
    monkeypatch.setattr(loader, "SHIPPED", "tests.no_such_package")
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "own.py").write_text(FILE)
    assert shipped_configs() == {}
    (tmp_path / "pyproject.toml").write_text("")
    assert shipped_configs() == {"own": folder / "own.py"}
    monkeypatch.setattr(loader, "SHIPPED", "tests")
    assert shipped_configs() == {"own": folder / "own.py"}


def test_every_shipped_config_has_a_name():
    paths = (ROOT / "configs").glob("*.py")
    assert set(shipped_configs()) == {path.stem for path in paths} - {"__init__"}


def test_a_file_comes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.py").write_text(FILE)
    assert find_file("quickstart.py") == Path("quickstart.py")
    (tmp_path / "quickstart.py").unlink()
    # A path that says where the file is means that file alone.
    assert "no such file" in message(find_file, "./quickstart.py")
    assert "no such file" in message(find_file, str(tmp_path / "quickstart.py"))
    assert message(find_file, "quickstrat").endswith("did you mean quickstart?")


def test_rewards_in_a_config_file_can_be_imported_by_name(file, tmp_path):
    (tmp_path / "run_config.py").write_text(
        FILE.replace("make()", "make(rewards={'accuracy': test_config.Weighted(mine)})")
        + "\ndef mine(p, t):\n  return 1"
    )
    function = load(file).rewards["accuracy"].function
    assert (function.__module__, sys.modules["run_config"].mine) == (
        "run_config",
        function,
    )


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"batch.group_size": 1}, ["group_size is 1", "at least 2", "compares"]),
        ({"batch.groups": 0}, ["at least 1"]),
        ({"batch.micro_batch": -1}, ["at least 0"]),
        ({"batch.micro_batch": 65}, ["8 * 8 = 64", "64"]),
        ({"batch.pack": -1}, ["at least 0"]),
        ({"batch.pack": 511}, ["pack is 511", "256 + 256 columns", "at least 512"]),
        ({"sampling.temperature": 0.0}, ["above 0", "0.1"]),
        ({"sampling.temperature": float("nan")}, ["temperature is nan"]),
        ({"sampling.max_new_tokens": 0}, ["at least 1"]),
        ({"filter.rule": "bnad"}, ["'bnad'", "band, dapo, variance, off"]),
        ({"filter.low": 0.9}, ["low is 0.9", "high 0.8", "low <= high"]),
        ({"filter.low": 0.55, "filter.high": 0.6}, ["no pass rate of 8 completions"]),
        ({"filter.max_prompts": 0.5}, ["at least 1"]),
        ({"solved_by": "acc"}, ["'acc'", "accuracy, my-language"]),
        ({"rewards": {}}, ["rewards is {}", "at least one"]),
        (
            {"rewards": {"accuracy": right}},
            ["rewards['accuracy']", "Weighted(function, weight)"],
        ),
        (
            {"rewards": {"accuracy": Weighted(right, float("inf"))}},
            ["rewards.accuracy.weight is inf"],
        ),
        ({"optimizer.learning_rate": -1.0}, ["learning_rate is -1.0", "at least 0"]),
        ({"optimizer.learning_rate": float("inf")}, ["learning_rate is inf"]),
        ({"optimizer.b2": 1.0}, ["below 1"]),
        ({"optimizer.schedule": "step"}, ["constant, linear, cosine"]),
        ({"dtype": "float16"}, ["'float16'", "float32, bfloat16"]),
        (
            {"optimizer.state_dtype": "float16"},
            ["optimizer.state_dtype is 'float16'", "float32, bfloat16"],
        ),
        ({"compute.remat": "all"}, ["compute.remat is 'all'", "none, dots, full"]),
        ({"mesh.fsdp": 0}, ["mesh.fsdp is 0", "at least 1, or -1"]),
        ({"mesh.fsdp": -1}, ["mesh.data and mesh.fsdp are -1", "only one"]),
        ({"evaluation.samples": 0}, ["at least 1"]),
        ({"evaluation.sets": {"a.b": Data()}}, ["'a.b'", "letters, digits"]),
        ({"evaluation.sets": {"heldout": Data()}}, ["the config's own held-out"]),
        ({"evaluation.sets": {"gsm8k": "gsm8k"}}, ["sets.gsm8k is", "heldout()"]),
        (
            {"evaluation.keep_best": "best", "evaluation.every": 1},
            ["one of accuracy, pass_at_1, pass_at_2, pass_at_4, maj_at_4"],
        ),
        ({"sampling.slots": -1}, ["sampling.slots is -1", "at least 0"]),
        ({"sampling.chunk": 0}, ["sampling.chunk is 0", "at least 1"]),
        ({"verifier.workers": 0}, ["at least 1"]),
        ({"verifier.deadline": 0.0}, ["above 0"]),
        ({"save_every": 0}, ["at least 1"]),
        ({"keep_checkpoints": 0}, ["at least 1"]),
        ({"steps": "20"}, ["steps is '20'", "a whole number"]),
        ({"seed": True}, ["seed is True", "a whole number"]),
        ({"sampling.stop": 1}, ["sampling.stop is 1", "a tuple of str"]),
        ({"batch": 8}, ["batch is 8", "jaxgrpo.config:Batch"]),
        ({"data": None}, ["data is a builtins:NoneType", "train(), heldout()"]),
        ({"objective": "grpo"}, ["objective is a builtins:str", "token_loss()"]),
    ],
)
def test_validate(changes, fragments):
    config = make()
    for name, value in changes.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
    text = message(validate, config)
    assert all(fragment in text for fragment in fragments), text


def test_the_defaults_are_valid():
    validate(make())


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "batch.group_size=1",
            "at least 2: GRPO compares the completions of a prompt with each other",
        ),
        ("optimizer.b1=1", "below 1 and at least 0"),
        ("optimizer.b1=-1", "at least 0 and below 1"),
        ("evaluation.top_p=2", "at most 1 and above 0"),
        ("seed=4294967296", "below 2**32 and at least 0"),
        ("sampling.max_logprob_gap=0", "above 0, or None"),
        ("lora.alpha=0", "above 0"),
        ("lora.rank=-1", "at least 0"),
    ],
)
def test_the_bounds_beside_a_field_are_told_in_full(file, flag, says):
    assert message(load, file, [f"--config.{flag}"]).endswith(f"it must be {says}")


@losses.frozen_pytree
class Bounded(losses.GRPO):
    """An objective of somebody's own, which says the bounds of a setting."""

    sharpness: float = dataclasses.field(
        default=1.0, metadata={"above": 0, "why": "it divides", "unit": "nats"}
    )


def test_a_class_of_somebody_elses_can_have_bounds_beside_its_fields():
    validate(make(objective=Bounded()))
    said = message(validate, make(objective=Bounded(sharpness=0.0)))
    assert said == "objective.sharpness is 0.0: it must be above 0: it divides"


@losses.frozen_pytree
class OldMethod(losses.GRPO):
    """An objective of somebody's own, whose method has the name that it had before."""

    def weights(self, mask):
        return mask / 2


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (OldMethod(), "objective"),
        (losses.Regularised(OldMethod(), kl=0.1), "objective.objective"),
    ],
)
def test_the_old_name_of_a_method_is_refused(objective, name):
    said = message(validate, make(objective=objective))
    assert said.startswith(f"{name} is a {__name__}:OldMethod: ")
    assert said.endswith("it must have token_weights() in the place of weights()")


class Helper(losses.GRPO):
    """An objective with a method of the old name beside the present one."""

    def weights(self, mask):
        return mask / 2

    def token_weights(self, mask):
        return self.weights(mask)


def test_a_helper_may_have_the_old_name():
    validate(make(objective=Helper()))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0),
        ({"mask_older": 1}, 0),
        ({"keep_in_flight": True, "max_age": 3}, 3),
        ({"keep_in_flight": True, "max_age": 3, "mask_older": 1}, 1),
        ({"keep_in_flight": True, "max_age": 2, "mask_older": 5}, 2),
        ({"keep_in_flight": True, "max_age": 2, "mask_older": 0}, 0),
    ],
)
def test_a_run_says_how_old_the_tokens_are_that_it_trains_on(settings, expected):
    """Without a correction, and where it trains on older ones at all."""
    config = make()
    for name, value in settings.items():
        group = config.batch if name == "mask_older" else config.sampling
        setattr(group, name, value)
    assert sizes.max_trained_age(config) == expected
    note = sizes.off_policy_note(config)
    if expected:
        steps = "1 step" if expected == 1 else f"{expected} steps"
        assert note.startswith(f"tokens up to {steps} old are trained on")
    else:
        assert note == ""
        # So an objective without a ratio will do.
        config.objective = losses.RLOO()
        validate(config)


def test_a_run_says_that_it_trains_on_tokens_of_int8_matrices():
    """Together with their age, and not where the objective corrects for both."""
    sampling = Sampling(weights="int8")
    config = make(sampling=sampling)
    assert sizes.off_policy_note(config).startswith("tokens drawn by int8 matrices are")
    sampling.keep_in_flight = True
    assert sizes.off_policy_note(config).startswith(
        "tokens up to 2 steps old and drawn by int8 matrices are trained on"
    )
    config.batch.old_logprobs = "trainer"
    assert sizes.off_policy_note(config) == ""


NAMES = {
    "mean": "call it 'mean_reward'",
    "language/target_word_ratio": "call it 'language_target_word_ratio'",
    "a.b": "call it 'a_b'",
    "a=b": "call it 'a_b'",
    "two words": "call it 'two_words'",
    "": "call it 'reward'",
    "/": "call it 'reward'",
    "taken!": "call it 'taken_2'",
    "/accuracy": "call it 'accuracy_reward'",
    7: "call it '7'",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_must_not_be_called(name):
    """Names that the metrics or the command line take for something else are refused."""
    rewards = {
        "right": Weighted(right),
        "taken": Weighted(right),
        name: Weighted(right, 0.5),
    }
    said = message(validate, make(rewards=rewards, solved_by="right"))
    assert said.startswith(f"rewards has a {name!r}: ")
    assert said.endswith(NAMES[name])
    free = said.split("'")[-2]
    config = make(
        rewards={free if key == name else key: value for key, value in rewards.items()},
        solved_by="right",
    )
    validate(config)
    assert (
        overrides.override(config, [f"--config.rewards.{free}.weight=0.25"])
        .rewards[free]
        .weight
        == 0.25
    )


@pytest.mark.parametrize("name", ["x", "my-language", "language_2", "языка", "0"])
def test_a_reward_may_be_called(name):
    config = make(
        rewards={"right": Weighted(right), name: Weighted(right)}, solved_by="right"
    )
    validate(config)
    assert (
        overrides.override(config, [f"--config.rewards.{name}.weight=0.25"])
        .rewards[name]
        .weight
        == 0.25
    )


def test_the_pass_rate_keeps_its_name():
    rewards = {"right": Weighted(right), "accuracy": Weighted(right)}
    said = message(validate, make(rewards=rewards, solved_by="right"))
    assert said == (
        "rewards has a 'accuracy': reward/accuracy is always the pass rate, of solved_by='right'; "
        "call it 'accuracy_reward' or set solved_by to 'accuracy'"
    )
    validate(make(rewards=rewards, solved_by="accuracy"))


@losses.frozen_pytree
class Mine(losses.GRPO):
    """An objective of somebody's own."""

    has_ratio = False


Corrected, Regularised = losses.Corrected, losses.Regularised
NARROW = losses.GSPO()
# (objective, old_logprobs, dtype, keep_in_flight, what is said, None where it is accepted)
FLIGHT = [
    (losses.GRPO(), "sampler", "bfloat16", True, None),
    (losses.GRPO(), "trainer", "bfloat16", False, None),
    (
        losses.GRPO(),
        "trainer",
        "float32",
        True,
        "around the objective, or set batch.old_logprobs to 'sampler'",
    ),
    (Corrected(losses.GRPO()), "trainer", "float32", True, None),
    (Regularised(Corrected(losses.GRPO())), "trainer", "float32", True, None),
    (
        Corrected(losses.GRPO()),
        "sampler",
        "float32",
        True,
        "set batch.old_logprobs to 'trainer'",
    ),
    (losses.RLOO(), "sampler", "float32", False, None),
    (losses.RLOO(), "sampler", "float32", True, "RLOO has no importance ratio"),
    (
        losses.RLOO(),
        "trainer",
        "float32",
        True,
        "put Corrected(...) around the objective",
    ),
    (
        Regularised(losses.RLOO()),
        "sampler",
        "float32",
        True,
        "RLOO has no importance ratio",
    ),
    (Corrected(losses.RLOO()), "trainer", "float32", True, None),
    (
        losses.Supervised(),
        "sampler",
        "float32",
        True,
        "Supervised has no importance ratio",
    ),
    (Mine(), "sampler", "float32", True, "Mine has no importance ratio"),
    (NARROW, "sampler", "float32", False, None),
    (NARROW, "sampler", "float32", True, None),
    (
        NARROW,
        "sampler",
        "bfloat16",
        False,
        "GSPO.clip_low=0.0003, and batch.old_logprobs is 'sampler': in bfloat16",
    ),
    (NARROW, "trainer", "bfloat16", False, None),
    (
        NARROW,
        "sampler",
        "bfloat16",
        True,
        "set batch.old_logprobs to 'trainer' and put Corrected(...) around the objective",
    ),
    (NARROW, "trainer", "bfloat16", True, "put Corrected(...) around the objective"),
    (Corrected(NARROW), "trainer", "bfloat16", True, None),
    (losses.GSPOToken(), "sampler", "bfloat16", False, "GSPOToken.clip_low=0.0003"),
    (Regularised(NARROW), "sampler", "bfloat16", False, "GSPO.clip_low=0.0003"),
    (
        losses.GRPO(clip_high=0.001),
        "sampler",
        "bfloat16",
        False,
        "GRPO.clip_high=0.001",
    ),
    (losses.CISPO(), "sampler", "bfloat16", False, None),
    (losses.GRPO(clip_low=1e-7), "sampler", "float32", False, "GRPO.clip_low=1e-07"),
]


@pytest.mark.parametrize(("objective", "old", "dtype", "keep", "says"), FLIGHT)
def test_what_the_ratio_is_taken_to_suits_the_objective(
    objective, old, dtype, keep, says
):
    def config(objective, old):
        batch = Batch(old_logprobs=old)
        sampling = Sampling(keep_in_flight=keep)
        return make(objective=objective, dtype=dtype, batch=batch, sampling=sampling)

    if says is None:
        validate(config(objective, old))
        return
    said = message(validate, config(objective, old))
    assert says in said
    # All of the advice is accepted, each alternative by itself.
    if "set batch.old_logprobs to 'trainer'" in said:
        validate(
            config(
                Corrected(objective) if "and put Corrected" in said else objective,
                "trainer",
            )
        )
    if "or set batch.old_logprobs to 'sampler'" in said:
        validate(config(objective, "sampler"))
    if "; put Corrected" in said:
        validate(config(Corrected(objective), "trainer"))
    if "or set sampling.keep_in_flight to false" in said:
        keep = False
        validate(config(objective, old))


INT8 = [
    (losses.GRPO(), "sampler", None),
    (losses.GRPO(), "trainer", "'int8', and batch.old_logprobs 'trainer': the ratio"),
    (losses.RLOO(), "sampler", "'int8', and RLOO has no importance ratio"),
    (losses.RLOO(), "trainer", "the ratio of tokens of an int8 policy would be 1"),
    (NARROW, "sampler", "in int8 sampler and scorer differ by up to 0.02"),
    (NARROW, "trainer", "put Corrected(...) around the objective"),
    (Corrected(losses.RLOO()), "trainer", None),
]


@pytest.mark.parametrize(("objective", "old", "says"), INT8)
def test_what_the_ratio_is_taken_to_suits_an_int8_sampler(objective, old, says):
    config = make(
        objective=objective,
        batch=Batch(old_logprobs=old),
        sampling=Sampling(weights="int8"),
    )
    if says is None:
        validate(config)
        return
    assert says in message(validate, config)
    # Each advice by itself, however the objective is.
    validate(
        dataclasses.replace(
            config,
            objective=Corrected(objective),
            batch=Batch(old_logprobs="trainer"),
        )
    )
    if "or set sampling.weights to 'dtype'" in message(validate, config):
        validate(dataclasses.replace(config, sampling=Sampling()))


def test_command_line(file):
    argv = [
        "--config",
        file,
        "--config.steps",
        "3",
        "--config.mesh.data",
        "-1",
        "--config.out=a=b",
    ]
    assert dataclasses.astuple(parse_command_line(argv)) == dataclasses.astuple(
        make(steps=3, out="a=b")
    )
    assert parse_command_line([f"--config={file}"]) == make()


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        ([], "no config file given"),
        (["--config"], "nothing comes after it; write --config=FILE"),
        (["--config="], "nothing comes after it"),
        (["--config", "a.py", "--config.steps"], "write --config.steps=VALUE"),
        (["--config.steps", "--config=a.py"], "write --config.steps=VALUE"),
        (["--config", "a.py", "--config", "b.py"], "given twice"),
        (["--steps=3"], "did you mean --config.steps=3?"),
        (["--lr=3e-4"], "did you mean --config.optimizer.learning_rate=3e-4?"),
        (["--lr", "3e-4"], "did you mean --config.optimizer.learning_rate?"),
        (["--num_generations=4"], "did you mean --config.batch.group_size=4?"),
        (["--loss_type=dapo"], "did you mean --config.objective=dapo?"),
        (["run.py"], "the flags are --config FILE"),
    ],
)
def test_a_wrong_command_line(argv, fragment):
    assert fragment in message(parse_command_line, argv)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--num_train_epochs=2", "; did you mean --config.epochs=2?"),
        ("--max_length=512", "; did you mean --config.packing.width=512?"),
        ("--batch_size=8", "; did you mean --config.packing.rows=8?"),
        ("--loss_type=dapo", "and --help"),
    ],
)
def test_flags_of_supervised_training_are_suggested(argument, hint):
    assert message(parse_sft_command_line, [argument]).endswith(hint)


def test_help_lists_every_setting_with_its_value(file, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_command_line(["--config", file, "--help", "--config.steps=7"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "--config FILE" in text
    assert "--config.steps=7 " in text
    assert "--config.data.languages='(\"en\",)'" in text
    assert "  those of the problems, of all of them\n" in text
    documented = [
        line.split()[0] for line in text.splitlines() if len(line.split()) == 1
    ]
    ours = {f"--config.{field.name}" for field in dataclasses.fields(Config)}
    undocumented = [flag for flag in documented if flag.split("=")[0] in ours]
    assert not undocumented
    # What is held besides settings: problems, the objective, rewards.
    assert "  data: test_config:Data  Problems of nobody's.\n" in text
    assert "  objective: jaxgrpo.losses.grpo:GRPO  Group relative policy" in text
    assert "  rewards.my-language: test_config:right\n" in text


@pytest.mark.parametrize("argv", [["--help"], ["--config", "sft", "--help"]])
def test_help_of_supervised_training_lists_its_own_settings(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_sft_command_line(argv)
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "python -m jaxgrpo.sft --config FILE" in text
    assert "--config.objective" not in text
    for name in overrides.fields(any_sft_config()):
        if not name.startswith(("solution.", "evaluation.sets")):
            assert re.search(rf"--config\.{re.escape(name)}=\S* +\S", text), name
    sys.modules.pop("sft", None)


def test_help_without_a_config_lists_everything_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_command_line(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "quickstart" in text
    for name in overrides.fields(any_config()):
        assert re.search(rf"--config\.{re.escape(name)}=\S* +\S", text), name
    for module, classes in (
        ("data.gsm8k", ["GSM8K"]),
        ("data.table", ["Table"]),
        ("rewards.maths", ["accuracy", "Accuracy"]),
        ("rewards.languages", ["Ratio", "target_word_ratio"]),
        ("rewards.gate", ["Gate"]),
    ):
        for name in classes:
            assert f"  jaxgrpo.{module}.{name}: " in text
    entries = [
        *catalogue.objectives(),
        *catalogue.sources(),
        *catalogue.reward_functions(),
    ]
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.about.endswith("."), entry
        assert all(setting.about for setting in entry.settings.values()), entry


def test_every_objective_that_stands_alone_has_a_name():
    """All of the package's but what is around another one, a base, and supervised training."""
    alone = {
        thing
        for thing in vars(losses).values()
        if dataclasses.is_dataclass(thing)
        and "objective" not in thing.__dataclass_fields__
        and hasattr(thing, "token_loss")
    }
    assert set(OBJECTIVES.values()) == alone - {losses.Supervised}


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb"), 2, "error: a b\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_main_ends_in_one_line(monkeypatch, capsys, error, code, line):
    def main(argv):
        assert argv == ["--x"]
        raise error

    monkeypatch.setattr(sys, "argv", ["program", "--x"])
    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert (exit_.value.code, capsys.readouterr().err) == (code, line)


def test_describe_survives_json_and_names_functions_and_classes():
    description = describe(make())
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["rewards"]["accuracy"]["function"].endswith("test_config:right")
    assert description["objective"]["class"] == "jaxgrpo.losses.grpo:GRPO"
    assert description["data"]["parts"][1]["share"] == 2


def test_half_a_surrogate_pair_is_saved_as_it_is(tmp_path):
    halves = make(system="Think\ud83d\\ first.")
    save(halves, str(tmp_path))
    check_same(halves, str(tmp_path))


def test_check_same(tmp_path):
    out = str(tmp_path / "out")
    check_same(make(), out)
    save(make(), out)
    check_same(make(), out)
    check_same(
        make(
            out="elsewhere",
            steps=7,
            save_every=1,
            keep_checkpoints=9,
            show_rollouts_every=0,
        ),
        out,
    )
    workers = make()
    workers.verifier.workers = 5
    workers.verifier.max_missing = 1.0
    workers.sampling.max_logprob_gap = 0.5
    workers.compute.remat = "full"
    check_same(workers, out)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (["seed=1"], ["seed (then 0, now 1)", "another --config.out"]),
        (
            ["batch.groups=4", "objective.kl=0.5"],
            ["batch.groups (then 8, now 4)", "objective.kl (then 0.04, now 0.5)"],
        ),
        (["data.languages=ko"], ["data.languages (then ['en'], now ['ko'])"]),
        (["seed=1", "dtype=bfloat16", "model=m", "system=s"], ["and 1 more"]),
        (
            ["optimizer.schedule=linear", "steps=7"],
            ["settings: optimizer.schedule (then 'constant', now 'linear'); give"],
        ),
    ],
)
def test_check_same_names_what_differs(tmp_path, changes, fragments):
    save(make(), str(tmp_path))
    text = message(
        check_same,
        overrides.override(make(), [f"--config.{change}" for change in changes]),
        str(tmp_path),
    )
    assert all(fragment in text for fragment in fragments), text


@pytest.mark.parametrize(
    ("schedule", "changes", "says"),
    [
        ("constant", ["steps=7", "save_every=1"], []),
        (
            "constant",
            ["optimizer.learning_rate=0.5"],
            [
                "optimizer.learning_rate (then 1e-06, now 0.5): from here on the learning rate is "
                "that of a run begun so, warm-up over 10 steps, then constant at 0.5"
            ],
        ),
        (
            "linear",
            ["steps=200"],
            [
                "steps (then 100, now 200): from here on the learning rate is that of a run begun "
                "so, warm-up over 10 steps, then linear from 1e-06 to 0 at step 200"
            ],
        ),
        (
            "cosine",
            ["optimizer.learning_rate=0.5", "steps=7", "evaluation.samples=9"],
            [
                "steps (then 100, now 7), optimizer.learning_rate (then 1e-06, now 0.5): from here "
                "on the learning rate is that of a run begun so, warm-up over 10 steps, then "
                "cosine from 0.5 to 0 at step 7",
                "evaluation.samples (then 4, now 9): the policy that the run began with is "
                "evaluated again",
            ],
        ),
    ],
)
def test_a_resumed_run_says_what_other_settings_mean(tmp_path, schedule, changes, says):
    begun = overrides.override(make(), [f"--config.optimizer.schedule={schedule}"])
    save(begun, str(tmp_path))
    now = overrides.override(begun, [f"--config.{change}" for change in changes])
    assert check_same(now, str(tmp_path)) == says
    assert changes_evaluation(now, str(tmp_path)) == ("evaluation" in "".join(changes))


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("lora.alpha=64", "lora.alpha (then 32.0, now 64.0)"),
        ("lora.rank=4", "lora.rank (then 0, now 4)"),
        ("lora.targets=query", "lora.targets (then "),
        ("model=other", "model (then '', now 'other')"),
        ("compute.scan_layers=true", "compute.scan_layers (then False, now True)"),
    ],
)
def test_an_evaluation_reads_the_policy_as_the_run_does(tmp_path, change, fragment):
    save(make(), str(tmp_path))
    said = message(
        compare, overrides.override(make(), [f"--config.{change}"]), str(tmp_path)
    )
    assert said.startswith(
        f"{tmp_path} holds a run whose policy has other settings: {fragment}"
    )
    assert said.endswith("give another --config.out, or go back")


def test_an_evaluation_says_what_else_it_measures(tmp_path):
    assert compare(make(system="x"), str(tmp_path)) is None
    save(make(), str(tmp_path))
    assert compare(make(), str(tmp_path)) is None
    changes = [
        "steps=7",
        "optimizer.learning_rate=1",
        "batch.groups=4",
        "sampling.slots=8",
        "verifier.workers=5",
    ]
    assert (
        compare(
            overrides.override(make(), [f"--config.{change}" for change in changes]),
            str(tmp_path),
        )
        is None
    )
    for change, fragment in {
        "system=x": "system (then '', now 'x')",
        "dtype=bfloat16": "dtype (then 'float32', now 'bfloat16')",
        "data.languages=ko": "data.languages (then ['en'], now ['ko'])",
        "sampling.max_new_tokens=9": "sampling.max_new_tokens (then 256, now 9)",
        "evaluation.top_k=3": "evaluation.top_k (then 0, now 3)",
        "rewards.accuracy.weight=3": "rewards.accuracy.weight (then 1.0, now 3.0)",
    }.items():
        line = compare(
            overrides.override(make(), [f"--config.{change}"]), str(tmp_path)
        )
        assert (
            line
            == f"measured with other settings than the run in {tmp_path}: {fragment}"
        )


def test_every_mark_is_of_a_setting_that_is_there():
    # Of these two nothing is there until somebody names it.
    names = {"rewards", "evaluation.sets", *describe(make())}
    names |= set(overrides.fields(make()))
    for mark in ("may_change", "reads_policy", "measures"):
        assert marked(Config, mark)
        assert marked(Config, mark) <= names


def as_before(description):
    """A config.json's text with the names that classes and functions had before they moved."""
    text = json.dumps(description)
    for old, new in MOVED.items():
        text = text.replace(f'"{new}:', f'"{old}:')
    return text


def test_a_run_of_before_modules_moved_goes_on(tmp_path):
    config = load(str(ROOT / "configs" / "quickstart.py"))
    text = as_before(describe(config))
    assert text != json.dumps(describe(config))
    assert "jaxgrpo.config:Batch" in text
    assert "jaxgrpo.rewards.math:accuracy" in text
    (tmp_path / "config.json").write_text(text)
    check_same(config, str(tmp_path))
    assert compare(config, str(tmp_path)) is None
    config.rewards["accuracy"].function = right
    said = message(check_same, config, str(tmp_path))
    assert "(then 'jaxgrpo.rewards.maths.verifier:accuracy', now " in said


def test_what_was_moved_is_where_it_is_said_to_be():
    for new in MOVED.values():
        module, _, name = new.partition(":")
        found = importlib.import_module(module)
        assert not name or hasattr(found, name)


def with_driven_weight():
    config = make()
    config.rewards["accuracy"] = Driven(right)
    return config


def test_a_setting_that_was_renamed_is_named_by_its_error():
    config = with_driven_weight()
    said = message(overrides.override, config, ["--config.rewards.accuracy.most=5"])
    new = re.search(r"is now called (\S+);", said)[1]
    assert new == "--config.rewards.accuracy.max_weight"
    changed = overrides.override(config, [f"{new}=5"])
    assert changed.rewards["accuracy"].max_weight == 5.0
    said = message(overrides.override, config, ["--config.rewards.my-language.most=5"])
    assert "no such setting" in said


def test_a_run_of_before_a_setting_was_renamed_goes_on(tmp_path):
    described = describe(with_driven_weight())
    reward = described["rewards"]["accuracy"]
    reward["most"] = reward.pop("max_weight")
    (tmp_path / "config.json").write_text(json.dumps(described))
    check_same(with_driven_weight(), str(tmp_path))
    other = with_driven_weight()
    other.rewards["accuracy"].max_weight = 5.0
    said = message(check_same, other, str(tmp_path))
    assert "rewards.accuracy.max_weight (then 10.0, now 5.0)" in said


def test_a_run_of_before_a_setting_was_made_goes_on_with_its_default(tmp_path):
    described = describe(make())
    del described["lora"], described["compute"], described["sampling"]["max_age"]
    del described["objective"]["kl"], described["rewards"]["accuracy"]["weight"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = make()
    assert compare(config, str(tmp_path)) is None
    check_same(config, str(tmp_path))
    older = overrides.override(config, ["--config.sampling.max_age=3"])
    assert "sampling.max_age (then 2, now 3)" in message(
        check_same, older, str(tmp_path)
    )
    adapted = overrides.override(config, ["--config.lora.rank=4"])
    said = message(compare, adapted, str(tmp_path))
    assert "lora.rank (then 0, now 4)" in said
    del described["rewards"]["accuracy"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert "rewards.accuracy." in message(check_same, config, str(tmp_path))


@pytest.mark.parametrize("text", ["", '{"seed": ', "[1]", "3"])
def test_a_damaged_config_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json cannot be read" in message(check_same, make(), str(tmp_path))


def test_an_evaluation_may_change_and_what_that_means_is_said(tmp_path):
    save(make(), str(tmp_path))
    more = make()
    more.evaluation.sets["sums"] = Data()
    more.evaluation.every = 3
    more.evaluation.policies = ("out",)
    assert check_same(more, str(tmp_path)) == []
    assert not changes_evaluation(more, str(tmp_path))
    assert compare(more, str(tmp_path)) is None
    more = overrides.override(more, ["--config.evaluation.sets.sums.languages=ko"])
    assert more.evaluation.sets["sums"].languages == ("ko",)
    more.evaluation.samples = 5
    (note,) = check_same(more, str(tmp_path))
    assert "evaluation.samples" in note
    assert "is evaluated again" in note
    assert changes_evaluation(more, str(tmp_path))


def test_texts_depend_on_how_they_are_sampled_and_not_on_who_judges_them():
    texts = text_settings(make())
    for changes in (
        {"data": Data(("ko",))},
        {"rewards": {"accuracy": Weighted(right, 2.0)}},
        {"evaluation.problems": 7},
        {"evaluation.every": 7},
        {"steps": 7},
    ):
        assert text_settings(changed(changes)) == texts, changes
    for changes in (
        {"seed": 7},
        {"system": "Think."},
        {"evaluation.samples": 7},
        {"evaluation.temperature": 0.5},
        {"sampling.max_new_tokens": 7},
        {"lora": Lora(rank=7)},
    ):
        assert text_settings(changed(changes)) != texts, changes


def changed(values):
    """The config with these settings, by dotted name."""
    config = make()
    for name, value in values.items():
        *groups, last = name.split(".")
        node = config
        for group in groups:
            node = getattr(node, group)
        setattr(node, last, value)
    return config
