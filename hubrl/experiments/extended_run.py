"""More steps for a run: its config's number rises, and it counts as unfinished again."""

from pathlib import Path

from hubrl.errors import BadConfig, BadFile
from hubrl.experiments.checkpoints import checkpoints_in
from hubrl.experiments.config import read_config
from hubrl.experiments.run_folder import locked_run
from hubrl.formats.files import write_atomically
from hubrl.formats.schema import read_yaml, write_yaml


def extend_run(folder: Path, steps: int) -> None:
    """Let a run train on to a greater number of steps; `train` then goes on with it.

    It goes on from its last checkpoint, which a finished run has at its end; from then on learning
    rates that fall and shares of the training follow the new number.

    Args:
        folder: The run's folder, finished or interrupted.
        steps: Its environment steps in all, those that it had among them.

    Raises:
        BadFile: If the folder is no run, or a finished one without its last checkpoint.
        BadConfig: If the run has as many steps already.
        FolderInUse: If another process trains the run.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise BadFile(f"{folder} is no run: it has no config.yaml.")
    with locked_run(folder):
        before = read_config(path).steps
        if steps <= before:
            raise BadConfig(
                f"{steps} steps were given for {folder}, which has {before}; give more, as "
                f"+{before}."
            )
        result = folder / "result.json"
        if result.exists() and not checkpoints_in(folder / "checkpoints"):
            raise BadFile(
                f"{folder} is finished and has no checkpoint to go on from; "
                f"`hubrl train {path} --steps {steps}` begins another run."
            )
        fields = read_yaml(path)
        assert isinstance(fields, dict)
        # A kill in between leaves a run to be finished, and never one that is finished too early.
        result.unlink(missing_ok=True)
        write_atomically(path, write_yaml({**fields, "steps": steps}))
