"""One style for the figures of all reports: colours, panels without a frame, saving.

Any layer may use it. The plotting library is loaded when the first figure is made.
"""

from __future__ import annotations

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#e0a458")  # green, red, blue, yellow


def figure_of(panels: int, *, width: float):
    """A figure and its `panels` axes side by side, each `width` inches wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure, path: str) -> str:
    """Write the figure as a PNG with reproducible bytes; returns `path`."""
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
