"""The commands of `hubrl` beside those of `hubrl hub`, and its error messages and exit codes.

A command imports what it computes with when it runs: torch takes seconds, and `--help`,
`--version` and the completion of commands answer at once.
"""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hubrl
from hubrl.cli.arguments import (
    Atari,
    Episodes,
    Kwargs,
    OutArgument,
    Overwrite,
    RunArgument,
    Seed,
    parse_kwargs,
    parse_steps,
    parse_widths,
)
from hubrl.cli.console import (
    output,
    print_fields,
    print_help,
    print_line,
    print_options,
    print_played,
    print_table,
    printed_as_notes,
    progress_bar,
)
from hubrl.cli.export_command import export
from hubrl.cli.hub_commands import hub_app
from hubrl.cli.report_commands import compare, enjoy, explain, report
from hubrl.cli.sharing_commands import push
from hubrl.cli.study_commands import bench, study
from hubrl.cli.tune_command import tune
from hubrl.errors import BadConfig, FolderInUse, HubrlError, NotWritten
from hubrl.experiments.seeds import EVALUATION_SEED

if TYPE_CHECKING:
    from hubrl.experiments.evaluation import Played
    from hubrl.formats.cards import Preprocessing
    from hubrl.sources.source import Source

EVERYWHERE = ("--json", "--quiet", "-q", "--debug")
"""Options of every command, wherever they stand."""

app = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"hubrl {hubrl.__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def everywhere(
    context: typer.Context,
    json: Annotated[
        bool, typer.Option("--json", help="Print results as JSON, and nothing else.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results alone: no notes, no progress.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print a traceback instead of a sentence.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Transfer in RL from a hub of pretrained agents.

    `--json`, `--quiet` and `--debug` may stand anywhere: `hubrl evaluate runs/mine --json`.
    """
    output.begin(json=json, quiet=quiet)
    print_help(context)


Steps = Annotated[
    int, typer.Option(min=1, help="Environment steps, over all parallel environments.")
]


def train(
    config: Annotated[
        Path,
        typer.Argument(help="A config's YAML file, or an interrupted run's folder to go on with."),
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, repeatable; values are YAML.")
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the config's with a number by default.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print SB3's table.")] = False,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Environment steps in all, or `+100_000` more; a finished run goes on then."
        ),
    ] = None,
) -> None:
    """Train from a config, or go on with a run.

    A run goes on if it was interrupted, or is to have more steps.
    """
    from hubrl.cli.steps_bar import StepsBar
    from hubrl.experiments import run, run_folder

    resumes = config.is_dir()
    if resumes and (changes or name):
        other = f"leave out --set and --name, or start another run from {config / 'config.yaml'}"
        raise BadConfig(f"{config} is a run and keeps its config and name; {other}.")
    if steps is not None:
        changes = _set_steps(config, changes or [], steps)
    place = config if resumes else run.start_run(config, changes or [], folder, name)
    note = f"Run {place}; watch it with: tensorboard --logdir {folder}"
    try:
        total = run_folder.Run(place).config.steps
        with progress_bar(place.name, total) as on_step, printed_as_notes():
            bar = StepsBar(on_step, on_start=partial(print_line, note))
            result = run.train(place, [bar], verbose=int(verbose))
    except (FolderInUse, NotWritten):
        raise  # the run goes on as soon as that is over
    except HubrlError:
        if not resumes and not run_folder.has_trained(place):
            shutil.rmtree(place)
        raise
    except KeyboardInterrupt:
        print_line(f"Interrupted; `hubrl train {place}` goes on with it.")
        raise
    print_fields(result)
    print_line(f"`hubrl explain {place}` says what happened, `hubrl report {place}` shows it.")


def _set_steps(config: Path, changes: list[str], steps: str) -> list[str]:
    """Changes with `--steps` among them; a run's own config is changed in place."""
    from hubrl.experiments.config import read_config
    from hubrl.experiments.extended_run import extend_run

    if config.is_dir():
        total = parse_steps(steps, read_config(config / "config.yaml").steps)
        extend_run(config, total)
        return changes
    return [*changes, f"steps={parse_steps(steps, read_config(config, changes).steps)}"]


def evaluate(
    agent: Annotated[
        str,
        typer.Argument(
            help="A run, a hub's source (hubs/cheetah/sac), an agent's zip, or hf://owner/name."
        ),
    ],
    episodes: Episodes = 10,
    task: Annotated[
        str | None, typer.Option(help="Gymnasium id; the run's or the card's own task by default.")
    ] = None,
    kwargs: Kwargs = None,
    seed: Seed = EVALUATION_SEED,
    atari: Atari = False,
) -> None:
    """Play an agent's episodes; nothing in its files is executed."""
    from hubrl.experiments import finished_run
    from hubrl.reading import read_agent

    run_folder = Path(agent)
    if task is None and (run_folder / "config.yaml").exists():
        if kwargs or atari:
            raise BadConfig(
                f"{agent} plays its own task; with --kwargs or --atari name a task too."
            )
        with progress_bar(f"{agent}", episodes) as on_step:
            played = finished_run.evaluate_run(run_folder, episodes, seed, on_step)
    else:
        source = (
            finished_run.run_agent(run_folder)
            if (run_folder / "model.zip").exists()
            else read_agent(agent)
        )
        played = _play_source(source, task, parse_kwargs(kwargs), episodes, seed, atari)
    print_played([played])


def _play_source(
    source: "Source",
    task: str | None,
    kwargs: dict[str, Any],
    episodes: int,
    seed: int,
    atari: bool,
) -> "Played":
    from hubrl.experiments.evaluation import MAX_ENVS, play
    from hubrl.tasks.make_env import make_env

    if task is None:
        if source.card.task is None:
            raise typer.BadParameter(
                f"The card of {source.name!r} names no task; name one with --task."
            )
        task, kwargs = source.card.task, {**source.card.task_kwargs, **kwargs}
    preprocessing: Preprocessing = "atari" if atari else "none"
    n_envs = min(episodes, MAX_ENVS)
    with (
        closing(
            make_env(task, kwargs, n_envs=n_envs, seed=seed, preprocessing=preprocessing)
        ) as env,
        progress_bar(source.name, episodes) as on_step,
    ):
        return play(source, env, episodes, name=source.name, on_step=on_step)


def distill(
    folder: RunArgument,
    out: OutArgument,
    steps: Steps = 100_000,
    net_arch: Annotated[
        str, typer.Option(help="Widths of the student's hidden layers.")
    ] = "256,256",
    episodes: Episodes = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the student.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train one ordinary SB3 agent to imitate a run's agent."""
    from hubrl.experiments.finished_run import distill_run

    options: dict[str, Any] = {
        "steps": steps,
        "episodes": episodes,
        "seed": seed,
        "overwrite": overwrite,
    }
    options["net_arch"] = parse_widths(net_arch)
    with progress_bar(folder.name, steps) as on_step:
        distilled = distill_run(folder, out, on_step=on_step, **options)
    print_played([distilled.before, distilled.after])


def _method_names() -> list[str]:
    from hubrl.methods import available

    return available()


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, to see its options.", autocompletion=_method_names),
    ] = None,
) -> None:
    """List the methods, or explain the options of one."""
    from hubrl.hub.described_options import describe_method

    if name is None:
        every = [describe_method(one) for one in _method_names()]
        rows = [(one.name, ", ".join(one.levels), one.summary) for one in every]
        print_table(("method", "levels", "what it is"), rows)
        print_line("\n`hubrl methods NAME` lists the options of one.")
        return
    method = describe_method(name)
    print_line(f"{name}: {method.summary}")
    if output.json:
        output.results.append(method.to_dict())
        return
    print_options("Options of the method:", method.method_options)
    print_options("Options of PPO and A2C at the level of outputs:", method.output_options)
    print_options("Options of DQN at the level of outputs:", method.dqn_options)
    print_line(
        f"\nhub.agent(PPO, {name!r}, option=value) takes them, and a config under `options:`; "
        "hub.agent also takes level, tuned, source_lr, cached, precision and policy_kwargs."
    )


COMMANDS: tuple[Callable[..., None], ...] = (
    train,
    evaluate,
    explain,
    report,
    enjoy,
    compare,
    tune,
    study,
    export,
    distill,
    push,
    methods,
    bench,
)
"""The commands in the order of `hubrl --help`, before the group `hubrl hub`."""

for _command in COMMANDS:
    app.command()(_command)
app.add_typer(hub_app, name="hub")


def main() -> None:
    """Run the command line: exit code 2 and a sentence for a user's mistake, 1 for the rest."""
    # Tasks are named `module:id`; a user's modules lie in the working directory. It comes last, so
    # that a file in a stranger's folder takes no package's place.
    sys.path.append(str(Path.cwd()))
    # Small networks are fastest on one thread; a training sets the number of its config. Torch,
    # which is not imported yet, reads this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given = sys.argv[1:]
    debug = "--debug" in given
    first = [argument for argument in given if argument in EVERYWHERE]
    arguments = first + [argument for argument in given if argument not in EVERYWHERE]
    try:
        code = app(arguments, prog_name="hubrl", standalone_mode=False) or 0
        output.finish()
        sys.exit(code)
    except HubrlError as error:
        # A full disk is nobody's mistake.
        _fail(str(error), 1 if isinstance(error, NotWritten) else 2, debug=debug)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted.", 130, debug=False)
    except Exception as error:
        # Typer's own usage errors, wherever this version of it has their class, can format their
        # message.
        usage = getattr(error, "format_message", None)
        sentence = (
            usage()
            if usage
            else f"{type(error).__name__}: {error} (`hubrl --debug ...` prints a traceback)"
        )
        _fail(sentence, 2 if usage else 1, debug=debug)


def _fail(sentence: str, code: int, *, debug: bool) -> None:
    output.finish()  # what was found before
    if debug:
        raise
    print(" ".join(sentence.split()), file=sys.stderr)  # noqa: T201 - stderr is for people
    sys.exit(code)
