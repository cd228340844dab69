"""Pages about runs and studies: complete, self-contained, and drawn by a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from runs import make_config, make_run

pytest.importorskip("plotly")

from hubrl.reports import page
from hubrl.reports.run_page import play_sources, write_run_page

LOADED = {"src", "href", "srcset", "data", "poster"}
"""Attributes by which a page loads something."""


class Parser(HTMLParser):
    """What a page loads, and its headings and ids."""

    def __init__(self):
        super().__init__()
        self.loaded, self.headings, self.ids, self._heading = [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in LOADED]
        self.ids += [value for name, value in attrs if name == "id"]
        self._heading = tag == "h2"

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False


def parsed(path):
    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def test_a_page_holds_everything_and_loads_nothing(finished):
    path = write_run_page(finished)
    assert path == finished / "report.html"
    text, parser = path.read_text(encoding="utf-8"), parsed(path)
    assert parser.headings == [
        *("What happened", "Return", "Who acted", "Pathway weights", "Trust, and why"),
        *("Sources", "Record"),
    ]
    assert {"returns", "acted", "weights", "trust"} <= set(parser.ids)
    assert all(value.startswith("data:") for value in parser.loaded), parser.loaded
    assert "<script src" not in text
    assert "Plotly.newPlot" in text


def test_a_video_in_the_runs_folder_is_part_of_its_page(tmp_path, finished):
    run = tmp_path / "filmed"
    shutil.copytree(finished, run)
    (run / "episode.mp4").write_bytes(b"not a real video")
    (run / "episode.gif").write_bytes(b"nor a real GIF")
    text = write_run_page(run, tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "data:video/mp4;base64," in text
    assert "data:image/gif;base64," in text


def test_a_large_video_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LARGEST_VIDEO", 3)
    (tmp_path / "long.mp4").write_bytes(b"long")
    assert page.videos(tmp_path) == ["<p>long.mp4 is too large for a page.</p>"]


def test_sources_can_be_played_for_their_levels(tmp_path, hub):
    run = make_run(tmp_path, hub, "features", level="features", steps=128, eval_every=64)
    assert "hubrl report RUN --play 5" in write_run_page(run).read_text(encoding="utf-8")
    play_sources(run, 2)
    text = write_run_page(run).read_text(encoding="utf-8")
    assert "hubrl report RUN --play 5" not in text
    assert "one, untouched" in text


def find_browser():
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(find_browser() is None, reason="no headless browser is installed")
def test_a_browser_draws_every_figure(tmp_path, finished):
    path = write_run_page(finished, tmp_path / "page.html")
    drawn = subprocess.run(
        [
            *(find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=10000", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    ).stdout
    assert drawn.count('class="main-svg"') >= 4
    assert len(re.findall(r'<div id="(?:returns|acted|weights|trust)"', drawn)) == 4


def test_methods_are_compared_without_a_study_being_written(run, tmp_path, hub):
    make_config(tmp_path, hub, steps=128, eval_every=64, probe_share=0.0)
    given = ("compare", "mine.yaml", "--methods", "scratch,single:one,zero-shot", "--seeds", "1")
    code, out, err = run(*given, "--jobs", 1)
    assert code == 0, err
    assert all(name in out for name in ("scratch", "single:one", "zero-shot"))
    results = tmp_path / "results" / "mine-compared"
    assert "study.yaml" in {path.name for path in results.iterdir()}
    parser = parsed(results / "report.html")
    assert parser.headings == ["Return at the end", "mine, hub hub", "Details"]
    assert all(value.startswith("data:") for value in parser.loaded)
    code, out, _ = run("report", results, "--out", "again.html")
    assert code == 0
    assert (tmp_path / "again.html").exists()

    # Of another config no row of before is shown: not where its runs fail, and none of sources.
    failing = ("--set", "algorithm_kwargs.n_steps=0", "--methods", "scratch", "--seeds", "1")
    code, out, _ = run("compare", "mine.yaml", *failing, "--jobs", 1)
    assert code == 1
    assert "IQM" not in out
    other = ("--set", "eval_episodes=1", "--methods", "scratch", "--seeds", "1")
    code, out, err = run("compare", "mine.yaml", *other, "--jobs", 1)
    assert code == 0, err
    assert "scratch" in out
    assert "zero-shot" not in out + (results / "runs.csv").read_text()


def test_rows_of_methods_and_seeds_that_are_no_longer_named_stay(run, tmp_path, hub):
    make_config(tmp_path, hub, steps=64, eval_every=64, probe_share=0.0)
    results, given = tmp_path / "results" / "mine-compared", ("compare", "mine.yaml", "--jobs", 1)

    def rows():
        table = pd.read_csv(results / "runs.csv")
        return {(method, seed) for method, seed in zip(table["method"], table["seed"], strict=True)}

    assert run(*given, "--methods", "scratch,zero-shot", "--seeds", "1")[0] == 0
    first = rows()
    code, out, err = run(*given, "--methods", "single:one", "--seeds", "2", "--json")
    assert code == 0, err
    assert list(json.loads(out)) == ["single:one"], "only what is named is printed"
    page = (results / "report.html").read_text()
    assert "single:one" in page
    assert "zero-shot" not in page, "only what is named is shown"
    assert rows() == first | {("single:one", 2)}
    assert run(*given, "--methods", "scratch", "--seeds", "1,2")[0] == 0
    assert rows() == first | {("single:one", 2), ("scratch", 2)}
    assert run("report", results)[0] == 0
    assert "zero-shot" in (results / "report.html").read_text(), "a report shows all rows"


MISTAKES = {
    "no run": (("report", "."), "neither a run"),
    "seeds": (("compare", "mine.yaml", "--seeds", "a-b"), "expected seeds as 1-5 or 1,3,8"),
    "method": (("compare", "mine.yaml", "--methods", "hub-pathwy"), "Did you mean 'hub-pathway'?"),
    "no hub": (
        ("compare", "mine.yaml", "--set", "hub=null", "--set", "method=scratch"),
        "names no hub and no agents; there is nothing to compare",
    ),
    "no video": (("enjoy", "{finished}", "--video", "a.avi"), "ends in .mp4 or .gif"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(run, tmp_path, hub, finished, mistake):
    make_config(tmp_path, hub)
    arguments, sentence = MISTAKES[mistake]
    code, _, err = run(*(one.format(finished=finished) for one in arguments))
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_the_commands_say_where_the_page_is_and_what_happened(run, finished, tmp_path):
    code, out, _ = run("explain", finished)
    assert code == 0
    assert "The saved agent acts as" in out
    code, out, _ = run("report", finished, "--out", tmp_path / "page.html")
    assert code == 0
    assert "page.html: open it in a browser." in out


def test_markdown_tables_become_html():
    text = "| a | b |\n|---|---|\n| 1 | **2** |\n"
    assert "<td>1</td><td><b>2</b></td>" in page.markdown_table(text)
    assert page.markdown_table("") == ""


def test_a_table_is_escaped():
    assert "<td>&lt;i&gt;</td>" in page.table(["x"], [["<i>"]])
