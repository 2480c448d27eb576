"""The laboratory: tasks, comparisons, suites, reports and the command line.

Nothing in the core imports it. It finds adapters by their entry points
(:mod:`nullport.lab.backends`); each adapter's own ``lab`` holds its models and training loop.
"""

from nullport.lab.backends import Backend, available_backends, load_backend

__all__ = ["Backend", "available_backends", "load_backend"]
