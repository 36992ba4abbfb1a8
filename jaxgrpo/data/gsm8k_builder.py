"""Builds GSM8K with TFDS, without TensorFlow: ArrayRecord files, read by `as_data_source`.

Importing this module imports tensorflow_datasets and registers "gsm8k" with it.
"""

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from jaxgrpo.data.json_rows import read_rows
from jaxgrpo.errors import UserError

HOMEPAGE = "https://github.com/openai/grade-school-math"
FILES = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
URLS = {"train": f"{FILES}/train.jsonl", "test": f"{FILES}/test.jsonl"}

DESCRIPTION = """\
GSM8K: grade-school mathematics word problems of two to eight steps, written by people, 7,473 to
train on and 1,319 to test on, each with a solution in words that ends in "#### " and the number.
"""

CITATION = """\
@article{cobbe2021gsm8k,
  title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe, Karl and Kosaraju, Vineet and Bavarian, Mohammad and Chen, Mark and Jun, Heewoo and
          Kaiser, Lukasz and Plappert, Matthias and Tworek, Jerry and Hilton, Jacob and
          Nakano, Reiichiro and Hesse, Christopher and Schulman, John},
  journal={arXiv preprint arXiv:2110.14168},
  year={2021}
}
"""


Rows = Iterator[tuple[int, dict[str, str | int]]]
"""(key, example) pairs, as TFDS takes them from a builder."""


def _url_info(size: int, sha256: str) -> UrlInfo:
    return UrlInfo(size=tfds.core.utils.Size(size), checksum=sha256, filename=None)


class GSM8KBuilder(tfds.core.GeneratorBasedBuilder):
    """The official files of GSM8K as rows of question, answer ("... #### 42") and line, from 1."""

    name = "gsm8k"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The official files of 2021."}  # noqa: RUF012  TFDS's interface
    # The size and checksum that each download must have: a file that was cut short or changed is
    # refused.
    url_infos = {  # noqa: RUF012  TFDS's interface
        URLS["train"]: _url_info(
            4_166_206,
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        ),
        URLS["test"]: _url_info(
            749_738, "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
        ),
    }

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        line = tfds.features.Scalar(
            np.int64, doc="the line of the official file, from 1"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"question": text(), "answer": text(), "line": line}
            ),
            homepage=HOMEPAGE,
            citation=CITATION,
            license="MIT",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Rows]:
        _check_reachable(URLS["train"])
        files = dl_manager.download(URLS)
        return {split: self._generate_examples(file) for split, file in files.items()}

    def _generate_examples(self, path: os.PathLike[str]) -> Rows:
        for row in read_rows(Path(path)):
            example: dict[str, str | int] = {
                "question": row.text("question", "path"),
                "answer": row.text("answer", "path"),
                "line": row.line,
            }
            # The line number is unique in the split, as TFDS's keys have to be.
            yield row.line, example


def _check_reachable(url: str) -> None:
    """Raises OSError at once if there is no network.

    TFDS alone would retry for minutes, with a warning each time.
    """
    requests.head(url, timeout=10)


def prepare(data_dir: str = "") -> GSM8KBuilder:
    """Returns the builder, after downloading and preparing its data if they were not there.

    data_dir: where the data are prepared; "" is TFDS's own folder

    Raises UserError if the download or the folder fails, with the way round it.
    """
    try:
        builder = GSM8KBuilder(data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        reason = textwrap.shorten(str(error), 160)
        raise UserError(
            f"GSM8K is not prepared in {data_dir or tfds.core.constants.DATA_DIR} and could not be "
            f"downloaded ({type(error).__name__}: {reason}); fetch {URLS['train']} and test.jsonl "
            "beside it by other means and set --config.data.path=gsm8k_train.jsonl "
            "--config.data.heldout_path=gsm8k_test.jsonl"
        ) from error
    return builder
