"""Outputs of the notebooks, made anew: `python docs/figures/run_notebooks.py`.

Each runs in a folder that has the checkout's agents, envs and configs; what it writes there is
thrown away.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = REPOSITORY / "docs" / "notebooks"


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run in a folder; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    return notebook


def main() -> None:
    """Run every notebook and store its outputs."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("agents", "envs", "configs"):
                (Path(folder) / name).symlink_to(REPOSITORY / name)
            nbformat.write(executed(path, Path(folder)), path)


if __name__ == "__main__":
    main()
