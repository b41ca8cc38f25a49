"""Where labels of contour lines stand: inside the frame, clear of the runs and of each other."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet

from analysis.laws import Array

MARGIN = 0.07
"""Of the frame's width and height; a label nearer to an edge would be cut by it."""
CLEAR = 0.05
"""Of the frame; a label whose best place is nearer than that to what is drawn is left out."""


def label_contours(
    axes: Axes, drawn: ContourSet, taken_XY: Array, *, color: str, fontsize: float
) -> None:
    """Label each line once, where it is furthest from ``taken_XY`` (data units, one point a row).

    Axes must have their scales and limits. A line that has no clear place keeps none; its
    neighbours say what it is.
    """
    to_frame = axes.transData + axes.transAxes.inverted()
    taken_XY = to_frame.transform(np.unique(taken_XY, axis=0))
    chosen = []
    for path in drawn.get_paths():
        on_line_XY = to_frame.transform(np.reshape(path.vertices, (-1, 2)))
        inside = np.all((on_line_XY > MARGIN) & (on_line_XY < 1 - MARGIN), axis=1)
        on_line_XY = on_line_XY[inside]
        if not len(on_line_XY):
            continue
        apart = np.linalg.norm(on_line_XY[:, None] - taken_XY[None], axis=2).min(axis=1)
        best = int(np.argmax(apart))
        if apart[best] < CLEAR:
            continue
        chosen.append(on_line_XY[best])
        taken_XY = np.vstack([taken_XY, on_line_XY[best]])
    places = to_frame.inverted().transform(np.array(chosen).reshape(-1, 2))
    axes.clabel(
        drawn,
        fmt=lambda value: f"{value:.4g}",
        fontsize=fontsize,
        colors=[color],
        inline=True,
        manual=[(float(x), float(y)) for x, y in places],
    )
