"""The memory of a process that works on large columns."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Have this process keep what it frees, for its next columns, instead of handing each of them back to the kernel.

    A large array that is freed and made anew costs a page fault for every 4 KiB: a tenth and more of a shard's time. Does nothing
    where the C library isn't glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
