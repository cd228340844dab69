"""README and docs: every block of code runs, every command works, every list agrees with the code."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from hubs import overtaken
from recorded import RecordedScalars
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger

import hubrl
from hubrl import Hub, HubCallback
from hubrl.experiments.build_model import build_model
from hubrl.experiments.config import load_hub, read_config
from hubrl.experiments.run_envs import evaluation_env
from hubrl.experiments.study_config import read_study
from hubrl.methods import available

REPOSITORY = Path(__file__).parents[1]

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))

METHOD_PAGES = REPOSITORY / "docs" / "methods"

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page, language):
    return [
        code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language
    ]


def shortened(text):
    """The same trainings and evaluations, over in a moment."""
    text = re.sub(r"learn\([\d_]+", "learn(256", text)
    text = re.sub(
        r"^(hubrl train .*)$",
        r"\1 --set steps=512 --set eval_every=512 --set eval_episodes=1",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(
        r"--(steps|source-steps|episodes) [\d_]+",
        lambda found: f"--{found[1]} {1 if found[1] == 'episodes' else 512}",
        text,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the checkout, to write in."""
    return link_checkout(tmp_path_factory.mktemp("checkout"))


def link_checkout(folder):
    """Links to what examples of the pages read; the rest of the folder is theirs to write."""
    for name in ("agents", "envs", "configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def execute(command, folder):
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=one_thread,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, checkout):
    pytest.importorskip("mujoco")
    code = "import torch; torch.set_num_threads(1)\n" + shortened("\n".join(blocks(page, "python")))
    execute([sys.executable, "-W", "ignore", "-c", code], checkout)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/start.md",
        "docs/guides/my-agents.md",
        "docs/guides/other-spaces.md",
        "docs/guides/deploy.md",
    ],
)
def test_the_commands_of_a_page_work_in_their_order(page, tmp_path, run):
    pytest.importorskip("mujoco")
    link_checkout(tmp_path)
    for seed, name in enumerate(("ppo-CartPole-v1", "dqn-CartPole-v1", "careful")):
        PPO("MlpPolicy", "CartPole-v1", seed=seed, device="cpu").save(tmp_path / f"{name}.zip")
    for config in blocks(REPOSITORY / page, "yaml"):
        (tmp_path / "mine.yaml").write_text(config, encoding="utf-8")
    lines = [
        line.split(" #")[0].strip()
        for block in blocks(REPOSITORY / page, "sh")
        for line in block.splitlines()
        if line.startswith("hubrl ")
    ]
    assert len(lines) > 1
    for line in lines:
        if any(long in line for long in ("hub check", "hubrl study", "hubrl compare", "enjoy")):
            # Whole episodes, drawn or of each source, and hours of training: `make test` has no time for them.
            line = line + " --help"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of trainings that are this short
            code, out, err = run(*shlex.split(shortened(line))[1:])
        assert code == 0, f"{line}\n{out[-2000:]}\n{err[-2000:]}"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("transfer_ppo", "--steps 512"),
        ("transfer_dqn", "--steps 512 --source-steps 256"),
        ("transfer_atari", "--steps 128 --n-steps 16 --episodes 1"),
    ],
)
def test_the_scripts_to_copy_run(checkout, script, arguments):
    pytest.importorskip("ale_py" if script == "transfer_atari" else "mujoco")
    assert "Return" in execute(
        [sys.executable, "-W", "ignore", "-m", f"agents.{script}", *arguments.split()], checkout
    )


