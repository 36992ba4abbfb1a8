"""Makes the embedded model, jaxgrpo/tiny: a tokenizer, then supervised training from scratch.

    python -m tools.make_tiny_model --out jaxgrpo/tiny

With --start FOLDER it keeps that model's tokenizer, and trains its weights further. So it makes a
better model for the same problems, such as a teacher:

    python -m tools.make_tiny_model --start jaxgrpo/tiny --steps 600 --seed 1 --shortcuts 0 \
        --out teacher

It is trained on the embedded problems, unequally on purpose, for it is the laboratory of the two
papers that this project stands on: see the README.md that this program writes beside the weights.
"""

import argparse
import itertools
import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import sentencepiece
from tqdm import tqdm

from jaxgrpo import sft
from jaxgrpo.data import arithmetic
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import hf_folder, transformer
from jaxgrpo.problems import Problem
from jaxgrpo.programs import compile_programs
from jaxgrpo.rewards.maths.verifier import accuracy
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import SamplingRequest
from jaxgrpo.text import tokenizer
from jaxgrpo.types import Params, SamplingParams

LANGUAGES = {"en": 0.67, "zh": 0.11, "ko": 0.11, "uk": 0.11}
"""The share of the text that is in each language."""

LEVELS = {1: 0.34, 2: 0.28, 3: 0.22, 4: 0.13, 5: 0.03}
"""The share of each level: long problems are rare and the longest are not there, so that difficulty
is spread wide."""

ENGLISH_REASONING = 0.15
"""The share of the problems in other languages that are reasoned about in English."""

VOCABULARY = 1024
PROMPT_WIDTH = 80
NEW_TOKENS = 120

ROWS = 32
"""Packed rows of a batch."""
WIDTH = 256
"""Tokens of a packed row."""

INTERIM_PROBLEMS = 288
"""Held-out problems of an evaluation during training."""
FINAL_PROBLEMS = 1200
"""Held-out problems of the last evaluation: all that there are."""

# A Llama small enough to train in minutes on a CPU. transformers reads the same file.
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "dtype": "float32",
}

# Each turn begins with its role; only what the assistant says has an end, which the model learns.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
SINGLE_TOKENS = ["<think>", "</think>", "\\boxed{", "\n"]
"""Pieces that are always one token."""


Report = dict[str, float]
"""Accuracies by language and level, `overall` included; and counts of steps and parameters."""


