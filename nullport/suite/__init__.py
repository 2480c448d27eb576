"""Whole grids of comparisons: declared in a file, resumable, one line of JSON per run.

- :mod:`nullport.suite.grid`: what to run, read from TOML.
- :mod:`nullport.suite.checks`: what a grid may hold.
- :mod:`nullport.suite.runner`: running what is not yet in the file of results.
- :mod:`nullport.suite.tuning`: the best settings of every method, found on other seeds.
- :mod:`nullport.suite.sensitivity` and :mod:`nullport.suite.barrier`: two further questions.
- :mod:`nullport.suite.statistics` and :mod:`nullport.suite.tuned`: changes against the baseline.
- :mod:`nullport.suite.report`: the results as a page of Markdown, with pictures.
"""