def test_the_metrics_page_names_exactly_the_tags_that_a_run_writes():
    page = (REPOSITORY / "docs" / "concepts" / "metrics.md").read_text(encoding="utf-8")
    documented = {tag for tag in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)}
    sources = [PPO("MlpPolicy", "CartPole-v1", seed=seed, device="cpu") for seed in (1, 2)]
    hub = Hub.from_agents(sources, names=["one", "two"])
    tags = RecordedScalars()
    # A probe may drop these untrained sources, and with them the router's gradient: one training with it, one without.
    for probe_share in (0.2, 0.0):
        model = PPO(
            env="CartPole-v1", **hub.agent(PPO), n_steps=256, n_epochs=1, device="cpu", seed=0
        )
        model.set_logger(Logger(None, [tags]))
        model.learn(2_000, callback=HubCallback(probe_share=probe_share, log_every=100))
    model = overtaken(trial_share=0.1)
    model.set_logger(Logger(None, [tags]))
    model.learn(5_000, callback=HubCallback(probe_share=0.0, warmup_share=0.0, log_every=100))
    made = hub.agent(DQN)
    model = DQN(
        made["policy"],
        "CartPole-v1",
        policy_kwargs=made["policy_kwargs"],
        learning_starts=50,
        device="cpu",
        seed=0,
    )
    model.set_logger(Logger(None, [tags]))
    model.learn(1_000, callback=HubCallback(log_every=100))
    for method in (
        "zoo-tuning",
        "kickstart",
        "multipolar",
        "componet",
        "progressive",
        "zero-gates",
    ):
        model = PPO(
            env="CartPole-v1",
            **hub.agent(PPO, method),
            n_steps=64,
            n_epochs=1,
            device="cpu",
            seed=0,
        )
        model.set_logger(Logger(None, [tags]))
        model.learn(200, callback=HubCallback(warmup_share=0.0, log_every=1))
    swings = [PPO("MlpPolicy", "Pendulum-v1", seed=seed, device="cpu") for seed in (1, 2)]
    kwargs = Hub.from_agents(swings, names=["one", "two"]).agent(PPO)
    model = PPO(env="Pendulum-v1", **kwargs, n_steps=64, n_epochs=1, device="cpu", seed=0)
    model.set_logger(Logger(None, [tags]))
    model.learn(64, callback=HubCallback(log_every=1))
    sb3s = ("rollout", "train", "time", "eval")
    assert {
        named(tag) for record in tags.records for tag in record if tag.split("/")[0] not in sb3s
    } == documented


def named(tag):
    """A tag as the metrics page names it."""
    tag = re.sub(r"^(gate|progressive/scale)/.+/(one|two)$", r"\1/<layer>/<source>", tag)
    tag = re.sub(
        r"^(multipolar/theta|componet/attention|zero-gates)/(one|two)$", r"\1/<source>", tag
    )
    tag = re.sub(r"^probe/verdict/(one|two)$", "probe/verdict/<source>", tag)
    tag = re.sub(
        r"^trust/(return|episodes|evaluates|played)/(one|two|fresh|together)$",
        r"trust/\1/<arm>",
        tag,
    )
    return (
        tag
        if tag.startswith("trust/")
        else re.sub(r"/(one|two|fresh|zoo-tuning)$", "/<pathway>", tag)
    )


def test_every_method_has_a_page_and_a_row_in_the_table_of_all():
    table = (METHOD_PAGES / "index.md").read_text(encoding="utf-8")
    assert {page.stem for page in METHOD_PAGES.glob("*.md")} - {"index"} == set(available())
    assert sorted(re.findall(r"^\| \[([\w-]+)\]\(\1\.md\)", table, re.MULTILINE)) == available()


@pytest.mark.parametrize("name", available())
def test_the_methods_pages_have_the_same_sections(name):
    text = (METHOD_PAGES / f"{name}.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [part for part in parts if not part.startswith("DQN")] == [
        *("Usage", "Equation", "Evidence", "Logged metrics", "Cost", "Known limits", "Results")
    ]
    assert text.startswith(f"# {name}\n")


@pytest.mark.parametrize("name", available())
def test_a_methods_page_names_the_studies_that_it_stands_in(name):
    text = (METHOD_PAGES / f"{name}.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^hubrl study configs/studies/([\w-]+)\.yaml", text, re.MULTILINE))
    assert documented
    for study in documented:
        spec = read_study(REPOSITORY / "configs" / "studies" / f"{study}.yaml")
        named = {
            method
            for case in spec.cases.values()
            for method in case.methods
            if method in spec.methods
        }
        assert name in {
            spec.methods[method].set.get("method", "hub-pathway") for method in named
        }, f"{study}.yaml does not train {name}"


