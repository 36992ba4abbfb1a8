"""Translates the questions of a data set, through any OpenAI-compatible endpoint.

    OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=... python -m tools.translate \
        --source gsm8k_train.jsonl --to gsm8k_ko.jsonl --language Korean --model NAME

A row of the file that it writes; `TranslatedGSM8K` reads it, and `Jsonl` does:

    {"source_line": 1, "language": "ko", "question": "나탈리아는 ...", "answer": "... #### 72",
     "source_question": "Natalia sold clips ..."}

- The answer, and fields that are not named here, are the source's own.
- A translation is taken if it has every number of the question, and if enough of its words are in
  the language, by the measure of `rewards.languages`. Else the model is asked again, and told why.
- Timeouts, rate limits, errors of the server and garbage are asked again, too, later each time.
- A row is on disk as soon as it is taken, and in its order at the end. The same command goes on
  where it was ended, by SIGKILL too: what the file has is not asked again.
- What fails after all attempts is listed in TO.failed.jsonl, and the exit code is 1. The same
  command tries it again.
"""

import argparse
import json
import os
import random
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jaxgrpo.config.command_line import run_main
from jaxgrpo.data.row_files import read_rows
from jaxgrpo.data.rows import Row
from jaxgrpo.data.table import check_language_setting
from jaxgrpo.data.translated import SOURCE_LINE
from jaxgrpo.errors import UserError
from jaxgrpo.files import write_atomically
from jaxgrpo.text.language_codes import language_code
from tools.translate.checks import complaint
from tools.translate.endpoint import AttemptError, Endpoint
from tools.translate.output import append_row, done_lines, sort_rows

MAX_WAIT_S = 60.0
"""Seconds between two attempts, at most."""

MAX_FAILED_IN_A_ROW = 20
"""So many problems that fail one after the other end the program: the endpoint is at fault."""

REQUEST = """\
Translate this problem into {language}. Write every number in digits, exactly as it is there: do \
not spell it out, convert units or currencies, or leave it out. Do not solve the problem. Reply \
with the translation alone.

{question}"""


@dataclass(frozen=True)
class Translator:
    """Translates a question, in as many attempts as it takes.

    language: as the person named it
    attempts: for each question, at most
    backoff: seconds before the second attempt; they double with each
    stopped: set when no further attempt is to be made
    """

    endpoint: Endpoint
    language: str
    attempts: int
    backoff: float
    min_ratio: float
    stopped: threading.Event

    def translate(self, question: str) -> str:
        """Returns the translation; raises AttemptError if no attempt gives one."""
        code = language_code(self.language) or self.language
        request = REQUEST.format(
            language=f"{self.language} (ISO 639-1: {code})", question=question
        )
        text = request
        reason = ""
        for attempt in range(1, self.attempts + 1):
            wait = 0.0  # what the model did wrong it may do right at once
            try:
                translation = self.endpoint.ask(text)
                reason = complaint(question, translation, code, self.min_ratio)
                if not reason:
                    return translation
                text = f"{request}\n\nYour last translation was not taken: {reason}."
            except AttemptError as error:
                reason = str(error)
                wait = self._wait_after(attempt, error)
                if error.is_final:
                    break
            is_last = attempt == self.attempts
            if is_last or self.stopped.wait(wait):
                break
        raise AttemptError(reason)

    def _wait_after(self, attempt: int, error: AttemptError) -> float:
        """Returns the seconds until the next attempt, no two alike: not all ask again at once."""
        wait = max(error.wait, self.backoff * 2 ** (attempt - 1))
        return min(wait, MAX_WAIT_S) * random.uniform(0.75, 1.25)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the command line's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.translate", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add(
        "--source",
        required=True,
        help="JSON Lines or parquet, such as gsm8k_train.jsonl",
    )
    add("--to", type=Path, required=True, help="the file to write, or to go on with")
    add("--language", required=True, help="to translate into, such as Korean")
    add("--model", required=True, help="as the endpoint calls it")
    add("--question", default="question", help="the field to translate")
    add("--answer", default="answer", help="the field that stays as it is")
    add("--limit", type=int, help="only so many rows, the first ones")
    add("--concurrency", type=int, default=16, help="requests at a time, at most")
    add("--attempts", type=int, default=6, help="for each row, at most")
    add("--backoff", type=float, default=1.0, help="seconds before the second attempt")
    add("--timeout", type=float, default=120.0, help="seconds to wait for a reply")
    add("--temperature", type=float, default=0.3, help="of the model")
    add(
        "--min-ratio",
        type=float,
        default=0.7,
        help="least share of words in the language",
    )
    return parser.parse_args(argv)


