"""What a teleport did, what it did not do, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerReport:
    """What happened to one weight (or to one part of it that has its own inputs).

    Attributes:
        name: Name of the parameter; ``[part i/n]`` is appended if parts have different inputs.
        kind: Operation it is the weight of, or an empty string.
        in_features: Inputs of the linear map, the constant input of a bias included.
        samples: Rows of input that the null space was built from.
        rank: Directions that are constrained (summed over a stack of matrices).
        null_dim: Directions that are free (summed over a stack of matrices).
        moved: Length of the move relative to the weight's norm, ``||dW|| / ||W||``.
        output_change_bound: Bound on ``||dW X^T|| / ||W X^T||``, computed before moving.
        output_change: The same ratio, measured after moving (on about 16 rows where the null
            space is exact).
        reason: Why it did not move; empty if it did.
    """

    name: str
    kind: str = ""
    in_features: int = 0
    samples: int = 0
    rank: int = 0
    null_dim: int = 0
    moved: float = 0.0
    output_change_bound: float = 0.0
    output_change: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class TeleportReport:
    """The outcome of a teleport.

    Attributes:
        loss_before: Loss on the captured batch before.
        loss_after: Loss on the captured batch at the moved weights, also if they were refused.
        guard_before: Loss on the guard batch before, or None without a guard.
        guard_after: Loss on the guard batch at the moved weights, or None without a guard.
        grad_norm_before: Norm of the gradient over all parameters before.
        grad_norm_after: Norm of the gradient at the moved weights.
        radius: Largest relative length allowed for each weight.
        accepted: Whether the moved weights were kept.
        reason: Why the move was refused; empty if it was accepted.
        seconds: Wall-clock time of the whole teleport.
        cost: Compute used, in gradients (forward and backward) of the captured batch.
        tangent: The engine that computed the tangents.
        layers: One entry per weight.
    """

    loss_before: float
    loss_after: float
    grad_norm_before: float
    grad_norm_after: float
    radius: float
    accepted: bool
    reason: str = ""
    guard_before: float | None = None
    guard_after: float | None = None
    seconds: float = 0.0
    cost: float = 0.0
    tangent: str = ""
    layers: Sequence[LayerReport] = ()

    def as_dict(self, prefix: str = "") -> dict[str, float | str | bool | None]:
        """Return the scalar fields for a logger, each name preceded by ``prefix``."""
        scalars = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        scalars["layers_moved"] = sum(layer.moved > 0 for layer in self.layers)
        return {prefix + name: value for name, value in scalars.items()}

    def __str__(self) -> str:
        """Return a readable table."""
        verdict = "accepted" if self.accepted else f"refused: {self.reason}"
        head = [
            f"teleport {verdict}",
            f"loss {self.loss_before:.7g} -> {self.loss_after:.7g}, "
            f"gradient norm {self.grad_norm_before:.4g} -> {self.grad_norm_after:.4g}, "
            f"radius {self.radius:g}, {self.seconds:.3f} s, {self.cost:.2f} gradients",
        ]
        if self.guard_before is not None and self.guard_after is not None:
            head.append(f"guard loss {self.guard_before:.7g} -> {self.guard_after:.7g}")
        return "\n".join([*head, *layer_table(self.layers)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how far each weight moved and how large its null space is (needs matplotlib)."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(7, 1 + 0.3 * len(self.layers)))[1] if ax is None else ax
        names = [layer.name for layer in self.layers]
        free = [layer.null_dim / max(layer.null_dim + layer.rank, 1) for layer in self.layers]
        ax.barh(names, free, color="0.85", label="free share of the input space")
        ax.barh(names, [layer.moved for layer in self.layers], height=0.4, label="moved, ‖ΔW‖/‖W‖")
        ax.invert_yaxis()
        ax.legend()
        return ax


def layer_table(layers: Sequence[LayerReport]) -> list[str]:
    """Return one aligned line per weight, under a heading."""
    rows = [("weight", "map", "inputs", "samples", "null", "moved", "output change", "why not")]
    for layer in layers:
        numbers = (
            ["", "", ""]
            if not layer.kind
            else [str(n) for n in (layer.in_features, layer.samples, layer.null_dim)]
        )
        change = f"{layer.output_change:.1e} <= {layer.output_change_bound:.1e}"
        rows.append(
            (
                layer.name,
                layer.kind,
                *numbers,
                f"{layer.moved:.3g}" if layer.moved else "",
                change if layer.moved else "",
                layer.reason,
            )  # type: ignore[arg-type]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
