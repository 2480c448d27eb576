"""The parts in their order: what is most worth knowing first, since the time may end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .timing import Rows, Setting


@dataclass(frozen=True)
class Part:
    """Something that is measured in a process of its own.

    Attributes:
        name: Of the part.
        title: Of its section on the page.
        needs: The modules that it cannot do without.
        seconds: Most that it may take on a device.
        rows: Returns the rows; imports what it needs itself.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    seconds: float
    rows: Callable[[Setting], Rows]


def _correct(backend: str) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        from .correct import rows as found

        return found(backend, setting)

    return rows


def _figures(what: str, backend: str) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        from . import figures

        found: Rows = getattr(figures, what)(backend, setting)
        return found

    return rows


def _language(kind: str) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        from .training import language

        return language(kind, setting)

    return rows


def _images(setting: Setting) -> Rows:
    from .training import images

    return images(setting)


def parts(device: str, small: bool = False) -> list[Part]:
    """Return the parts; on a processor CuPy's place is taken by NumPy.

    Small ones leave out the figures of JAX, which would mostly be its compiler's time.
    """
    arrays = "cupy" if device == "cuda" else "numpy"
    names = {"torch": "torch", "jax": "JAX", "cupy": "CuPy", "numpy": "NumPy"}
    three = ("torch", "jax", arrays)
    return [
        *(Part(f"correct-{b}", f"Correctness, {names[b]}", (b,), 60, _correct(b)) for b in three),
        Part("gpt2", "GPT-2, 124M, bfloat16 by autocast", ("torch",), 75, _language("gpt2")),
        Part("llama", "Llama 3.2, 1B, weights in bfloat16", ("torch",), 90, _language("llama")),
        Part("resnet50", "ResNet-50, bfloat16 by autocast", ("torch",), 60, _images),
        *(
            Part(f"whole-{b}", f"Whole teleports, {names[b]}", (b,), 45, _figures("whole", b))
            for b in ("torch", "jax")
            if not (small and b == "jax")
        ),
        *(
            Part(f"figures-{b}", f"Figures, {names[b]}", (b,), 60, _figures("ratios", b))
            for b in three
            if not (small and b == "jax")
        ),
        *(
            Part(f"widths-{b}", f"Widths, {names[b]}", (b,), 45, _figures("widths", b))
            for b in three
        ),
        *(
            Part(f"memory-{b}", f"Memory, {names[b]}", (b,), 30, _figures("memory", b))
            for b in ("torch", "jax")
        ),
    ]
