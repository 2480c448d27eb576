"""Does a gradient reach every layer, which scale is missing where, and what would help.

- :mod:`nullport.lab.diagnose.scales`: :func:`diagnose`, what is measured (:class:`Scale` per map,
  :class:`Diagnosis`).
- :mod:`nullport.lab.diagnose.words`: :func:`verdict` and :func:`advice`, what it says.
- :mod:`nullport.lab.diagnose.picture`: signals and cotangents layer by layer, as a picture.
"""

from nullport.lab.diagnose.scales import Diagnosis, Scale, diagnose
from nullport.lab.diagnose.words import advice, verdict

__all__ = ["Diagnosis", "Scale", "advice", "diagnose", "verdict"]
