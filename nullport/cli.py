"""The command line by a short name: ``nullport.cli.main``; it is in :mod:`nullport.lab.cli`.

Like ``python -m nullport`` a door to the laboratory, which nothing in the core imports.
"""

from nullport.lab.cli import main, parser

__all__ = ["main", "parser"]