def field_text(row: Row, name: str, flag: str) -> str:
    """Returns a field's text; raises UserError if it has none."""
    value = row.values.get(name)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise row.error(
            f'"{name}" is not there or has no text; give --{flag} another field, or mend the line'
        )
    return row.text(name, flag)


def main(argv: list[str]) -> None:
    """Translates what is missing; exits with 1 if some of it fails."""
    settings = parse(argv)
    check_language_setting(settings.language)
    for name in ("concurrency", "attempts"):
        if getattr(settings, name) < 1:
            raise UserError(
                f"--{name} is {getattr(settings, name)}: it must be at least 1"
            )
    address = os.environ.get("OPENAI_BASE_URL", "")
    if not address:
        raise UserError(
            "OPENAI_BASE_URL is not set: set it to the address of an OpenAI-compatible endpoint, "
            "such as http://localhost:8000/v1"
        )
    endpoint = Endpoint(
        address,
        os.environ.get("OPENAI_API_KEY", ""),
        settings.model,
        settings.temperature,
        settings.timeout,
    )
    rows = list(read_rows(settings.source))
    translator = Translator(
        endpoint,
        settings.language,
        settings.attempts,
        settings.backoff,
        settings.min_ratio,
        threading.Event(),
    )
    failed = translate_rows(rows, translator, settings)
    sort_rows(settings.to)
    asked = len(rows[: settings.limit])
    listed = settings.to.with_name(settings.to.name + ".failed.jsonl")
    if not failed:
        listed.unlink(missing_ok=True)
        print(f"{settings.to} has all {asked:,} rows")
        return
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in failed]
    write_atomically(listed, "".join(lines).encode())
    print(
        f"{settings.to} has {asked - len(failed):,} of {asked:,} rows; the other "
        f"{len(failed):,} are in {listed}, each with its reason; the same command tries them again",
        file=sys.stderr,
    )
    sys.exit(1)


def translate_rows(
    rows: Sequence[Row], translator: Translator, settings: argparse.Namespace
) -> list[dict[str, object]]:
    """Appends a translation of each row that the file lacks; returns those that failed, and why."""
    questions = {
        row.line: field_text(row, settings.question, "question") for row in rows
    }
    answers = {row.line: field_text(row, settings.answer, "answer") for row in rows}
    code = language_code(translator.language) or translator.language
    done = done_lines(settings.to, questions, code)
    asked = rows[: settings.limit]
    waiting = [row for row in asked if row.line not in done]
    failed: list[dict[str, object]] = []
    failed_in_a_row = 0
    translations = _translations(waiting, questions, translator, settings.concurrency)
    num_there = len(asked) - len(waiting)
    with (
        tqdm(total=len(asked), initial=num_there, unit="row", disable=None) as bar,
        settings.to.open("ab") as file,
        closing(translations),
    ):
        for row, translation in translations:
            line = {SOURCE_LINE: row.line, "source_question": questions[row.line]}
            if isinstance(translation, str):
                failed_in_a_row = 0
                rest = row.meta({settings.question, settings.answer})
                texts = {"question": translation, "answer": answers[row.line]}
                append_row(file, rest | {"language": code} | texts | line)
            else:
                failed_in_a_row += 1
                failed.append(line | {"reason": str(translation)})
                bar.set_postfix(failed=len(failed))
            if failed_in_a_row == MAX_FAILED_IN_A_ROW:
                raise UserError(
                    f"{failed_in_a_row} rows failed one after the other, the last by: "
                    f"{translation}; check the endpoint and --model; the same command goes on"
                )
            bar.update()
    return sorted(failed, key=lambda row: int(str(row[SOURCE_LINE])))


def _translations(
    rows: Sequence[Row],
    questions: dict[int, str],
    translator: Translator,
    concurrency: int,
) -> Generator[tuple[Row, str | AttemptError]]:
    """Yields each row with its translation, or the error that it failed with, as they end."""
    executor = ThreadPoolExecutor(concurrency)
    try:
        futures: dict[Future[str], Row] = {
            executor.submit(translator.translate, questions[row.line]): row
            for row in rows
        }
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, AttemptError):
                raise error
            yield futures[future], future.result() if error is None else error
    finally:
        # After an error nobody waits for what has not begun, nor for another attempt.
        translator.stopped.set()
        executor.shutdown(cancel_futures=True)


if __name__ == "__main__":
    run_main(main)
