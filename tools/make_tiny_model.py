"""Makes the embedded model, jaxgrpo/tiny: a tokenizer, then `jaxgrpo.sft` from random weights.

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
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import sentencepiece

from jaxgrpo.config import (
    Evaluation,
    EvaluationSampling,
    Optimizer,
    Packing,
    SFTConfig,
)
from jaxgrpo.data import arithmetic
from jaxgrpo.errors import FixedFields
from jaxgrpo.export import export
from jaxgrpo.models import hf_folder, transformer
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.maths.verifier import accuracy
from jaxgrpo.sft import sft

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

MAX_PROBLEMS = 10**6
"""Problems with solutions that there are; training ends long before it has seen all of them."""
HELDOUT_PROBLEMS = 1200
"""Held-out problems of an evaluation: all that there are."""

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
    parser.add_argument("--evaluate-every", type=int, default=400)
    arguments = parser.parse_args()

    # 1. A tokenizer and weights to begin with, in a folder beside the one to be made, which is only
    # written to when all is done. The same command goes on with what that folder holds.
    making = arguments.out.with_name(f"{arguments.out.name}.making")
    if not making.exists():
        making.mkdir(parents=True)
        if arguments.start is None:
            make_tokenizer(making, arguments.seed)
            write_random_weights(making, arguments.seed)
        else:
            shutil.copytree(arguments.start, making, dirs_exist_ok=True)

    # 2. The training, 3. the model with a README of what was measured.
    config = make_config(making, arguments)
    for _ in sft(config):
        pass
    exported = making / "exported"
    export(Path(config.out), exported)
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    minutes = summary["seconds"] / 60
    (exported / "README.md").write_text(make_readme(summary, minutes, arguments))
    shutil.copytree(exported, arguments.out, dirs_exist_ok=True)
    shutil.rmtree(making)
    print(f"{arguments.out}: made in {minutes:.0f} minutes")


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


@dataclass
class PretrainingText(FixedFields):
    """A Source: the embedded problems with solutions to learn, in the shares stated above.

    seed: of the problems, and of how they are solved
    shortcuts: the share of the problems of several steps that are answered without them
    """

    seed: int = 0
    shortcuts: float = 0.45

    def train(self) -> "SolvedProblems":
        """Returns more problems than are ever learned."""
        return SolvedProblems(self.seed, self.shortcuts)

    def heldout(self) -> list[Problem]:
        """Returns the embedded problems that are held out, solved as they should be."""
        return [
            with_solution(problem, arithmetic.solution(problem))
            for problem in arithmetic.Arithmetic().heldout()
        ]


class SolvedProblems(Sequence[Problem]):
    """Problems with solutions, each made when it is asked for; see PretrainingText."""

    def __init__(self, seed: int, shortcuts: float):
        self._seed = seed
        self._shortcuts = shortcuts
        self._sources = {
            (language, level): arithmetic.ArithmeticProblems(
                (language,), (level,), seed=seed + 1, size=MAX_PROBLEMS
            )
            for language, level in itertools.product(LANGUAGES, LEVELS)
        }

    def __len__(self) -> int:
        return MAX_PROBLEMS

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        rng = random.Random(f"{self._seed}/{index}")
        language = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
        level = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
        problem = self._sources[language, level][index]
        # Drawn for English, too, where both are the same.
        reasoning_language = "en" if rng.random() < ENGLISH_REASONING else language
        solution = arithmetic.solution(problem, reasoning_language)
        # Shortcuts are what reinforcement learning has to unlearn.
        if level > 1 and rng.random() < self._shortcuts:
            solution = without_steps(solution)
        return with_solution(problem, solution)


def with_solution(problem: Problem, solution: str) -> Problem:
    """Returns a problem with a solution to learn."""
    return replace(problem, meta={**problem.meta, "solution": solution})


def without_steps(solution: str) -> str:
    """Returns a solution's first line of thought, and then the answer at once."""
    opening, first, *_, closing, answer = solution.split("\n")
    return "\n".join([opening, first, closing, answer])


def write_random_weights(folder: Path, seed: int) -> None:
    """Writes model.safetensors, of which nothing has learned anything."""
    params = transformer.init(hf_folder.load_config(folder), jax.random.key(seed))
    with tempfile.TemporaryDirectory(dir=folder) as parent:
        # The folder's config stays as it is.
        written = Path(parent) / "model"
        hf_folder.save(jax.device_get(params), folder, written)
        (written / "model.safetensors").replace(folder / "model.safetensors")


def make_config(folder: Path, arguments: argparse.Namespace) -> SFTConfig:
    """Returns the config of the training, which begins with the weights in a folder."""
    return SFTConfig(
        data=PretrainingText(arguments.seed, arguments.shortcuts),
        rewards={"accuracy": Weighted(accuracy)},
        model=str(folder),
        out=str(folder / "run"),
        seed=arguments.seed,
        steps=arguments.steps,
        packing=Packing(rows=ROWS, width=WIDTH, micro_batch=8),
        optimizer=Optimizer(
            learning_rate=arguments.learning_rate,
            warmup_steps=50,
            schedule="cosine",
            weight_decay=0.1,
            b1=0.9,
            b2=0.98,
        ),
        sampling=EvaluationSampling(PROMPT_WIDTH, NEW_TOKENS, slots=192),
        evaluation=Evaluation(
            problems=HELDOUT_PROBLEMS, samples=2, every=arguments.evaluate_every
        ),
    )


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


def make_readme(
    summary: dict[str, Any], minutes: float, arguments: argparse.Namespace
) -> str:
    """Returns the text of the folder's README.md; summary: of the training."""
    accuracies = {"all": summary["accuracy_after"]}
    for language in LANGUAGES:
        accuracies[language] = summary["after"]["by_language"][language]["accuracy"]
    for level in range(1, 7):
        part = summary["after"]["by_level"][str(level)]
        accuracies[f"level {level}"] = part["accuracy"]
    table = ["| | accuracy |", "|---|---|"]
    table += [f"| {label} | {value:.2f} |" for label, value in accuracies.items()]
    languages = [f"{share:.0%} {language}" for language, share in LANGUAGES.items()]
    levels = [f"{share:.0%} level {level}" for level, share in LEVELS.items()]
    flags = f"--steps {arguments.steps} --seed {arguments.seed} --shortcuts {arguments.shortcuts:g}"
    if arguments.start is not None:
        flags = f"--start {arguments.start} {flags}"
    network = hf_folder.load_config(arguments.start or hf_folder.EMBEDDED)
    return README.format(
        parameters=transformer.parameter_count(transformer.shapes(network)),
        vocabulary=VOCABULARY,
        flags=flags,
        minutes=minutes,
        steps=summary["steps"],
        rows=ROWS,
        width=WIDTH,
        languages=", ".join(languages),
        english=ENGLISH_REASONING,
        levels=", ".join(levels),
        shortcuts=arguments.shortcuts,
        overall=summary["accuracy_after"],
        problems=HELDOUT_PROBLEMS,
        table="\n".join(table),
    )


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
