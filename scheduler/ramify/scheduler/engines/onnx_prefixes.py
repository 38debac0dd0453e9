"""Keys and values of chains, shared where the chains are the same."""

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
KV = NDArray[Any]


class _Run:
    """Tokens that follow those of the parent, and their keys and values."""

    __slots__ = ("children", "content", "kv", "parent", "tokens")

    def __init__(self, tokens: I32, kv: KV, parent: "_Run | None") -> None:
        self.parent = parent
        self.children: dict[int, _Run] = {}  # by their first token
        self.hold(tokens, kv)

    def hold(self, tokens: I32, kv: KV) -> None:
        """Have these tokens `[n]`, and their keys and values `[C, H, n, D]`, and no others."""
        self.tokens, self.kv = tokens.copy(), kv.copy()
        self.content = tokens.tobytes()  # compared in a fraction of the time


class PrefixTree:
    """A radix tree over tokens, bounded by the bytes of its keys and values.

    Every token that chains have in common, from their beginning on, is held once. What was used least recently goes first, and
    what follows it before it: a use of a run is one of all runs before it.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._root = _Run(np.empty(0, np.int32), np.empty(0), None)
        self._used: OrderedDict[_Run, None] = OrderedDict()  # parents always later than their children

    def match(self, tokens: I32) -> tuple[int, list[KV]]:
        """The longest beginning of a chain that is held.

        Args:
            tokens: `[n]`

        Returns:
            How many tokens it has, and their keys and values: views `[C, H, _, D]`, one after the other.
        """
        path, held = self._walk(tokens)
        self._touch(path[-1][0])
        return held, [run.kv[:, :, :shared] for run, shared in path[1:]]

    def insert(self, tokens: I32, kv: KV) -> None:
        """Keep a chain's keys and values `[C, H, n, D]`, copies of what is not held; nothing if a chain is too much by itself."""
        if kv.nbytes > self.bytes_max:
            return
        path, held = self._walk(tokens)
        run, shared = path[-1]
        if held < len(tokens):
            if shared < len(run.tokens):
                run = self._split(run, shared)
            run = self._add(run, tokens[held:], kv[:, :, held:])
        self._touch(run)
        while self.bytes > self.bytes_max:
            self._drop(self._used.popitem(last=False)[0])

    def _walk(self, tokens: I32) -> tuple[list[tuple[_Run, int]], int]:
        """The runs from the root on that a chain follows, with how many of their tokens it does; and how many that is in all."""
        path, held, content = [(self._root, 0)], 0, tokens.tobytes()
        while held < len(tokens) and (run := path[-1][0].children.get(int(tokens[held]))) is not None:
            shared = len(run.tokens)
            if not content.startswith(run.content, held * tokens.itemsize):
                n = min(shared, len(tokens) - held)
                differ = np.flatnonzero(run.tokens[:n] != tokens[held : held + n])
                shared = int(differ[0]) if len(differ) else n
            path.append((run, shared))
            held += shared
            if shared < len(run.tokens):
                break
        return path, held

    def _add(self, parent: _Run, tokens: I32, kv: KV) -> _Run:
        run = _Run(tokens, kv, parent)
        parent.children[int(tokens[0])] = run
        self._used[run] = None
        self.bytes += kv.nbytes
        return run

    def _split(self, run: _Run, at: int) -> _Run:
        """Make two of a run: one for its first tokens, which is returned, and itself for the others."""
        parent = run.parent or self._root
        upper = self._add(parent, run.tokens[:at], run.kv[:, :, :at])
        self.bytes -= upper.kv.nbytes
        run.hold(run.tokens[at:], run.kv[:, :, at:])
        run.parent = upper
        upper.children[int(run.tokens[0])] = run
        return upper

    def _touch(self, run: _Run | None) -> None:
        while run is not None and run is not self._root:
            self._used.move_to_end(run)
            run = run.parent

    def _drop(self, run: _Run) -> None:
        parent = run.parent or self._root
        del parent.children[int(run.tokens[0])]
        self.bytes -= run.kv.nbytes
