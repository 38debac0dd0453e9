"""Who gets how much of what is scarce: weighted max-min fairness."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def level(wanted: F64, weight: F64, total: float, held: F64 | None = None) -> F64:
    """Share out `total` so that nobody could be given more without taking it from one who has less for its weight.

    Shares are poured like water into vessels as wide as the weights: who has least for its weight is given first, until it has
    what it wants or as much for its weight as the next one. So everything is given away as long as anybody wants more, who is
    alone may have it all, and nobody who wants its part of it gets less (Bertsekas and Gallager, Data Networks, 6.5.2).

    Args:
        wanted: `[T]` how much each wants to be given, at least 0; may be infinite.
        weight: `[T]` more than 0.
        total: how much there is to give.
        held: `[T]` what each has already, which nobody takes away; None: nothing.

    Returns:
        `[T]` what each is given: at most what it wants, in all `total` or what all want.
    """
    if not np.isfinite(total):
        return wanted.copy()
    floor = np.zeros(len(wanted)) if held is None else held / weight
    ceiling = floor + wanted / weight
    # Between two neighbouring heights the sum of what is given rises evenly: so the right pair is enough.
    heights = np.unique(np.concatenate((floor, ceiling[np.isfinite(ceiling)])))
    given = _poured(heights[:, None], floor, ceiling, weight).sum(axis=1)
    below = int(np.searchsorted(given, total, side="right")) - 1
    if below < 0 or not len(wanted):
        return np.zeros(len(wanted))
    open_width = float(weight[(floor <= heights[below]) & (ceiling > heights[below])].sum())
    height = heights[below] + ((total - given[below]) / open_width if open_width else 0.0)
    return _poured(height, floor, ceiling, weight)


def whole(share: F64, wanted: Sequence[int] | NDArray[np.int64], total: int) -> list[int]:
    """`[T]` shares in whole pieces: `total` of them, or as many as are wanted, each at most one off.

    Args:
        share: `[T]` as `level` gives them.
        wanted: `[T]` pieces that each can take.
        total: pieces that there are.
    """
    found = np.minimum(np.floor(share + 1e-9), wanted).astype(np.int64)
    left = min(total, int(np.sum(wanted))) - int(found.sum())
    for one in np.argsort(found - share, kind="stable").tolist():  # who has lost most by the rounding
        if left > 0 and found[one] < wanted[one]:
            found[one] += 1
            left -= 1
    pieces: list[int] = found.tolist()
    return pieces


def _poured(height: F64 | float, floor: F64, ceiling: F64, weight: F64) -> F64:
    return np.asarray(np.clip(np.minimum(height, ceiling) - floor, 0.0, None) * weight)
