"""The page about runs holds all that it shows, needs nothing besides, and takes text for text."""

import json
import re
import shutil
import subprocess
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
import vl_convert

from jaxgrpo.errors import UserError
from jaxgrpo.rewards.maths.verifier import Accuracy
from tests.tiny_reports import CONTEXT, HOSTILE, MIXED, make_run, write_lines
from tests.tiny_runs import make_config
from tools.report import __main__ as command
from tools.report import curves, page, pass_rates
from tools.report.rollouts import extraction_methods, mark_foreign, read_answer
from tools.report.runs import differences, group_runs, read_runs

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the folders of three runs: two that differ in a seed, and one of another rate."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_run(folder / "plain-0", seed=0, texts=(MIXED, *HOSTILE)),
        make_run(folder / "plain-1", seed=1),
        make_run(folder / "fast", seed=0, learning_rate=1e-3, steps=9),
    ]


@pytest.fixture(scope="module")
def made(runs):
    return page.make_page(runs)


class Document(HTMLParser):
    """What a page consists of: its tags with their attributes, and the text of its scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id", "") if tag == "script" else ""

    def handle_endtag(self, tag):
        self._script = ""

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def content_of(made: page.Page) -> dict:
    return json.loads(Document(made.html.decode("utf-8")).scripts["content"])


# --- runs ---


def test_runs_that_differ_in_a_seed_are_one_group(runs):
    seeds, fast = group_runs(read_runs(runs))
    assert (seeds.label, len(seeds.runs)) == ("plain (2 seeds)", 2)
    assert (fast.label, len(fast.runs)) == ("fast", 1)


def test_the_settings_in_which_runs_differ_are_told(runs):
    assert differences(read_runs(runs)) == {
        "seed": [0, 1, 0],
        "data.seed": [7, 8, 7],
        "optimizer.learning_rate": [1e-6, 1e-6, 1e-3],
    }


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    outs = [make_run(tmp_path / name / "out") for name in "ab"]
    assert [run.name for run in read_runs(outs)] == ["a/out", "b/out"]
    with pytest.raises(UserError, match="give each run once"):
        read_runs([outs[0], outs[0]])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no steps"):
        page.make_page([tmp_path])


# --- curves ---


def test_a_curve_has_the_mean_of_its_runs_and_their_range(runs):
    groups = group_runs(read_runs(runs))
    chart = curves.curve("reward/accuracy", groups)
    rows = [row for row in curves.rows(chart["columns"]) if row["run"] != "fast"]
    values = 0.5 + 0.4 * np.sin(np.arange(1, 7) + np.array([[0], [1]]))  # [runs, steps]
    means = np.array(
        [[run[max(0, i - 2) : i + 1].mean() for i in range(6)] for run in values]
    )
    for name, expected in (
        ("value", values.mean(axis=0)),
        ("mean", means.mean(axis=0)),
        ("low", means.min(axis=0)),
        ("high", means.max(axis=0)),
    ):
        np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-4)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_step_without_a_value_is_left_out(runs):
    chart = curves.curve("policy/kl", group_runs(read_runs(runs[:1])))
    assert chart["columns"]["step"] == [1, 3, 4, 5, 6]
    assert "low" not in chart["columns"]


def test_long_curves_are_averaged_to_fewer_points(tmp_path):
    run = make_run(tmp_path / "long", steps=1000, groups=0)
    chart = curves.curve("completion/tokens", group_runs(read_runs([run])), 50)
    columns = chart["columns"]
    assert len(columns["step"]) == 50
    # Tokens are 30 + step: averaging does not change that.
    np.testing.assert_allclose(
        np.array(columns["value"]) - columns["step"], 30, atol=0.1
    )


def test_every_chart_is_one_that_vega_lite_draws(made):
    content = content_of(made)
    titles = [section["title"] for section in content["sections"]]
    assert titles == [
        "Rewards",
        "Difficulty filter",
        "Policy",
        "Length",
        "Speed",
        "Accuracy, language by language",
        "Words in the target language, language by language",
        "Pass rates of the groups that were written",
    ]
    charts = [chart for section in content["sections"] for chart in section["charts"]]
    assert len(charts) == 12
    for chart in charts:
        values = {"values": curves.rows(chart["columns"])}
        svg = vl_convert.vegalite_to_svg(chart["spec"] | {"data": values})
        marks = re.findall(r'<path aria-label="([^"]+)"|d="M', svg)
        assert len(marks) > 1, chart["title"]


@pytest.mark.parametrize("judged", [1, 4, 5, 7, 8])
def test_every_pass_rate_has_its_bin(judged):
    upper = (0.0, 0.2, 0.4, 0.6, 0.8)
    for solved in range(judged + 1):
        place = pass_rates.BINS.index(pass_rates.bin_of(solved, judged))
        rate = solved / judged
        if place == 6:
            assert solved == judged
        elif place == 5:
            assert 0.8 < rate < 1
        else:
            assert rate <= upper[place] + 1e-9
            assert place == 0 or rate > upper[place - 1] + 1e-9


def test_a_histogram_counts_each_group_once():
    heads = [page.GroupHead(step, step % 5, 4, 0) for step in range(1, 101)]
    heads.append(page.GroupHead(3, 0, 0, 0))  # of which nothing is known
    columns = pass_rates.histogram("run", heads)["columns"]
    assert sum(columns["groups"]) == 100
    assert len(set(columns["step"])) <= pass_rates.MAX_BARS
    first = dict(zip(columns["rate"][:7], columns["groups"][:7], strict=True))
    assert sum(first.values()) == 3  # steps 1, 2 and 3


# --- completions ---


@pytest.mark.parametrize("text", [MIXED, *HOSTILE, ""])
@pytest.mark.parametrize("language", ["ko", "en", "xx"])
def test_pieces_are_the_text(text, language):
    expected = unicodedata.normalize("NFC", re.sub("[\ud800-\udfff]", "\ufffd", text))
    assert "".join(mark_foreign(text, language)) == expected


def test_foreign_words_are_every_second_piece():
    pieces = mark_foreign(MIXED, "ko")
    assert pieces[1::2] == ["So we add the apples together"]
    assert mark_foreign("사과 7개", "ko") == ["사과 7개"]


def test_what_the_verifier_read_is_told_by_the_settings(tmp_path):
    config = make_config(tmp_path)
    config.rewards["accuracy"].function = Accuracy(extract=("number",))
    out = make_run(tmp_path / "run")
    plain = read_runs([out])[0].settings
    assert read_answer(MIXED, extraction_methods(plain)) == "7"
    own = plain | {"rewards.accuracy.function.extract": ["number"]}
    own["rewards.accuracy.function"] = "somewhere:Else"
    assert read_answer("it is 41 or 42", extraction_methods(own)) == "42"
    unknown = plain | {"rewards.accuracy.function": "somewhere:else"}
    assert extraction_methods(unknown) == ()
    assert read_answer(MIXED, ()) is None


# --- the page ---


def test_the_page_has_all_that_was_written(made, runs):
    content = content_of(made)
    assert (made.shown, made.written) == (42, 42)
    assert len(content["groups"]) == content["written"] == 42
    group = content["groups"][0]
    assert {name: group[name] for name in ("run", "step", "language", "kept")} == {
        "run": 0,
        "step": 1,
        "language": "ko",
        "kept": True,
    }
    right, hostile, *_ = group["completions"]
    assert right["read"] == "7"
    assert right["rewards"] == {"accuracy": 1.0, "language/ratio": None}
    assert (right["reward"], right["advantage"], right["tokens"]) == (1.0, 1.0, 12)
    assert "".join(hostile["pieces"]) == HOSTILE[0]
    assert group["context"] == []
    assert [
        {"role": turn["role"], "content": "".join(turn["pieces"])}
        for turn in content["groups"][1]["context"]
    ] == CONTEXT
    (differing, held_out) = content["tables"]
    assert ["optimizer.learning_rate", "1e-06", "1e-06", "0.001"] in differing["rows"]
    assert held_out["rows"][0] == ["plain-0", "0.25 → 0.5", "- → -", "- → -"]


def test_nothing_that_a_model_writes_is_read_as_html(made, tmp_path):
    harmless = make_run(tmp_path / "plain-0")
    tags = Document(made.html.decode("utf-8")).tags
    assert tags == Document(page.make_page([harmless]).html.decode("utf-8")).tags
    assert "img" not in {tag for tag, _ in tags}


def test_the_page_asks_nothing_of_a_network(made):
    document = Document(made.html.decode("utf-8"))
    for tag, attributes in document.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = (page.HERE / "page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    script = document.scripts["script"]
    assert not re.search(r"\b(fetch|import|XMLHttpRequest|innerHTML)\b", script)


def test_a_page_of_much_writing_is_smaller_than_its_bound(tmp_path, made):
    texts = [f"{number} " + "긴 글입니다. " * 40 for number in range(4)]
    run = make_run(tmp_path / "much", steps=50, groups=4, texts=texts)
    other = make_run(tmp_path / "little", seed=3)
    bound = 1_400_000
    small = page.make_page([run, other], max_bytes=bound)
    assert len(made.html) < page.MAX_BYTES
    assert len(small.html) < bound
    content = content_of(small)
    assert small.written == 50 * 4 + 6 * 2
    assert small.shown == len(content["groups"]) < small.written
    assert {group["run"] for group in content["groups"]} == {0, 1}
    steps = sorted({group["step"] for group in content["groups"] if not group["run"]})
    assert steps[-1] - steps[0] > 40
    with pytest.raises(UserError, match="give fewer runs"):
        page.make_page([run], max_bytes=900_000)


def test_a_group_that_is_too_much_for_the_page_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", steps=1, groups=1, texts=["x" * 2_000_000])
    small = page.make_page([run], max_bytes=1_500_000)
    assert (small.shown, small.written) == (0, 1)


def test_a_run_without_completions_has_its_curves(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "rollouts.jsonl").unlink()
    (run / "summary.json").unlink()
    write_lines(run / "metrics.jsonl", [{"step": 1, "reward/accuracy": 0.5}])
    content = content_of(page.make_page([run]))
    assert content["groups"] == content["tables"] == []
    assert [section["title"] for section in content["sections"]] == ["Rewards"]


def test_the_command_says_where_the_page_is(runs, tmp_path, capsys):
    command.main([*map(str, runs), "--to", str(tmp_path / "new" / "page.html")])
    assert re.fullmatch(
        r".*/new/page\.html: \d\.\d MB, 42 of the 42 groups that were written\n",
        capsys.readouterr().out,
    )
    command.main([str(runs[0])])
    assert (runs[0] / "report.html").stat().st_size < page.MAX_BYTES


# --- in a browser ---


@pytest.fixture(scope="module")
def browse(made, tmp_path_factory):
    """Opens the page in Chromium at an address; returns its elements and what the console said."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_bytes(made.html)

    def open_at(hash_: str = "") -> tuple[str, str]:
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--user-data-dir={folder / 'profile'}",
                "--enable-logging=stderr",
                "--virtual-time-budget=20000",
                "--dump-dom",
                f"file://{folder}/page.html{hash_}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, done.stderr

    return open_at


