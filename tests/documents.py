"""The README and the pages of the documentation, and what is in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAMS = (
    "bash",
    "gcloud",
    "jaxgrpo",
    "mkdocs",
    "mypy",
    "pip",
    "pytest",
    "python",
    "ruff",
    "srun",
    "xpk",
)
"""The first words of commands."""


@dataclass(frozen=True)
class Document:
    """A file of Markdown."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """Returns the contents of the blocks ```language ... ```."""
        return re.findall(
            rf"^```{language}\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE
        )

    def prose(self) -> str:
        """Returns the text without its blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)

    def spans(self) -> list[str]:
        """Returns what stands in `backticks`, each on one line."""
        return [
            " ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose())
        ]

    def links(self) -> list[str]:
        """Returns the targets of all links, without what follows a #."""
        return re.findall(r"\]\(([^)#\s]+)", self.prose())

    def commands(self) -> list[str]:
        """Returns the commands of shell blocks, of indented blocks and of backticks."""
        commands = [
            line for block in self.blocks("sh") for line in block.splitlines() if line
        ]
        indented = re.findall(r"^    (\S.*)$", self.prose(), re.MULTILINE)
        for text in [*indented, *self.spans()]:
            program, _, rest = text.partition(" ")
            if program in PROGRAMS and rest:
                commands.append(text)
        return commands


README = Document(ROOT / "README.md")
PAGES = [Document(path) for path in sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [README, *PAGES]
BY_NAME = {document.name: document for document in DOCUMENTS}
