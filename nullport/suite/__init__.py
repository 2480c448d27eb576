"""Whole grids of comparisons: declared in a file, resumable, one line of JSON per run.

- :mod:`nullport.suite.grid`: what to run, read from TOML.
- :mod:`nullport.suite.runner`: running what is not yet in the file of results.
- :mod:`nullport.suite.statistics`: cells, changes against the baseline, intervals.
- :mod:`nullport.suite.report`: the results as a page of Markdown.
"""