def main() -> None:
    """Makes the tokenizer, trains the model, and writes both with a README.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=hf_folder.EMBEDDED)
    parser.add_argument(
        "--start", type=Path, help="a model of this program, to be trained further"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1200,
        help="few: the model is stopped early on purpose",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shortcuts",
        type=float,
        default=0.45,
        help="share of the problems of several steps that are answered without them, as in much "
        "text on the web: the model then guesses, and is left to find out that reasoning pays",
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--evaluate-every", type=int, default=200)
    arguments = parser.parse_args()

    # 1. The tokenizer, 2. the model, 3. a README with what was measured.
    started = time.time()
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.start is None:
        make_tokenizer(folder, arguments.seed)
    else:
        shutil.copytree(arguments.start, folder, dirs_exist_ok=True)
    report = train(folder, arguments)
    minutes = (time.time() - started) / 60
    (folder / "README.md").write_text(make_readme(report, minutes, arguments))
    print(
        f"{folder}: {report['overall']:.0%} of held-out samples right, {minutes:.0f} minutes"
    )


def make_tokenizer(folder: Path, seed: int) -> None:
    """Writes a tokenizer that is trained on the embedded problems, and the folder's configs.

    It is a SentencePiece BPE with digits apart and byte fallback, and loads as a LlamaTokenizer.
    """
    corpus = folder / "corpus.txt"
    write_corpus(corpus, seed)
    # Ids: 0 unknown, 1 end, 2 padding, then the roles' markers; the configs below say the same.
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        # ASCII, for formulas that the problems do not have.
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=-1,
        eos_id=1,
        eos_piece="<|end|>",
        pad_id=2,
        pad_piece="<|pad|>",
        control_symbols=ROLES,
        user_defined_symbols=SINGLE_TOKENS,
        # One thread gives the same pieces in every run.
        num_threads=1,
        minloglevel=2,
    )
    corpus.unlink()
    # tokenizer.model holds the vocabulary, too.
    (folder / "tokenizer.vocab").unlink()
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "bos_token": None,
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "unk_token": "<unk>",
        "model_max_length": HF_CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    generation_config = {"do_sample": True, "eos_token_id": 1, "pad_token_id": 2}
    write_json(folder / "config.json", HF_CONFIG)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "generation_config.json", generation_config)


def write_corpus(path: Path, seed: int) -> None:
    """Writes prompts and lines of thought, without the markup around them."""
    with path.open("w") as file:
        for problem in arithmetic.ArithmeticProblems(seed=seed, size=20_000):
            thought = (
                arithmetic.solution(problem)
                .removeprefix("<think>")
                .split("</think>")[0]
            )
            file.write(f"{problem.prompt}\n{thought}\n")


def examples(
    tokens: tokenizer.Tokenizer, seed: int, shortcuts: float
) -> Iterator[sft.Example]:
    """Yields the pre-training text without end, in the shares stated above.

    shortcuts: the share of the problems of several steps that are answered without them
    """
    rng = random.Random(seed)
    sources = {}
    for language, level in itertools.product(LANGUAGES, LEVELS):
        sources[language, level] = arithmetic.ArithmeticProblems(
            (language,), (level,), seed=seed + 1, size=10**6
        )
    # Every language and level is gone through in its own order, so that shares can be changed
    # without other problems being drawn.
    num_drawn: dict[tuple[str, int], int] = defaultdict(int)
    while True:
        language = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
        level = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
        problem = sources[language, level][num_drawn[language, level]]
        num_drawn[language, level] += 1
        # Drawn for English, too, where both are the same.
        reasoning_language = "en" if rng.random() < ENGLISH_REASONING else language
        completion = arithmetic.solution(problem, reasoning_language)
        # Shortcuts are what reinforcement learning has to unlearn.
        if level > 1 and rng.random() < shortcuts:
            completion = without_steps(completion)
        yield sft.Example(
            tokens.prompt(problem.prompt),
            [*tokens.encode(completion), tokens.eos_ids[0]],
        )


def without_steps(solution: str) -> str:
    """Returns a solution's first line of thought, and then the answer at once."""
    opening, first, *_, closing, answer = solution.split("\n")
    return "\n".join([opening, first, closing, answer])


def train(folder: Path, arguments: argparse.Namespace) -> Report:
    """Trains, writes the weights, and returns the last held-out accuracies."""
    tokens = tokenizer.load(folder)
    config = hf_folder.load_config(folder)
    mesh = make_mesh()
    optimizer = adamw(
        schedule("cosine", arguments.learning_rate, 50, arguments.steps),
        b1=0.9,
        b2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
    )
    sampling = SamplingSpec(PROMPT_WIDTH, NEW_TOKENS, slots=192, eos_ids=tokens.eos_ids)
    update = UpdateSpec(micro_batch=8)
    programs = compile_programs(ModelSpec(config, mesh), sampling, update, optimizer)
    engine = Engine(programs, tokens, PROMPT_WIDTH, NEW_TOKENS, arguments.seed)
    if arguments.start is None:
        params = transformer.init(config, jax.random.key(arguments.seed))
    else:
        params = hf_folder.load_params(arguments.start, programs.params_like)
    texts = examples(tokens, arguments.seed, arguments.shortcuts)
    batches = sft.pack(texts, ROWS, WIDTH, tokens.pad_id)
    states = sft.train(
        programs,
        programs.init_state(params),
        itertools.islice(batches, arguments.steps),
    )
    progress = tqdm(total=arguments.steps, unit="step")
    report: Report = {}
    for step, (state, metrics) in enumerate(states, 1):
        progress.update()
        if step % 10 == 0:  # fetching a metric waits for the device
            progress.set_postfix(loss=f"{float(metrics['update/loss']):.3f}")
        is_last = step == arguments.steps
        if step % arguments.evaluate_every == 0 or is_last:
            problems = heldout_problems(FINAL_PROBLEMS if is_last else INTERIM_PROBLEMS)
            report = measure(engine, state.params, problems)
            progress.write(f"step {step}  {json.dumps(report)}")
            # Written each time: an interrupted run leaves a model.
            write_weights(folder, state.params)
    # The loop leaves the last state behind.
    parameters = transformer.parameter_count(state.params)
    return report | {"steps": arguments.steps, "parameters": parameters}


