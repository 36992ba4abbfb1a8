"""Makes the documentation site from docs/ and from the code: see .mkdocs.yml."""
