"""Hook of mkdocs: notebooks as pages, with the outputs that are stored in them.

`python docs/figures/run_notebooks.py` runs them and stores their outputs anew; a test runs them and
stores nothing.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parent / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its pictures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        pictures: list[bytes] = []
        parts = [
            part
            for cell in nbformat.read(path, as_version=4).cells
            for part in _cell_parts(cell, path.stem, pictures)
        ]
        uri = f"notebooks/{path.stem}"
        files.append(File.generated(config, f"{uri}.md", content="\n\n".join(parts)))
        for number, picture in enumerate(pictures):
            files.append(File.generated(config, f"{uri}-{number}.png", content=picture))
    return files


def _cell_parts(cell: Any, stem: str, pictures: list[bytes]) -> Iterator[str]:
    """Markdown of a cell; its pictures are appended to the others of the notebook."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    texts = ""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            pictures.append(base64.b64decode(data["image/png"]))
            yield f"![output of the code above]({stem}-{len(pictures) - 1}.png)"
        else:
            texts += output.get("text") or data.get("text/plain", "") + "\n"
    if texts.strip():
        yield f"```text\n{texts.rstrip()}\n```"
