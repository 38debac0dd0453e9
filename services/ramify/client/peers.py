"""The knobs of other systems in our words: what search-and-learn calls `beam_width` is `branch` here, what its_hub does, `keep`.

A peer's knob is translated with the meaning that it has there, and so are the peer's defaults where ours are others.
"""

import difflib
from collections.abc import Iterable, Mapping

from ramify.client.errors import InvalidRequest
from ramify.client.peer_table import PEERS, Method, Ours, Peer
from ramify.client.spec import SEARCH_KNOBS

BEAMS = ("beam", "dvts", "lookahead")  # policies of which keep * branch is n


def translate(peer_name: str, given: Mapping[str, str]) -> dict[str, str]:
    """Our knobs, `policy` among them, for a peer's.

    A knob of ours for which the peer has no word may be among those that are given.

    Raises:
        InvalidRequest: the peer, its algorithm or a knob is unknown or has no counterpart; says what to do.
    """
    if peer_name not in PEERS:
        raise InvalidRequest(f"there is no peer {peer_name}{_nearest(peer_name, PEERS)}; there are {', '.join(PEERS)}")
    peer = PEERS[peer_name]
    theirs = {name: value for name, value in given.items() if name != peer.chooser}
    words = dict.fromkeys([peer.chooser, *(knob for method in peer.methods.values() for knob in method.knobs), *peer.without])
    for knob in theirs:
        if knob not in words and knob not in SEARCH_KNOBS:
            raise InvalidRequest(f"{peer_name} has no knob {knob}{_nearest(knob, words)}; it has {', '.join(words)}")
    name, method = _method(peer_name, peer, given.get(peer.chooser, ""), theirs)
    knobs = {"policy": method.policy, **method.always}
    for knob, word in method.knobs.items():
        if value := theirs.get(knob, word.default):
            try:
                knobs |= word.translate(value)
            except ValueError as error:
                raise InvalidRequest(f"{peer_name}'s {knob}={value}: {error}") from None
    for knob, value in theirs.items():
        if knob in method.knobs:
            continue
        if knob in peer.without:
            raise InvalidRequest(f"{peer_name}'s {knob} has no counterpart here: {peer.without[knob]}")
        if knob in knobs:
            raise InvalidRequest(f"{knob} is ours, and {peer_name}'s knobs say {knob}={knobs[knob]} already: give one of them")
        others = [other for other, its in peer.methods.items() if knob in its.knobs]
        if others:
            raise InvalidRequest(f"{peer_name}'s {name} has no knob {knob}; it is one of {', '.join(others)}")
        knobs[knob] = value
    return _shape(peer_name, {knob: value for knob, value in knobs.items() if value})


def said(peer_name: str, given: Mapping[str, str], ours: Ours) -> str:
    """One line that shows a translation."""
    left, right = (" ".join(f"{name}={value}" for name, value in knobs.items()) for knobs in (given, ours))
    return f"{peer_name} {left} -> {right}"


def _method(peer_name: str, peer: Peer, chosen: str, theirs: Mapping[str, str]) -> tuple[str, Method]:
    """The algorithm that is named; else the peer's default, or, if that has not all of the knobs, the first that has."""
    if chosen in peer.methods:
        return chosen, peer.methods[chosen]
    if chosen in peer.foreign:
        raise InvalidRequest(f"{peer_name}'s {peer.chooser}={chosen} has no counterpart here: {peer.foreign[chosen]}")
    if chosen:
        known = [*peer.methods, *peer.foreign]
        raise InvalidRequest(f"{peer_name} has no {peer.chooser}={chosen}{_nearest(chosen, known)}; it has {', '.join(known)}")
    words = {knob for method in peer.methods.values() for knob in method.knobs}
    fits = [name for name, method in peer.methods.items() if (theirs.keys() & words) <= method.knobs.keys()]
    name = peer.default if peer.default in fits or not fits else fits[0]
    if not peer.default and len(fits) != 1:
        raise InvalidRequest(f"say which of {peer_name}'s algorithms: {peer.chooser}={'|'.join(peer.methods)}")
    return name, peer.methods[name]


def _shape(peer_name: str, knobs: dict[str, str]) -> dict[str, str]:
    """With the third of n, keep and branch where two are known, and these in front."""
    known: dict[str, int] = {name: _whole(name, knobs[name]) for name in ("n", "keep", "branch") if name in knobs}
    if len(known) == 2 and knobs["policy"] in BEAMS:
        if "n" not in known:
            known["n"] = known["keep"] * known["branch"]
        else:
            other = "branch" if "keep" in known else "keep"
            divisor = known["keep" if other == "branch" else "branch"]
            if known["n"] % divisor:
                raise InvalidRequest(
                    f"{peer_name}'s knobs say n={known['n']} chains in portions of {divisor}, but here it must be a multiple"
                )
            known[other] = known["n"] // divisor
    if len(known) == 1 and knobs["policy"] in BEAMS:
        missing = [name for name in ("n", "keep", "branch") if name not in known]
        raise InvalidRequest(f"{peer_name}'s knobs say {next(iter(known))} alone; say {' or '.join(missing)} as well")
    front: dict[str, str] = {name: str(known[name]) for name in ("n", "keep", "branch") if name in known}
    return {"policy": knobs["policy"], **front, **{name: value for name, value in knobs.items() if name not in front}}


def _whole(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise InvalidRequest(f"{name} is a whole number from 1, not {value!r:.60}")
    return int(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
