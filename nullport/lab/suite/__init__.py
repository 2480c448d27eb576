"""Whole grids of comparisons: declared in a file, kept in a store, resumable.

- :mod:`nullport.lab.suite.grid`: what to run, read from TOML.
- :mod:`nullport.lab.suite.schema`: what a grid may hold.
- :mod:`nullport.lab.suite.store`: a SQLite file of runs, each made once; and
  :mod:`nullport.lab.suite.exchange`, its records as JSONL and CSV.
- :mod:`nullport.lab.suite.runner`: making the runs that are not yet there, and
  :mod:`nullport.lab.suite.workers`: who makes them.
- :mod:`nullport.lab.suite.tuning`: the best settings of every method, found on other seeds.
- :mod:`nullport.lab.suite.sensitivity` and :mod:`nullport.lab.suite.barrier`: two further
  questions.
- :mod:`nullport.lab.suite.statistics` and :mod:`nullport.lab.suite.tuned`: changes against the
  baseline.
- :mod:`nullport.lab.suite.report`: the results as a page of Markdown, with pictures.
"""
