"""Config files that come with the package, each by its name: `--config quickstart`.

In the repository they are in configs/; an installed package has them as `jaxgrpo.configs`.
"""
