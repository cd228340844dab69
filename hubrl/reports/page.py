"""The frame of a report: one HTML page that holds its script, style, figures and videos itself."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif"}
"""Files that a page can hold, and their MIME types."""

LARGEST_VIDEO = 25 * 2**20
"""Bytes up to which a video is put into a page."""

STYLE = """
:root { color-scheme: light; --ink: #1c1c1e; --dim: #6a6a72; --line: #e3e3e8; --accent: #b3123f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; background: #fff; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem; }
p.lead { color: var(--dim); margin: 0 0 1.2rem; }
p.note { color: var(--dim); margin: .2rem 0 .6rem; font-size: .92rem; max-width: 75ch; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.fact { border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; min-width: 9rem; }
.fact b { display: block; font-size: 1.35rem; }
.fact span { color: var(--dim); font-size: .85rem; }
ul.story { padding-left: 1.2rem; max-width: 80ch; }
ul.story li { margin: .25rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { color: var(--dim); font-weight: 600; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .5em; }
pre { background: #f6f6f8; border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; white-space: pre-wrap; }
details { margin: .4rem 0; } summary { cursor: pointer; }
video, img.video { max-width: 100%; border-radius: 8px; border: 1px solid var(--line); }
footer { margin-top: 3rem; color: var(--dim); font-size: .85rem; }
"""


def page(title: str, lead: str, parts: Iterable[str], script: str, footer: str) -> str:
    """A whole page.

    Args:
        title: Its title.
        lead: The line under it.
        parts: HTML of its sections.
        script: Plotly's JavaScript.
        footer: The last line.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{script}</script></head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>\n'
        + "\n".join(parts)
        + f"\n<footer>{html.escape(footer)}</footer>\n</body></html>\n"
    )


def section(title: str, note: str, *content: str) -> str:
    """A titled part of a page; empty without content."""
    inside = "\n".join(one for one in content if one)
    lead = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<h2>{html.escape(title)}</h2>{lead}\n{inside}" if inside else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Large numbers with their meanings."""
    cells = (
        f'<div class="fact"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in pairs
    )
    return f'<div class="facts">{"".join(cells)}</div>'


def story(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    items = "".join(f"<li>{_broken(sentence)}</li>" for sentence in sentences)
    return f'<ul class="story">{items}</ul>' if items else ""


def _broken(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], colors: Sequence[str | None] = ()
) -> str:
    """A table; a colour before the first cell of each row that has one."""
    lines = []
    for index, row in enumerate(rows):
        color = colors[index] if index < len(colors) else None
        dot = f'<i class="dot" style="background:{color}"></i>' if color else ""
        first, *rest = (html.escape(cell) for cell in row)
        lines.append(f"<tr><td>{dot}{first}</td>" + "".join(f"<td>{one}</td>" for one in rest))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "</tr>".join(lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</tr></table></div>' if lines else ""


def markdown_table(text: str) -> str:
    """A table of Markdown as HTML; bold is kept."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if "|" in line]
    if len(lines) < 3:
        return ""
    made = table(_cells(lines[0]), [_cells(line) for line in lines[2:]])
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", made)


def _cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line]


def folded(title: str, text: str) -> str:
    """A text that opens on a click."""
    return folded_html(title, f"<pre>{html.escape(text.rstrip())}</pre>")


def folded_html(title: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def videos(folder: Path) -> list[str]:
    """The videos of a folder, as HTML that holds them; a line for one that is too large."""
    made = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in VIDEO_TYPES:
            continue
        if path.stat().st_size > LARGEST_VIDEO:
            made.append(f"<p>{html.escape(path.name)} is too large for a page.</p>")
            continue
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        source = f"data:{VIDEO_TYPES[path.suffix]};base64,{data}"
        tag = (
            f'<img class="video" alt="{html.escape(path.name)}" src="{source}">'
            if path.suffix == ".gif"
            else f'<video controls loop muted playsinline src="{source}"></video>'
        )
        made.append(f"<div>{tag}</div>")
    return made
