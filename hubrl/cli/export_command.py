"""The command `hubrl export`: an agent for machines without hubrl."""

from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from hubrl.cli.arguments import Overwrite
from hubrl.cli.console import output, print_fields, print_line, spinner
from hubrl.errors import BadConfig

Format = Literal["sb3", "onnx", "torchscript"]


def export(
    agent: Annotated[
        str,
        typer.Argument(
            help="A finished run; for onnx and torchscript also a zip or hf://owner/name."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="The file to write; a zip for PPO.load, A2C.load or DQN.load.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="sb3: one ordinary SB3 agent, where that is exact; onnx or torchscript: the "
            "deterministic action as a graph.",
        ),
    ] = "sb3",
    batch: Annotated[int, typer.Option(min=1, help="Observations that a graph takes at once.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Write an agent as a plain SB3 zip, ONNX or TorchScript."""
    formats = get_args(Format)
    if kind not in formats:
        raise BadConfig(f"--format {kind!r} was given; expected one of {', '.join(formats)}.")
    chosen = cast("Format", kind)
    from hubrl.experiments.finished_run import export_agent_graph, export_run
    from hubrl.export.merge import OBSERVATIONS

    with spinner(f"Exporting {agent}"):
        if chosen == "sb3":
            exported = export_run(Path(agent), out, overwrite=overwrite)
            what, difference = type(exported.model).__name__, exported.difference
            sentence = f"an ordinary {what}"
        else:
            source, graph = export_agent_graph(agent, out, chosen, batch=batch, overwrite=overwrite)
            what, difference = kind, graph.difference
            sentence = f"{kind} of {source.name!r}, from {', '.join(graph.inputs)} to its action"
    print_line(
        f"{out}: {sentence}, at most {difference:.1e} from the agent on {OBSERVATIONS} random "
        "observations."
    )
    if output.json:
        print_fields({"file": out, "format": kind, "algorithm": what, "difference": difference})