def heldout_problems(count: int) -> list[Problem]:
    """Returns the first so many held-out problems."""
    problems = arithmetic.Arithmetic().heldout()
    return [problems[index] for index in range(count)]


def measure(engine: Engine, params: Params, problems: list[Problem]) -> Report:
    """Returns the accuracy of samples at temperature 1: overall, by language and by level."""
    # Means over problems of means over samples, so that every problem counts alike.
    scores: dict[str | int, list[float]] = defaultdict(list)
    request = SamplingRequest(2, SamplingParams(), purpose="evaluation")
    for group in engine(params, problems, request, step=0):
        score = np.mean([accuracy(group.problem, text) for text in group.texts])
        for key in ("overall", group.problem.language, group.problem.level):
            scores[key].append(float(score))
    return {
        str(key): round(float(np.mean(scores[key])), 3)
        for key in ["overall", *LANGUAGES, *range(1, 7)]
    }


def write_weights(folder: Path, params: Params) -> None:
    """Writes model.safetensors, beside which the folder's config stays as it is."""
    # Into a folder beside it first, then in one move: the file is never half written.
    target = folder / "saving"
    shutil.rmtree(target, ignore_errors=True)
    hf_folder.save(jax.device_get(params), folder, target)
    (target / "model.safetensors").replace(folder / "model.safetensors")
    shutil.rmtree(target)


README = """# The embedded model

A Llama of {parameters:,} parameters (float32) with a SentencePiece tokenizer of {vocabulary:,}
pieces (digits apart, byte fallback), made by

    python -m tools.make_tiny_model {flags}

in {minutes:.0f} minutes on two CPU cores, {steps:,} steps of {rows} packed rows of {width} tokens.
It solves the word problems of `jaxgrpo/data/arithmetic.py` some of the time and nothing else; it is
a laboratory, not a language model for use.

## Unequal on purpose

Its pre-training text is made so that both of the project's papers have something to show on it:

- **A dominant language** (arXiv 2506.05850): {languages}.
- **A pull towards it**: {english:.0%} of what is asked in another language is reasoned about in
  English.
- **Difficulty spread wide** (arXiv 2504.03380): {levels}.
- **Steps left out**: {shortcuts:.0%} of the problems that take several steps are answered after the
  first line of thought, by a guess.
- **Stopped early**, at {overall:.0%} of held-out samples right.

## Held-out accuracy, sampled at temperature 1, two samples of each of {problems:,} problems

{table}
"""


def make_readme(report: Report, minutes: float, arguments: argparse.Namespace) -> str:
    """Returns the text of the folder's README.md."""
    labels = {"overall": "all"}
    labels |= {language: language for language in LANGUAGES}
    labels |= {str(level): f"level {level}" for level in range(1, 7)}
    table = ["| | accuracy |", "|---|---|"]
    table += [f"| {label} | {report[key]:.2f} |" for key, label in labels.items()]
    languages = [f"{share:.0%} {language}" for language, share in LANGUAGES.items()]
    levels = [f"{share:.0%} level {level}" for level, share in LEVELS.items()]
    flags = f"--steps {arguments.steps} --seed {arguments.seed} --shortcuts {arguments.shortcuts:g}"
    if arguments.start is not None:
        flags = f"--start {arguments.start} {flags}"
    return README.format(
        parameters=report["parameters"],
        vocabulary=VOCABULARY,
        flags=flags,
        minutes=minutes,
        steps=report["steps"],
        rows=ROWS,
        width=WIDTH,
        languages=", ".join(languages),
        english=ENGLISH_REASONING,
        levels=", ".join(levels),
        shortcuts=arguments.shortcuts,
        overall=report["overall"],
        problems=FINAL_PROBLEMS,
        table="\n".join(table),
    )


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
