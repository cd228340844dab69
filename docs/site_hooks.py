"""Hooks of mkdocs: files outside `docs/` that the pages link to, and the commands' help.

On GitHub a link like `../results/pathway/table.md` leads to the repository's file. The site has it
under `repository/`: Markdown as a page, code and configs as a page with a block of code, everything
else as it is. `<!-- commands -->` becomes the help of every command.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hubrl.cli.app import app

REPOSITORY = Path(__file__).parents[1]
DOCS = Path(__file__).parent
FOLDER = "repository"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
ALWAYS = [REPOSITORY / "CHANGELOG.md", REPOSITORY / "CONTRIBUTING.md"]
"""Pages of the navigation that lie outside `docs/`."""

FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")
COMMANDS = "<!-- commands -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files outside `docs/`, and those that they link to."""
    waiting, added = [*DOCS.rglob("*.md"), *ALWAYS], set[Path]()
    while waiting:
        path = waiting.pop()
        if not path.is_relative_to(DOCS) and path not in added:
            added.add(path)
            files.append(_site_file(path, config))
        if path.suffix == ".md":
            waiting += [found for found in _linked_files(path) if found not in added]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links that leave `docs/` to the site's copies, and write the commands' help."""
    if COMMANDS in markdown:
        group = typer.main.get_command(app)
        markdown = markdown.replace(COMMANDS, "\n".join(_command_help(group, "hubrl")))
    origin = Path(page.file.abs_src_path or DOCS / page.file.src_uri)
    if page.file.src_uri.startswith(FOLDER) and origin.is_relative_to(DOCS):
        return markdown  # a page of code
    folder = Path(page.file.src_uri).parent

    def on_site(link: re.Match[str]) -> str:
        target = (origin.parent / link[2]).resolve()
        return f"{link[1]}{os.path.relpath(_site_uri(target), folder)}{link[3] or ''}"

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(on_site, prose) for prose in parts[::2]]
    return "".join(parts)


def _linked_files(page: Path) -> list[Path]:
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    targets = [(page.parent / link[2]).resolve() for link in LINK.finditer(prose)]
    return [target for target in targets if target.is_file() and not target.is_relative_to(DOCS)]


def _site_uri(path: Path) -> str:
    if path.is_relative_to(DOCS):
        page = path.with_suffix(".md") if path.suffix == ".ipynb" else path
        return page.relative_to(DOCS).as_posix()
    uri = f"{FOLDER}/{path.relative_to(REPOSITORY).as_posix()}"
    return f"{uri}.md" if path.suffix in LANGUAGES else uri


def _site_file(path: Path, config: MkDocsConfig) -> File:
    uri = _site_uri(path)
    if path.suffix not in LANGUAGES:
        return File.generated(config, uri, abs_src_path=str(path))
    name, code = path.relative_to(REPOSITORY), path.read_text(encoding="utf-8")
    block = f'# {path.name}\n\n````{LANGUAGES[path.suffix]} title="{name}"\n{code}````\n'
    return File.generated(config, uri, content=block)


def _command_help(command: Any, name: str) -> Iterator[str]:
    """Markdown of a command's help, and of its subcommands'."""
    if hasattr(command, "commands"):
        for one in command.commands.values():
            yield from _command_help(one, f"{name} {one.name}")
        return
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    yield f"## {name}\n\n{command.help}\n\n```text"
    yield " ".join([name, *(one.name.upper() for one in arguments), "[OPTIONS]"])
    yield "```\n"
    rows = [_parameter_row(one) for one in command.params]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows, ""])


def _parameter_row(parameter: Any) -> str:
    names = [parameter.name.upper()]
    if parameter.param_type_name == "option":
        names = [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    shown = default is not None and default is not False and not parameter.required
    meaning = f"{parameter.help or ''}{f' Default: `{default}`.' if shown else ''}"
    return f"| {', '.join(f'`{one}`' for one in names)} | {meaning} |".replace("\n", " ")
