"""What `mkdocs build` does beyond Markdown: tutorials are run, formulas become MathML, the README is the front page.

Everything happens at build time, so that pages need no network and no script for it. With `TUTORIALS=skip` in the
environment the tutorials' pages have no outputs.
"""

import html
import os
import pathlib
import re
import sys
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tutorials

ROOT = tutorials.ROOT
SCRIPTS = sorted((ROOT / "docs/tutorials").glob("[0-9]*.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the tutorials."""
    config.nav = _with_tutorials(config.nav)
    return config


def _with_tutorials(entry: Any) -> Any:
    """Returns a part of the navigation with a page for each tutorial where it says so."""
    if isinstance(entry, list):
        listed: list[Any] = []
        for part in entry:
            if part == "tutorials/*":
                listed += [{tutorials.title(path): f"tutorials/{path.stem}.md"} for path in SCRIPTS]
            else:
                listed.append(_with_tutorials(part))
        return listed
    return {name: _with_tutorials(value) for name, value in entry.items()} if isinstance(entry, dict) else entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page, a notebook and the figures of each tutorial."""
    for path in SCRIPTS:
        outcome = None
        if os.environ.get("TUTORIALS") != "skip":
            try:
                outcome = tutorials.results(path, ROOT / ".cache/tutorials")
            except RuntimeError as error:
                raise PluginError(str(error)) from error
        text, figures = tutorials.page(path, outcome)
        made = {f"{path.stem}.md": text, f"{path.stem}.ipynb": tutorials.notebook(path, outcome), **figures}
        for name, content in made.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the README on the front page, and the list of tutorials on theirs."""
    if page.file.src_uri == "index.md":
        return front_page()
    if page.file.src_uri == "tutorials/index.md":
        listed = [f"- [{tutorials.title(path)}]({path.stem}.md)" for path in SCRIPTS]
        return f"{markdown}\n\n" + "\n".join(listed)
    return markdown


def front_page() -> str:
    """Returns the README with links as they are in the site."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = (
        text.replace("](docs/", "](")
        .replace("](CONTRIBUTING.md", "](contributing.md")
        .replace("](CHANGELOG.md", "](changelog.md")
    )
    # Files that are not in the site.
    return re.sub(r"\[([^\]]*)\]\((?:examples|benchmarks)/([^)]*)\)", r"\1 (`\2`)", text)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces formulas by MathML, which browsers draw by themselves."""

    def formula(match: re.Match[str]) -> str:
        display = match["open"] == r"\["
        source = html.unescape(match["formula"]).strip()
        try:
            converted = latex2mathml.converter.convert(source, display="block" if display else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: cannot convert the formula {source!r}: {error!r}") from error
        return f'<div class="formula">{converted}</div>' if display else converted

    return re.sub(
        r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\[(\[])(?P<formula>.*?)\\[)\]]</(?P=tag)>',
        formula,
        content,
        flags=re.DOTALL,
    )
