"""The knobs of other systems."""

import contextlib
from itertools import chain

import pytest

from ramify.client import InvalidRequest, job_spec
from ramify.client.peer_table import PEERS
from ramify.client.peers import said, translate
from ramify.client.spec import SEARCH_KNOBS
from ramify.scheduler.spec import knobs_of

#: Knobs that have no default at the peer, and without which ours would have none either.
NEEDED = {
    ("its_hub", "BeamSearch"): {"budget": "16", "beam_width": "4"},
    ("its_hub", "SelfConsistency"): {"budget": "16"},
    ("its_hub", "BetaSelfConsistency"): {"budget": "16"},
    ("openr", "beam_search"): {"tree_max_width": "4"},
    ("compute-optimal-tts", "beam_search"): {"tree_max_width": "4"},
    ("llm-reasoners", "BeamSearch"): {"beam_size": "4", "branch": "4"},
}
METHODS = [(name, method) for name, peer in PEERS.items() for method in peer.methods]

# keep 4, branch 4 in the words of everybody.
FOUR_BY_FOUR = {
    "search-and-learn": {"n": "16", "beam_width": "4"},
    "its_hub": {"budget": "16", "beam_width": "4"},
    "openr": {"method": "beam_search", "num_sequence": "4", "tree_max_width": "4"},
    "compute-optimal-tts": {"method": "beam_search", "num_sequence": "4", "tree_max_width": "16"},
    "llm-reasoners": {"algorithm": "BeamSearch", "beam_size": "4", "branch": "4"},
    "thinkbooster": {"type": "beam_search", "beam_size": "4", "candidates_per_beam": "4"},
    "thinkbooster-http": {"tts_beam_size": "4", "tts_candidates_per_step": "4"},
}


@pytest.mark.parametrize("peer", FOUR_BY_FOUR)
def test_the_same_beam_in_the_words_of_everybody(peer: str) -> None:
    ours = translate(peer, FOUR_BY_FOUR[peer])
    assert (ours["policy"], ours["n"], ours["keep"], ours["branch"]) == ("beam", "16", "4", "4")


@pytest.mark.parametrize(("peer", "method"), METHODS)
def test_every_algorithm_is_one_that_the_gateway_takes(peer: str, method: str) -> None:
    given = {PEERS[peer].chooser: method, **NEEDED.get((peer, method), {})}
    ours = translate(peer, given)
    knobs = knobs_of(job_spec(**ours).search)
    assert knobs.policy == PEERS[peer].methods[method].policy
    assert next(iter(ours)) == "policy"
    for name, value in ours.items():
        if name not in ("policy", "step"):
            assert str(knobs[name]) == value or float(knobs[name]) == pytest.approx(float(value))


@pytest.mark.parametrize(("peer", "method"), METHODS)
def test_every_knob_leads_to_knobs_of_ours(peer: str, method: str) -> None:
    for name, word in PEERS[peer].methods[method].knobs.items():
        for each in (word.default or "1", "last", "true", "argmax", "0"):
            with contextlib.suppress(ValueError):  # of a word that is a choice
                assert word.translate(each).keys() <= {"policy", *SEARCH_KNOBS}, name


def test_what_a_peer_means() -> None:
    assert translate("search-and-learn", {})["policy"] == "best_of_n", "its default"
    sal = translate("search-and-learn", {"n": "16", "beam_width": "4"})
    assert said("search-and-learn", {"n": "16", "beam_width": "4"}, sal).startswith(
        "search-and-learn n=16 beam_width=4 -> policy=beam n=16 keep=4 branch=4 "
    )
    assert (sal["temperature"], sal["finished"], sal["max_steps"], sal["duplicates"]) == ("0.8", "refill", "40", "keep")
    ahead = translate("search-and-learn", {"n": "16", "beam_width": "4", "lookahead": "3"})
    assert (ahead["policy"], ahead["lookahead"]) == ("lookahead", "3")
    assert "finished" not in ahead
    knobs_of(job_spec(**ahead).search)
    adaptive = translate("its_hub", {"algorithm": "AdaptiveSelfConsistency", "budget": "32", "threshold": "0.8"})
    assert (adaptive["n"], adaptive["stop"], adaptive["margin"]) == ("32", "margin", "0.6")
    beta = translate("its_hub", {"algorithm": "BetaSelfConsistency", "budget": "32"})
    assert (beta["stop"], beta["confidence"], beta["parallel"], beta["barrier"]) == ("beta", "0.95", "32", "none")
    assert translate("treequest", {"algorithm": "ABMCTSA", "iterations": "9"})["iterations"] == "9", "ours, where it has no word"


WRONG: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "peer": ("search-and-lern", {}, ["did you mean search-and-learn?", "its_hub"]),
    "knob": ("search-and-learn", {"beamwidth": "4"}, ["no knob beamwidth", "did you mean beam_width?", "num_iterations"]),
    "algorithm": ("openr", {"method": "beam"}, ["method=beam", "beam_search", "rstar_mcts"]),
    "no algorithm": ("its_hub", {"budget": "4"}, ["say which", "algorithm=BeamSearch|"]),
    "foreign algorithm": ("treequest", {"algorithm": "ABMCTSM"}, ["no counterpart", "algorithm=ABMCTSA"]),
    "foreign knob": ("search-and-learn", {"prm_path": "x"}, ["prm_path has no counterpart", "--verifier"]),
    "foreign value": ("search-and-learn", {"agg_strategy": "mean"}, ["agg_strategy=mean", "last, min, prod"]),
    "other algorithm's": ("search-and-learn", {"approach": "best_of_n", "beam_width": "4"}, ["no knob beam_width", "dvts"]),
    "ours and theirs": ("its_hub", {"budget": "8", "beam_width": "4", "keep": "2"}, ["keep is ours", "keep=4 already"]),
    "indivisible": ("search-and-learn", {"n": "10", "beam_width": "4"}, ["n=10", "4", "multiple"]),
    "half a shape": ("openr", {"method": "beam_search"}, ["keep alone", "n or branch"]),
    "no number": ("search-and-learn", {"n": "many", "beam_width": "4"}, ["n is a whole number", "'many'"]),
    "no threshold": ("its_hub", {"algorithm": "AdaptiveSelfConsistency", "threshold": "x"}, ["threshold=x"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_says_what_to_do(case: str) -> None:
    peer, given, parts = WRONG[case]
    with pytest.raises(InvalidRequest) as caught:
        translate(peer, given)
    for part in parts:
        assert part in str(caught.value)


def test_what_has_no_counterpart_is_not_in_the_table_too() -> None:
    for peer in PEERS.values():
        known = set(chain.from_iterable(method.knobs for method in peer.methods.values()))
        assert not known & peer.without.keys() - {"temperature"}
        assert not peer.methods.keys() & peer.foreign.keys()
        assert peer.default in ("", *peer.methods)
