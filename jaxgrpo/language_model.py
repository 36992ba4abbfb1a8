"""A model that answers prompts, from Python: a Hugging Face folder's, or any checkpoint of a run.

    model = LanguageModel.load("out/quickstart")
    answers = model.sample(["What is 2 + 3?", "What is 7 * 8?"], n=4, temperature=1.0)

The prompts go through the model's own chat template, the samples through the engine of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.build import load_policy, match_tokenizer, model_folder
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, dividing_rows
from jaxgrpo.distributed import compilation_cache
from jaxgrpo.distributed.mesh import make_mesh, row_devices
from jaxgrpo.errors import UserError
from jaxgrpo.export import read_run
from jaxgrpo.files import fetched_file
from jaxgrpo.models import hf_folder, lora
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.programs import SamplingPrograms, compile_sampling
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import Group, SamplingRequest
from jaxgrpo.text import tokenizer
from jaxgrpo.text.tokenizer import Tokenizer
from jaxgrpo.types import Params, SamplingParams

MAX_SLOTS = 64
"""Samples that are made side by side, at most."""

WIDTH_STEP = 64
"""Prompt widths are multiples of it, so that prompts of like lengths share their programs."""


@dataclass(frozen=True)
class LanguageModel:
    """A model that answers prompts; `load` makes one.

    folder: of the model
    spec: what its programs are compiled for
    params: the policy's parameters, on the devices
    step: of the checkpoint that they are from; None: they are the folder's
    system: a system message before every prompt; "": none
    """

    folder: Path
    spec: ModelSpec
    tokenizer: Tokenizer
    params: Params
    step: int | None
    system: str

    @staticmethod
    def load(
        path: str | Path = "", step: int | None = None, model: str | Path = ""
    ) -> "LanguageModel":
        """Returns a model.

        path: of a run (its --config.out), or of a Hugging Face folder; "": the embedded model
        step: of the run's checkpoint; None: the newest
        model: the run's model folder, where it is no longer where it was

        Raises UserError if there is no such model or checkpoint.
        """
        # 1. Files: a run's say what its checkpoints are beside.
        run = None
        if model or step is not None or _is_run(path):
            run = read_run(path)
            with Checkpoints(path) as checkpoints:
                step = checkpoints.newest() if step is None else step
        folder = run.folder if run else model_folder(str(path))
        folder = model_folder(str(model)) if model else folder
        network, tokens = match_tokenizer(
            folder, hf_folder.check_folder(folder), tokenizer.load(folder)
        )
        # 2. Devices and parameters.
        compilation_cache.enable()
        spec = ModelSpec(
            network=network,
            mesh=make_mesh(rows=dividing_rows(network, MAX_SLOTS)),
            adapters=run.adapters if run else lora.NO_LORA,
            scan_layers=run.is_stacked if run else False,
        )
        shapes = SamplingSpec(
            1, 1, slots=row_devices(spec.mesh), eos_ids=tokens.eos_ids
        )
        params, _ = load_policy(
            compile_sampling(spec, shapes),
            folder,
            has_adapters=bool(spec.adapters.rank),
            out=path if run else None,
            step=step,
        )
        return LanguageModel(
            folder=folder,
            spec=spec,
            tokenizer=tokens,
            params=params,
            step=step,
            system=run.system if run else "",
        )

    def sample(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 256,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        min_tokens: int = 0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Returns n completions of each prompt, in order: texts with `tokens` and `finished`.

        prompts: one, or several
        temperature: divides the logits; 0 takes the likeliest token
        max_tokens, min_tokens: of a completion
        top_k, top_p, min_p: which tokens may be drawn: see types.SamplingParams
        stop: texts that end a completion
        seed: another one gives other samples; a sample depends on it, the prompt and its number

        Raises UserError if a value makes no sense, or a prompt is too long for the model.
        """
        params = SamplingParams(temperature, top_k, top_p, min_p, min_tokens)
        groups = self.groups(prompts, n, params, max_tokens, stop, seed)
        return [group.texts for group in groups]

    def groups(
        self,
        prompts: str | Sequence[str],
        n: int,
        sampling: SamplingParams,
        max_tokens: int,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[Group]:
        """Returns the completions of each prompt with their tokens and log-probabilities.

        The parameters, and what is raised, are those of `sample`.
        """
        settings = sampling._asdict() | {"n": n, "max_tokens": max_tokens, "stop": stop}
        check_settings(settings)
        prompts = [prompts] if isinstance(prompts, str) else prompts
        lengths = [len(self._token_ids(prompt)) for prompt in prompts]
        for length in lengths:
            check_length(self.folder, length, max_tokens)
        if not prompts:
            return []
        programs = self._programs_for(max(lengths), max_tokens, n * len(prompts))
        width = self._width(max(lengths), max_tokens)
        engine = Engine(programs, self.tokenizer, width, max_tokens, seed, self.system)
        request = SamplingRequest(n, sampling, "sample", tuple(stop))
        # Random numbers follow a problem's id: here the prompt is the problem.
        problems = [Problem(prompt, prompt, "") for prompt in prompts]
        return engine(self.params, problems, request, step=0)

    def _token_ids(self, prompt: str) -> list[int]:
        """Returns the tokens of a prompt as it is asked.

        Raises UserError for a token that the model has no row for.
        """
        ids = self.tokenizer.prompt(prompt, self.system)
        rows = self.spec.network.vocab_size
        if max(ids, default=0) >= rows:
            raise UserError(
                f"the prompt holds a token past the model's {rows:,} rows: leave that token out"
            )
        return ids

    def _width(self, longest: int, max_tokens: int) -> int:
        """Returns the columns of prompts, as few as take the longest and share programs."""
        width = -(-longest // WIDTH_STEP) * WIDTH_STEP
        positions = hf_folder.max_positions(self.folder)
        return min(width, positions - max_tokens) if positions else width

    def _programs_for(
        self, longest: int, max_tokens: int, samples: int
    ) -> SamplingPrograms:
        """Returns the programs for prompts and samples, compiled when they are first called."""
        # The next power of two: samples that are left over refill the slots.
        slots = min(1 << (samples - 1).bit_length(), MAX_SLOTS)
        devices = row_devices(self.spec.mesh)
        spec = SamplingSpec(
            prompt_width=self._width(longest, max_tokens),
            new_tokens=max_tokens,
            slots=-(-slots // devices) * devices,
            eos_ids=self.tokenizer.eos_ids,
        )
        return compile_sampling(self.spec, spec)


def _is_run(path: str | Path) -> bool:
    """Returns whether a folder is a run's, and not a model's: both have a config.json."""
    config = fetched_file(path, "config.json")
    return config.is_file() and '"architectures"' not in config.read_text("utf-8")


def check_settings(
    settings: Mapping[str, object], names: Mapping[str, str] | None = None
) -> None:
    """Raises UserError for the first setting of sampling that makes no sense.

    settings: by the names of `LanguageModel.sample`
    names: how people have written them, where not so
    """
    s: dict = dict(settings)
    for name, is_fine, rule in (
        ("n", s["n"] >= 1, "at least 1"),
        ("max_tokens", s["max_tokens"] >= 1, "at least 1"),
        (
            "temperature",
            0 <= s["temperature"] < float("inf"),
            "a number from 0 (always the likeliest token) up",
        ),
        ("top_k", s["top_k"] >= 0, "at least 0 (all tokens)"),
        ("top_p", 0 < s["top_p"] <= 1, "above 0 and at most 1 (all tokens)"),
        ("min_p", 0 <= s["min_p"] <= 1, "from 0 (all tokens) to 1"),
        (
            "min_tokens",
            0 <= s["min_tokens"] <= s["max_tokens"],
            f"from 0 to {(names or {}).get('max_tokens', 'max_tokens')} {s['max_tokens']}",
        ),
        ("stop", all(s["stop"]), "a text that is not empty"),
    ):
        if not is_fine:
            shown = (names or {}).get(name, name)
            raise UserError(f"{shown} is {s[name]}: it must be {rule}")


def check_length(folder: Path, length: int, max_tokens: int) -> None:
    """Raises UserError for an empty prompt, and for more tokens than the model has positions for.

    length: of the prompt
    """
    positions = hf_folder.max_positions(folder)
    if not length:
        raise UserError("the prompt is empty: give one")
    if positions and length + max_tokens > positions:
        also = ""
        if length < positions:
            also = f", or lower max_tokens to {positions - length}"
        raise UserError(
            f"the prompt has {length:,} tokens, which with {max_tokens:,} new ones are more than "
            f"the {positions:,} that {folder} was made for: shorten it{also}"
        )