@pytest.mark.parametrize("name", available())
def test_the_config_of_a_methods_page_makes_a_model(name, checkout):
    pytest.importorskip("mujoco")
    (text,) = blocks(METHOD_PAGES / f"{name}.md", "yaml")
    (checkout / f"{name}.yaml").write_text(text, encoding="utf-8")
    config = read_config(checkout / f"{name}.yaml")
    assert config.method == name
    with closing(evaluation_env(config)) as env:
        build_model(config, env, load_hub(config))


def links(page):
    """Targets of a page's links and pictures within the repository, with what follows `#`."""
    found = re.findall(
        r"\]\(([^)\s]+)\)",
        re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL),
    )
    return [
        target.partition("#")[::2] for target in found if not target.startswith(("http:", "https:"))
    ]


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(
        r"^#+ (.+)$",
        re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_paragraph_of_a_page_is_longer_than_five_lines():
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for part in re.split(r"\n\s*\n|\n(?=- |\d\. )", prose):
            text = part.strip()
            if not text.startswith(("|", "<!--", "!", ":::")):
                assert len(text.splitlines()) <= 5, f"{page.name}: {text[:80]}"
                assert len(text) <= 600, f"{page.name}: {text[:80]}"


def test_links_in_the_pages_exist():
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        for path, anchor in links(page):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            if anchor:
                assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_files_named_in_the_pages_exist():
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        for path in re.findall(
            r"`((?:hubrl|tests|agents|envs|configs|docs|results)/[\w/.-]+)`",
            page.read_text(encoding="utf-8"),
        ):
            assert (REPOSITORY / path).exists(), f"{page.name}: {path}"


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += {
            (page.parent / path).resolve() for path, _ in links(page) if path.endswith(".md")
        } - reached
    assert set(PAGES) <= reached


def named_pages(nav):
    """Paths in the navigation of mkdocs.yml."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for pages in entry.values():
                yield from named_pages(pages if isinstance(pages, list) else [pages])


def test_every_page_stands_in_the_navigation_of_the_site():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = REPOSITORY / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    pages |= {path.relative_to(docs).with_suffix(".md").as_posix() for path in NOTEBOOKS}
    outside = {"repository/CHANGELOG.md", "repository/CONTRIBUTING.md"}
    assert {*named_pages(site["nav"])} - outside == pages


def test_every_public_name_stands_in_the_reference():
    pages = (REPOSITORY / "docs" / "reference").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = {*re.findall(r"^::: hubrl\.(\w+)$", text, re.MULTILINE)}
    errors = {name for name in hubrl.__all__ if hasattr(hubrl.errors, name)}
    assert {*hubrl.__all__} - errors <= shown
    assert {*re.findall(r"^### ([\w-]+)$", text, re.MULTILINE)} >= {*available()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_is_stored_with_its_outputs(
    path, tmp_path, monkeypatch
):
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "figures"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebooks = importlib.import_module("run_notebooks")
    stored = notebooks.nbformat.read(path, as_version=4)
    printing = [
        cell for cell in stored.cells if cell.cell_type == "code" and "print(" in cell.source
    ]
    assert all(cell.outputs for cell in printing), "run docs/figures/run_notebooks.py"
    link_checkout(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's sockets
        notebooks.executed(path, tmp_path)


def test_the_first_screen_is_short():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    paragraphs = [
        part
        for part in re.split(r"\n\s*\n", prose)
        if not part.lstrip().startswith(("|", "-", "<!--", "!"))
    ]
    assert max(len(part.strip().splitlines()) for part in paragraphs) <= 5
    (table,) = re.findall(
        r"<!-- table: first-screen -->\n(.*?)<!-- /table -->", text, flags=re.DOTALL
    )
    assert len(table.splitlines()) <= 2 + 6


def test_the_tables_of_results_are_those_of_the_studies(monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "figures"))
    tables = importlib.import_module("write_tables")
    assert len(tables.marked_pages()) > 3
    for page in tables.marked_pages():
        text = page.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, (
            f"{page.name} is older than results/: run `python docs/figures/write_tables.py`"
        )
