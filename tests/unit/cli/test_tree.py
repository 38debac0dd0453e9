import io

from rich.console import Console

from ramify.cli.tree import render_tree
from ramify.v1 import job_pb2
from tests.unit.cli.trees import beam_tree, deep_tree, make_tree


def drawn(tree: job_pb2.Tree, *, columns: int = 80, colours: bool = False, show_all: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=colours, color_system="standard" if colours else None)
    console.print(render_tree(tree, show_all=show_all))
    return out.getvalue()


def test_a_beam_as_a_person_wants_to_see_it() -> None:
    assert (
        drawn(beam_tree())
        == """\
4 5 6 10 · answered · correct · 34 chains, 40 steps, 812 tokens
├── ● 0.98 ████▉ ×5 10-4=6:5 6 6
│   ├── ● 0.99 █████ ×2 6*5=30:6 30
│   │   ├── ● 1.00 █████ ×3 30-6=24:24 ■
│   │   └── ○ 0.02 ▏     30/6=5:5 ■
│   ├── · 0.21 █     6+6=12:5 12
│   └── · 0.08 ▍     6*6=36:5 36
├── ○ 0.72 ███▋  ×2 4*5=20:6 10 20
│   ├── ○ 0.99 █████ ×2 20+10=30:6 30
│   │   ├── ○ 1.00 █████ ×3 30-6=24:24 ■
│   │   └── ○ 0.02 ▏     30/6=5:5 ■
│   ├── · 0.99 █████ 20-6=14:10 14
│   └── · 0.08 ▍     20-10=10:6 10
├── · 0.85 ████▎ ×3 6-4=2:2 5 10
│   └── … 4 more steps, best 0.99
├── · 0.59 ███   ×2 10+6=16:4 5 16
│   └── … 4 more steps, best 0.16
└── … 4 more steps, best 0.46
● chosen  · given up  ■ end of a chain  ×3 alike
"""
    )


def test_all_shows_every_step() -> None:
    every = drawn(beam_tree(), show_all=True)
    assert "…" not in every
    assert all(text in every for text in ("5*2=10:10 10", "16-5=11:4 11", "6+4=10:5 10 10"))


def test_the_chosen_chain_is_bold_and_what_was_given_up_is_dim() -> None:
    lines = drawn(beam_tree(), colours=True).splitlines()
    assert "\x1b[1;32m10-4=6:5 6 6" in lines[1]
    assert "\x1b[2m6*6=36:5 36" in lines[6]


def test_a_deep_tree_stays_narrow() -> None:
    lines = drawn(deep_tree(200)).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 + 2 * 200 + 1
    assert lines[3] == "│   └── … 3 more steps, best 0.30"
    assert lines[-3].endswith("… ■")
    assert "indented: tried instead" in lines[-1]


def test_thousands_of_steps_are_no_trouble() -> None:
    assert "4,096 steps" in drawn(deep_tree(4_096, tried=0))
    # The best chain ends early at each level: the worst case for the levels of indentation.
    comb = {(1,) * level + (0,): (f"a{level}", 0.9) for level in range(1_500)}
    comb |= {(1,) * (level + 1): (f"b{level}", 0.1) for level in range(1_500)}
    assert "b1499" in drawn(make_tree({**comb}, chosen=(0,)), show_all=True, columns=200)


def test_a_tree_that_grows() -> None:
    assert drawn(make_tree({})) == "4 5 6 10 · growing · 0 chains, 0 steps, 0 tokens\n└── no steps yet\n"
    assert (
        drawn(make_tree({(0,): ("10-4=6:5 6 6", None), (1,): ("x", 0.5)}))
        == """\
4 5 6 10 · growing · 2 chains, 2 steps, 6 tokens
├── ○ 0.50 ██▌   x
└── ○    –       10-4=6:5 6 6
○ open  ■ end of a chain  ×3 alike
"""
    )


def test_a_tree_that_failed_says_why() -> None:
    tree = make_tree({(0,): ("a\x1b[31m\nb", float("nan"))}, ends={(0,): job_pb2.FINISH_ERROR})
    tree.result.outcome = job_pb2.OUTCOME_FAILED
    tree.result.message = "the verifier doesn't answer"
    assert (
        drawn(tree)
        == """\
4 5 6 10 · failed · 1 chain, 1 step, 0 tokens
└── ·    –       a\N{REPLACEMENT CHARACTER}[31m b ■ error
the verifier doesn't answer
"""
    )


def test_a_step_says_who_wrote_it_where_there_are_several() -> None:
    tree = make_tree({(0,): ("a", 0.5), (1,): ("a", 0.5), (2,): ("b", 0.25)}, chosen=(0,))
    for node, generator in zip(tree.nodes, ("large", "small", "large"), strict=True):
        node.generator = generator
    lines = drawn(tree).splitlines()
    assert lines[1].endswith("×2 a (large, small) ■")
    assert lines[2].endswith("b (large)")


def test_a_tree_says_what_is_odd_about_its_answer() -> None:
    tree = make_tree({(0,): ("a", 0.5)}, chosen=(0,))
    tree.result.note = "no step of the answer ended with '\\n'"
    assert drawn(tree).splitlines()[-1] == "no step of the answer ended with '\\n'"


def test_a_tree_says_what_is_damaged_and_that_it_was_restarted() -> None:
    tree = make_tree({(0,): ("a", 0.5)}, chosen=(0,))
    tree.damage = "segment 7 is damaged: its steps, and those below them, are left out"
    tree.result.restarted = "segment 3 was damaged"
    assert drawn(tree).splitlines()[-3:] == [
        "● chosen  · given up  ■ end of a chain  ×3 alike",
        "damaged: segment 7 is damaged: its steps, and those below them, are left out",
        "restarted: segment 3 was damaged",
    ]
    del tree.nodes[:]
    assert "damaged: segment 7" in drawn(tree)
