"""Hooks of the documentation site: what is made from the code whenever the site is built.

- A page under api/ for each folder of the package, from the modules that are there.
- Tables of settings, in the place of `<!-- table: NAME -->`: see tables.TABLES.
- Links to files of the repository, `../jaxgrpo/train.py`: to a module's part of the API reference;
  a file that is no page of the site is named without a link. A file that is not there is an error.
"""

import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# mkdocs runs this file by its path.
sys.path.insert(0, str(ROOT))

from tools.docs_site.tables import TABLES  # noqa: E402

PACKAGE = ROOT / "jaxgrpo"
TOP = "jaxgrpo"
"""The page of the modules that are in no folder."""

FILE_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]+)\)")


def on_files(files, config):
    """Adds the pages of the API reference."""
    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Returns a page's Markdown with its tables, and with links that work on the site."""
    for name, make in TABLES.items():
        mark = f"<!-- table: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    if "<!-- table:" in markdown:
        raise PluginError(
            f"{page.file.src_uri}: there is no such table; see tables.TABLES"
        )
    return FILE_LINK.sub(lambda match: _site_link(match, page.file.src_uri), markdown)


def _site_link(match, page):
    """Returns the link, for the site, to a file of the repository."""
    docs = ROOT / "docs"
    target = (docs / page).parent.joinpath(match["path"]).resolve()
    if docs in target.parents:
        # Another page: mkdocs itself looks after these links.
        return match[0]
    if not target.exists():
        raise PluginError(f"{page}: there is no {match['path']}")
    if target.suffix != ".py" or PACKAGE not in target.parents:
        return match["text"]
    return f"[{match['text']}](api/{page_of(target)}.md#{module_of(target)})"


def module_of(path):
    """Returns the dotted name of a module of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_of(path):
    """Returns the page of the API reference that a module of the package is on."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else TOP


def api_pages():
    """Returns the Markdown of each page of the API reference, by name."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.name.startswith("_") or path.name == "__init__.py":
            modules.setdefault(page_of(path), []).append(module_of(path))
    pages = {}
    for page, names in modules.items():
        parts = [f"# {page}" if page == TOP else f"# jaxgrpo.{page}"]
        for name in sorted(names):
            parts.append(f"::: {name}")
        pages[page] = "\n\n".join(parts) + "\n"
    pages["index"] = _api_index(modules)
    return pages


def _api_index(modules):
    """Returns the overview: every module, by page."""
    lines = [
        "# API reference",
        "",
        "All public modules, classes and functions, from their docstrings. "
        "[Architecture](../architecture.md) says how they go together.",
    ]
    for page, names in sorted(modules.items()):
        links = [f"[{name}]({page}.md#{name})" for name in sorted(names)]
        lines += ["", f"**{page}**: {', '.join(links)}"]
    return "\n".join(lines) + "\n"
