"""Whole grids of comparisons: declared in a file, resumable, one line of JSON per run.

- :mod:`nullport.lab.suite.grid`: what to run, read from TOML.
- :mod:`nullport.lab.suite.checks`: what a grid may hold.
- :mod:`nullport.lab.suite.runner`: running what is not yet in the file of results.
- :mod:`nullport.lab.suite.tuning`: the best settings of every method, found on other seeds.
- :mod:`nullport.lab.suite.sensitivity` and :mod:`nullport.lab.suite.barrier`: two further
  questions.
- :mod:`nullport.lab.suite.statistics` and :mod:`nullport.lab.suite.tuned`: changes against the
  baseline.
- :mod:`nullport.lab.suite.report`: the results as a page of Markdown, with pictures.
"""
