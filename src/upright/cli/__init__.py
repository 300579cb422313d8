"""The command line: verbs, and one file a desk."""

from upright.cli.verbs import app, main

__all__ = ["app", "main"]
