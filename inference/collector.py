"""Python's collector of garbage, in processes that live long and hold much."""

import gc

# How many more objects than before let it look at the youngest; how many such looks at the next
# older ones; how many of these at all. By its defaults (700, 10, 10) it took half of the time in
# which thousands of sockets are opened. Almost all that streams leave behind goes without it.
THRESHOLDS = (50_000, 5, 5)


def settle() -> None:
    """Once all is loaded: that stays, and need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