def shown_rows(html: str) -> int:
    return len(re.findall(r'<tr class="row">', html))


def test_the_page_opens_in_a_browser_without_an_error(browse):
    html, errors = browse()
    assert "CONSOLE" not in errors
    assert '<body data-charts="12">' in html
    assert html.count('class="marks"') == 12
    assert shown_rows(html) == 25
    assert "108 of 108 completions." in html
    # What a model wrote is there, as text.
    assert "&lt;/script&gt;&lt;img src=x onerror=" in html
    assert "<title>jaxgrpo runs</title>" in html


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ("#step=3&language=en", 8),
        ("#level=1&kept=yes", 54),
        ("#reward+from=0.5&run=fast", 18),
        ("#text=onerror", 12),
        ("#text=step+by+step", 54),
        ("#text=nowhere", 0),
    ],
)
def test_filters_choose_what_is_shown(browse, chosen, count):
    html, errors = browse(chosen)
    assert "CONSOLE" not in errors
    assert f"{count} of 108 completions." in html
    assert shown_rows(html) == min(count, 25)


def test_a_completion_opens_with_its_foreign_words_marked(browse):
    html, errors = browse("#step=1&language=ko&open=1")
    assert "CONSOLE" not in errors
    detail = html.partition('<div class="detail">')[2]
    assert "<mark>So we add the apples together</mark>" in detail
    assert "<dt>read</dt><dd>7</dd>" in detail
    assert detail.count('aria-current="') == 4
    assert "<h3>system</h3>" not in detail
    html, _ = browse("#step=1&language=en&open=1")
    detail = html.partition('<div class="detail">')[2]
    roles = [detail.index(f"<h3>{turn['role']}</h3>") for turn in CONTEXT]
    assert roles == sorted(roles)
    assert roles[-1] < detail.index("<h3>prompt</h3>")
