"""The core on NumPy arrays: row space and projection."""

import numpy as np

from nullport._projection import threshold_filter
from nullport._rowspace import row_space


class RowSpace:
    """Null space of a layer's inputs, by QR (samples <= width) and by Gram matrix."""

    params = ([64, 256, 512], [64, 512])
    param_names = ("width", "samples")

    def setup(self, width: int, samples: int) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((samples, width)).astype(np.float32)
        self.d = rng.standard_normal((width, width)).astype(np.float32)
        self.filter = threshold_filter(row_space([self.x], samples), 0.0)

    def time_row_space(self, width: int, samples: int) -> None:
        row_space([self.x], samples)

    def time_projection(self, width: int, samples: int) -> None:
        self.filter.apply(self.d)

    def track_leakage(self, width: int, samples: int) -> float:
        n = self.filter.apply(self.d)
        return float(np.linalg.norm(n @ self.x.T) / np.linalg.norm(self.d @ self.x.T))
