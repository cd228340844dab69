"""The command line: verbs that call the library and print what it says."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from hubrl.errors import BadConfig, HubrlError, SpaceMismatch
from hubrl.experiments import finished_run as finished
from hubrl.experiments import run as runs
from hubrl.experiments.config import assign, read_config
from hubrl.experiments.evaluation import PARALLEL, Played, check_hub, play, try_hub
from hubrl.export.plain_model import OBSERVATIONS
from hubrl.formats.spaces import describe
from hubrl.hub import RECOMMENDED, Hub
from hubrl.methods import available, find, options_of
from hubrl.outputs import Outputs
from hubrl.q_policies import Teaching
from hubrl.reading import read_agent
from hubrl.sources.source import Source
from hubrl.tasks.make_env import make_env

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Transfer in RL from a hub of pretrained agents.")
hub_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build, show, try and check hubs.")
app.add_typer(hub_app, name="hub")

# Tables in a file or a pipe keep their columns whole.
console = Console(width=None if sys.stdout.isatty() else 160)

Episodes = Annotated[int, typer.Option(min=1, help="Episodes, played deterministically; with drawn actions in Atari games.")]
Kwargs = Annotated[list[str] | None, typer.Option("--kwargs", help="name=value for the task, repeatable; values are YAML.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the episodes.")]
Atari = Annotated[bool, typer.Option("--atari", help="Put SB3's Atari preprocessing around the task.")]


class StepsBar(BaseCallback):
    """A bar of environment steps."""

    def __init__(self, bars: Progress, name: str, steps: int) -> None:
        super().__init__()
        self.bars, self.bar = bars, bars.add_task(name, total=steps)

    def _on_step(self) -> bool:
        self.bars.update(self.bar, completed=self.num_timesteps)
        return True


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A config's YAML file, or an interrupted run's folder to go on with.")],
    changes: Annotated[list[str] | None, typer.Option("--set", help="field=value, repeatable; values are YAML.")] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Where runs live.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The run's name; otherwise the config's, numbered.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print SB3's table.")] = False,
) -> None:
    """Train from a config, or go on with an interrupted run."""
    begun = config.is_dir()
    if begun and (changes or name):
        raise BadConfig(f"{config} goes on as it began; leave out --set and --name, or start another run from {config / 'config.yaml'}.")
    run = config if begun else runs.start_run(config, changes or [], folder, name)
    console.print(f"Run {run}; watch it with: tensorboard --logdir {folder}", soft_wrap=True)
    try:
        with _bar() as bars:
            result = runs.train(run, [StepsBar(bars, run.name, read_config(run / "config.yaml").steps)], verbose=int(verbose))
    except HubrlError:
        if not begun and not (run / "checkpoints").exists():
            shutil.rmtree(run)  # nothing was trained
        raise
    except KeyboardInterrupt:
        console.print(f"Interrupted; `hubrl train {run}` goes on with it.", soft_wrap=True)
        raise
    _print_table(["", ""], [(key, _short(value)) for key, value in result.items()])


@app.command()
def evaluate(
    agent: Annotated[Path, typer.Argument(help="A run, a hub's source (hubs/cheetah/sac), or an agent's zip.")],
    episodes: Episodes = 10,
    task: Annotated[str | None, typer.Option(help="Gymnasium id; the run's or the card's own task if not given.")] = None,
    kwargs: Kwargs = None,
    seed: Seed = runs.EVALUATION_SEED,
    atari: Atari = False,
) -> None:
    """Play an agent's episodes; nothing in its files is executed."""
    if task is None and (agent / "config.yaml").exists():
        if kwargs or atari:
            raise BadConfig(f"{agent} plays its own task; with --kwargs or --atari name a task too.")
        with _progress(f"{agent}", episodes) as on_step:
            played = finished.evaluate_run(agent, episodes, seed, on_step)
    else:
        source = finished.run_agent(agent) if (agent / "model.zip").exists() else read_agent(agent)
        named, named_kwargs = _task_of(source, task, kwargs)
        env = make_env(named, named_kwargs, n_envs=min(episodes, PARALLEL), seed=seed, preprocessing="atari" if atari else "none")
        with _progress(source.name, episodes) as on_step:
            played = play(source, env, episodes, name=source.name, on_step=on_step)
    _print_played([played])


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    out: Annotated[Path, typer.Argument(help="The zip to write, for PPO.load, A2C.load or DQN.load.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Merge a finished run's agent into one ordinary SB3 agent, where one network says exactly the same."""
    exported = finished.export_run(run, out, overwrite=overwrite)
    console.print(
        f"{out}: an ordinary {type(exported.model).__name__}, which differs by at most {exported.difference:.1e} on {OBSERVATIONS} "
        "random observations.",
        soft_wrap=True,
    )


@app.command()
def distill(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    out: Annotated[Path, typer.Argument(help="The zip to write, for PPO.load, A2C.load or DQN.load.")],
    steps: Annotated[int, typer.Option(min=1, help="Environment steps, over all parallel environments.")] = 100_000,
    net_arch: Annotated[str, typer.Option(help="Widths of the student's hidden layers.")] = "256,256",
    episodes: Episodes = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the student.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Train one ordinary SB3 agent to do what a finished run's agent does, and play both."""
    with _bar() as bars:
        bar = bars.add_task(run.name, total=steps)
        distilled = finished.distill_run(
            run,
            out,
            steps=steps,
            net_arch=_widths(net_arch),
            episodes=episodes,
            seed=seed,
            overwrite=overwrite,
            on_step=lambda done: bars.update(bar, completed=done),
        )
    _print_played([distilled.before, distilled.after])


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    folder: Annotated[Path, typer.Option("--runs", help="Where its runs live.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where its results are written.")] = Path("results"),
    agents: Annotated[Path | None, typer.Option(help="A folder with agents that are otherwise fetched from Hugging Face.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 2,
    case: Annotated[list[str] | None, typer.Option("--case", help="Run this case alone, repeatable.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Run this method alone, repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Run this seed alone, repeatable.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; draw what is finished.")] = False,
) -> None:
    """Run what is missing of a study, and write its tables and figures."""
    try:
        from hubrl.experiments.figures import write_reports
        from hubrl.experiments.study import Job, run_study
    except ImportError as error:
        raise BadConfig(f"A study needs a package that is not installed ({error}); install hubrl[study].") from error
    where = results / config.stem
    if report:
        write_reports(where)
        return
    with _bar() as bars:
        bar = bars.add_task(config.stem)

        def done(job: Job, problem: str | None) -> None:
            bars.advance(bar)
            if problem:
                bars.console.print(f"{job.folder}: {problem}", soft_wrap=True, highlight=False, markup=False)

        failed = run_study(
            config,
            folder=folder / config.stem,
            results=where,
            agents=agents,
            jobs=jobs,
            cases=case or (),
            methods=method or (),
            seeds=seed or (),
            on_plan=lambda finished, total: bars.update(bar, completed=finished, total=total),
            on_done=done,
        )
    write_reports(where)
    console.print(f"Results in {where}; {len(failed)} runs failed.", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    only: Annotated[list[str] | None, typer.Option("--only", help="Measure this line alone, repeatable.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file for the numbers as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="A file for the table as Markdown.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Environment steps of a repetition; otherwise the line's own.")] = None,
    repetitions: Annotated[int | None, typer.Option(min=1, help="How often all are measured in turn; otherwise the line's own.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; otherwise the line's own.")] = None,
    names: Annotated[bool, typer.Option("--list", help="Name the lines and measure nothing.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time of a step goes instead.")] = False,
) -> None:
    """Measure how fast hubrl is, in ratios to plain SB3."""
    from hubrl.bench import compare as bench
    from hubrl.bench import profiler as clock
    from hubrl.bench import suite as lines

    chosen = lines.chosen(only or [])
    if names:
        _print_table(["line", "what", "must reach"], [(line.name, line.what, line.bar) for line in chosen])
        return
    console.print(bench.machine(), soft_wrap=True, highlight=False)
    measured = []
    for line in chosen:
        try:
            if profile:
                parts = bench.profiled(line, steps=steps, threads=threads)
                _print_profile(line.name, parts, clock.PARTS)
                continue
            measured.append(bench.measure(line, steps=steps, repetitions=repetitions, threads=threads))
        except BadConfig as error:
            if only:
                raise
            console.print(f"{line.name} is left out: {error}", soft_wrap=True, highlight=False)
            continue
        _print_table([], [tuple(bench.cells_of(measured[-1]))])
        if json:
            bench.write_json(measured, json)
        if markdown:
            markdown.write_text(bench.markdown(measured), encoding="utf-8")


@app.command()
def methods() -> None:
    """List the methods and their options, and those of the policies that hear outputs."""
    for name in available():
        console.print(f"{name}: {find(name).summary}", highlight=False)
        plain = get_type_hints(find(name).__init__)  # without the bounds of numbers
        for option, parameter in options_of(name).items():
            _print_option(option, plain[option], parameter.default)
    unless = ", ".join(f"{option}={value}" for option, value in RECOMMENDED.items())
    console.print(f"Hearing outputs, beside the method's own; where pathways are drawn {unless} unless told otherwise:", highlight=False)
    for title, kind in (("PPO and A2C", Outputs), ("DQN", Teaching)):
        console.print(f"{title}:", highlight=False)
        for option, field in kind.model_fields.items():
            _print_option(option, field.annotation, field.default)


@hub_app.command("build")
def hub_build(
    folder: Annotated[Path, typer.Argument(help="The hub's folder, which must not exist.")],
    agent: Annotated[
        list[str], typer.Option("--agent", help="A zip, folder, card or weights; `agent.zip,statistics.pkl` names a companion.")
    ],
    name: Annotated[list[str] | None, typer.Option("--name", help="What to call the agents, in order.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a hub that is there.")] = False,
) -> None:
    """Make a hub's folder from agents in whatever form they come."""
    Hub.from_agents([_agent(text) for text in agent], name or None).save(folder, overwrite=overwrite)
    hub_show(folder)


@hub_app.command("add")
def hub_add(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    agent: Annotated[str, typer.Option("--agent", help="A zip, folder, run, card or weights.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it.")] = None,
    observes: Annotated[
        str | None,
        typer.Option(
            help="The entries of the target's observation that it reads, `0-16` or `3,1,2`; or a Dict's key, or several: `camera,joints`."
        ),
    ] = None,
    order: Annotated[str | None, typer.Option(help="For every entry of the target's action the agent's: `1,0,2`.")] = None,
    signs: Annotated[str | None, typer.Option(help="For every entry of the target's action 1 or -1: `1,-1,1`.")] = None,
) -> None:
    """Add a source at the end of a saved hub, perhaps adapted to a target that observes more or acts otherwise."""
    source = Hub.from_agents([_agent(agent)], None if name is None else [name])[0]
    reads: str | list[int] | list[str] | None = observes
    if observes:
        reads = _whole_numbers(observes) if observes.lstrip("-")[:1].isdigit() else observes.split(",") if "," in observes else observes
    adapted = source.adapted(observes=reads, order=_whole_numbers(order) if order else None, signs=_whole_numbers(signs) if signs else None)
    Hub.load(folder).add(adapted).save(folder, overwrite=True)
    hub_show(folder)


@hub_app.command("show")
def hub_show(folder: Annotated[Path, typer.Argument(help="The hub's folder.")]) -> None:
    """Show a hub's sources."""
    rows = []
    for source in Hub.load(folder):
        card = source.card
        acts = "none: an encoder alone" if source.actions is None else describe(source.actions)
        worth = "" if card.return_mean is None else f"{card.return_mean:.1f} ± {card.return_std or 0:.1f}"
        normalises = "yes" if card.normalisation else "no"
        rows.append((source.name, card.algorithm, describe(source.space), acts, normalises, _short(card.task), worth, _short(card.steps)))
    _print_table(["source", "algorithm", "observes", "acts", "normalises", "task", "return", "steps"], rows)


@hub_app.command("try")
def hub_try(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    task: Annotated[str, typer.Option(help="Gymnasium id; `module:id` where a module registers it.")],
    kwargs: Kwargs = None,
    episodes: Episodes = 10,
    seed: Seed = 0,
    atari: Atari = False,
) -> None:
    """Play a task with each source, untouched: what each is worth there before any training."""
    hub = Hub.load(folder)
    named_kwargs = _kwargs(kwargs)
    with _bars(hub, episodes) as on_step:
        tried = list(
            try_hub(hub, task, named_kwargs, episodes=episodes, seed=seed, preprocessing="atari" if atari else "none", on_step=on_step)
        )
    _print_played([played for played in tried if isinstance(played, Played)])
    refused = [str(mismatch) for mismatch in tried if isinstance(mismatch, SpaceMismatch)]
    for sentence in refused:
        console.print(sentence, soft_wrap=True)
    if len(refused) == len(tried):
        raise SpaceMismatch("No source of the hub fits the task.")


@hub_app.command("check")
def hub_check(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    episodes: Annotated[int | None, typer.Option(min=1, help="Episodes each; the card's own number if not given.")] = None,
    seed: Seed = 0,
) -> None:
    """Replay each source on its own task and compare with its card; exit code 1 if one differs."""
    hub = Hub.load(folder)
    with _bars(hub, episodes or max((source.card.episodes or 10) for source in hub)) as on_step:
        checks = list(check_hub(hub, episodes=episodes, seed=seed, on_step=on_step))
    verdicts = {True: "agrees", False: "DIFFERS", None: "not replayed"}
    rows = [
        (
            check.name,
            "" if check.played is None else f"{check.played.mean:.1f} ± {check.played.std:.1f}",
            verdicts[check.agrees],
            check.sentence,
        )
        for check in checks
    ]
    _print_table(["source", "replayed", "", "because"], rows)
    if any(check.agrees is False for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line: mistakes end in one sentence and exit code 2, anything else in exit code 1."""
    # Tasks are named `module:id`; a user's modules lie where the command is given.
    sys.path.insert(0, str(Path.cwd()))
    # Small networks are fastest on one thread; a training sets what its config says.
    torch.set_num_threads(1)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except HubrlError as error:
        _fail(str(error), 2, debug=debug)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted.", 130, debug=False)
    except Exception as error:
        # Typer's own usage errors, wherever this version of it has their class, can format their message.
        usage = getattr(error, "format_message", None)
        sentence = usage() if usage else f"{type(error).__name__}: {error} (`hubrl --debug ...` shows where)"
        _fail(sentence, 2 if usage else 1, debug=debug)


def _fail(sentence: str, code: int, *, debug: bool) -> None:
    if debug:
        raise
    print(" ".join(sentence.split()), file=sys.stderr)  # noqa: T201 - stderr is for people
    sys.exit(code)


def _task_of(source: Source, task: str | None, kwargs: list[str] | None) -> tuple[str, dict[str, Any]]:
    if task is not None:
        return task, _kwargs(kwargs)
    if source.card.task is None:
        raise typer.BadParameter(f"The card of {source.name!r} names no task; name one with --task.")
    return source.card.task, {**source.card.task_kwargs, **_kwargs(kwargs)}


def _agent(text: str) -> Source | str | tuple[str, str]:
    """An agent by its path, perhaps with a companion; a run's with what it was trained on."""
    run = Path(text)
    return finished.run_agent(run) if (run / "config.yaml").exists() and (run / "model.zip").exists() else runs.split_agent(text)


def _whole_numbers(text: str) -> list[int]:
    """`0-16` or `3,1,-1`."""
    try:
        if found := re.fullmatch(r"(\d+)-(\d+)", text):
            return list(range(int(found[1]), int(found[2]) + 1))
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} was given; expected whole numbers like 0-16 or 3,1,2.") from error


def _widths(text: str) -> list[int]:
    """`64,64`; nothing for no hidden layer."""
    parts = text.split(",") if text else []
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--net-arch {text!r} was given; expected widths like 64,64.")
    return [int(part) for part in parts]


def _kwargs(given: list[str] | None) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for text in given or []:
        assign(plain, text)
    return plain


@contextmanager
def _progress(name: str, episodes: int) -> Iterator[Callable[[int], None]]:
    with _bar() as bars:
        bar = bars.add_task(name, total=episodes)
        yield lambda done: bars.update(bar, completed=done)


@contextmanager
def _bars(hub: Hub, episodes: int) -> Iterator[Callable[[str, int], None]]:
    with _bar() as bars:
        by_name = {source.name: bars.add_task(source.name, total=episodes) for source in hub}
        yield lambda name, done: bars.update(by_name[name], completed=done)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print_played(played: list[Played]) -> None:
    rows = [
        (one.name, f"{one.mean:.1f}", f"{one.std:.1f}", str(len(one.returns)), f"{sum(one.lengths) / len(one.lengths):.0f}")
        for one in played
    ]
    if rows:
        _print_table(["agent", "mean return", "± std", "episodes", "mean length"], rows)


def _print_profile(line: str, parts: dict[str, dict[str, float]], meanings: dict[str, str]) -> None:
    for who, spent in parts.items():
        total = sum(spent.values())
        console.print(f"{line}, {who}: {total:.3f} ms a step", highlight=False)
        rows = [(f"  {part}", f"{value:.3f} ms", f"{value / total:.0%}", meanings[part]) for part, value in spent.items()]
        _print_table(["part", "a step", "share", ""], rows)


def _print_table(columns: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*columns, show_header=any(columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _print_option(name: str, annotation: Any, default: Any) -> None:
    console.print(f"    {name}: {_annotation(annotation)} = {default!r}", highlight=False, markup=False, soft_wrap=True)


def _annotation(annotation: Any) -> str:
    return (
        getattr(annotation, "__name__", str(annotation)).replace("typing.", "")
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )
