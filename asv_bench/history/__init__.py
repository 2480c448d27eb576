"""What is tracked over the commits of this project: few benchmarks, with names for its graphs.

Every commit runs the same files, so a benchmark asks for no more than what the oldest commits have,
by public names. What a commit lacks is "n/a". Change ``version`` when numbers before and after an
edit cannot be compared: asv then starts a new line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the networks are those of ``benchmarks``
