"""Hooks of mkdocs: the site has the documents outside docs/, too, and whatever a document links to.

Links in the documents are relative paths in the repository, as a code host shows them. On the site every file keeps its
place in the repository, with two exceptions: docs/ is the site's root, and README.md its home page.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rdo_harness.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([\w.]+)</code>")
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//")

_origins: dict[str, PurePosixPath] = {}
"""Where in the repository a page of the site comes from, for those outside docs/."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, and what it and the documents link to."""
    waiting = [PurePosixPath("README.md"), *(PurePosixPath("docs", file.src_uri) for file in files)]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if path.parts[0] != "docs":
            _add(path, files, config)
        if path.suffix == ".md":
            found = {linked for target in LINK.findall(_text(path)) if (linked := _linked(path, target))}
            waiting += sorted(found - seen)
            seen |= found
    files.append(File.generated(config, "reference/command-line.md", content=_command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to their places on the site."""
    here = page.file.src_uri
    origin = _origins.get(here, PurePosixPath("docs", here))

    def place(match: re.Match[str]) -> str:
        linked = _linked(origin, match[0])
        return os.path.relpath(_place(linked), PurePosixPath(here).parent) if linked else match[0]

    return LINK.sub(place, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names in docstrings, :func:`rdo.attach` for instance, to the reference where it has them."""

    def link(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        return f'<autoref optional identifier="{match[1]}"><code>{name}</code></autoref>'

    return ROLE.sub(link, html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from another host: the site works offline."""
    loaded = LOADED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from another host: {output[loaded.start() :][:200]}")
    return output


def _command_line() -> str:
    """The help texts of the command line, as a page."""
    parser = build_parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = {"rdo": parser} | {f"rdo {name}": command for name, command in commands.choices.items()}
    sections = (f"## {name}\n\n```text\n{command.format_help()}```\n" for name, command in parsers.items())
    return "# Command line\n\n" + "\n".join(sections)


def _text(path: PurePosixPath) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _linked(origin: PurePosixPath, target: str) -> PurePosixPath | None:
    """The file of the repository that a link in ``origin`` leads to; None if there is none, which mkdocs reports."""
    path = Path(os.path.normpath(ROOT / origin.parent / target))
    path = path / "README.md" if path.is_dir() else path
    return PurePosixPath(path.relative_to(ROOT)) if path.is_file() and path.is_relative_to(ROOT) else None


def _place(path: PurePosixPath) -> str:
    """Where a file of the repository is on the site; a script becomes a page."""
    if path == PurePosixPath("README.md"):
        return "index.md"
    inside = str(path.relative_to("docs") if path.parts[0] == "docs" else path)
    return f"{inside}.md" if path.suffix == ".py" else inside


def _add(path: PurePosixPath, files: Files, config: MkDocsConfig) -> None:
    place = _place(path)
    _origins[place] = path
    if path.suffix == ".py":
        files.append(File.generated(config, place, content=f"# {path.name}\n\n```python\n{_text(path)}```\n"))
    else:
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
