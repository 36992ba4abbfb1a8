"""Hooks of the documentation site: what is made from the code whenever it is built.

- A page under api/ for each folder of the package, from the modules that are there.
- Tables of settings, in the place of `<!-- table: NAME -->`: see tables.TABLES.
- Links to files of the repository, such as `../jaxgrpo/train.py`. A module's leads to its part
  of the API reference. A file that is no page of the site is named without a link. A file that
  is not there is an error.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# mkdocs runs this file by its path, not as a module of a package.
sys.path.insert(0, str(ROOT))

from tools.docs_site.tables import TABLES  # noqa: E402

DOCS = ROOT / "docs"
PACKAGE = ROOT / "jaxgrpo"
TOP_PAGE = "jaxgrpo"
"""The page of the modules that are in no folder."""

FILE_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]+)\)")
"""A link out of the folder of a page."""

TABLE_MARK = re.compile(r"<!-- table: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the API reference."""
    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Returns a page's Markdown with its tables, and with links that work on the site.

    Raises PluginError for a table or a file that there is not.
    """
    name = page.file.src_uri

    def to_table(mark: re.Match[str]) -> str:
        if mark[1] not in TABLES:
            raise PluginError(f"{name}: there is no table {mark[1]}; see tables.TABLES")
        return TABLES[mark[1]]()

    def to_link(link: re.Match[str]) -> str:
        return _site_link(link, name)

    return FILE_LINK.sub(to_link, TABLE_MARK.sub(to_table, markdown))


def _site_link(link: re.Match[str], page: str) -> str:
    """Returns a link of a page as it is on the site."""
    target = (DOCS / page).parent.joinpath(link["path"]).resolve()
    if DOCS in target.parents:
        # Another page: mkdocs itself looks after these links.
        return link[0]
    if not target.exists():
        raise PluginError(f"{page}: there is no {link['path']}")
    # Configs, tools and tests have no page in the reference.
    if target.suffix != ".py" or PACKAGE not in target.parents:
        return link["text"]
    return f"[{link['text']}](api/{page_of(target)}.md#{module_of(target)})"


def module_of(path: Path) -> str:
    """Returns the dotted name of a module of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_of(path: Path) -> str:
    """Returns the page of the API reference that a module of the package is on."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else TOP_PAGE


def api_pages() -> dict[str, str]:
    """Returns the Markdown of each page of the API reference, by name."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        # Not __main__.py, which has nothing to call.
        if not path.name.startswith("_") or path.name == "__init__.py":
            modules[page_of(path)].append(module_of(path))
    pages = {"index": _api_index(modules)}
    for page, names in modules.items():
        title = page if page == TOP_PAGE else f"jaxgrpo.{page}"
        # mkdocstrings shows a module where it finds `::: NAME`.
        parts = [f"# {title}", *(f"::: {name}" for name in sorted(names))]
        pages[page] = "\n\n".join(parts) + "\n"
    return pages


def _api_index(modules: dict[str, list[str]]) -> str:
    """Returns the overview: every module, by page."""
    parts = [
        "# API reference",
        "All public modules, classes and functions, from their docstrings. "
        "[Architecture](../architecture.md) says how they go together.",
    ]
    for page, names in sorted(modules.items()):
        links = [f"[{name}]({page}.md#{name})" for name in sorted(names)]
        parts.append(f"**{page}**: {', '.join(links)}")
    return "\n\n".join(parts) + "\n"
