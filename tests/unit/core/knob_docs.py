"""The tables of docs/knobs.md, made from the code. `python -m tests.unit.core.knob_docs` writes them into the file."""

import re
import sys
from pathlib import Path
from typing import Any

from ramify.client.peer_table import PEERS
from ramify.scheduler.policies.knobs import COMMON, MEANING, POLICIES, Choice, Real, Text, Value, Whole, defaults_of, own_knobs

PAGE = Path(__file__).parents[3] / "docs" / "knobs.md"


def kind(name: str) -> str:
    """What values a knob can have."""
    match MEANING[name][0]:
        case Whole(least, most):
            return f"{least:,} to {most:,}" if most < 2**60 else f"from {least}"
        case Real(least, most, is_open):
            return f"{'above ' if is_open else ''}{least:g} to {most:g}"
        case Choice(words):
            return ", ".join(f"`{word}`" for word in words)
        case Text():
            return "text"


def shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def vocabulary() -> str:
    """Every knob: what it means, what it can be, who has it."""
    lines = ["| knob | meaning | values | policies |", "| --- | --- | --- | --- |"]
    for name, (_, meaning) in MEANING.items():
        own = [policy for policy in POLICIES if name in own_knobs(policy)]
        who = "all" if name in COMMON or len(own) == len(POLICIES) else ", ".join(own) or "none yet"
        lines.append(f"| `{name}` | {meaning} | {kind(name)} | {who} |")
    return "\n".join(lines)


def defaults() -> str:
    """The default of every knob in every policy."""
    lines = ["| policy | its own knobs | other defaults there |", "| --- | --- | --- |"]
    for policy in POLICIES:
        own = own_knobs(policy)
        rest = {name: value for name, value in defaults_of(policy).items() if name not in own}
        unlike = {name: value for name, value in rest.items() if value != COMMON[name]}
        cells = [", ".join(f"`{name}={shown(value)}`" for name, value in knobs.items()) for knobs in (own, unlike)]
        lines.append(f"| {policy} | {cells[0]} | {cells[1]} |")
    common = ", ".join(f"`{name}={shown(value)}`" for name, value in COMMON.items())
    return "\n".join([*lines, "", f"Of every policy, unless said otherwise there: {common}."])


def rules() -> str:
    """When a policy is asked, what of its chains is scored, and where it comes from."""
    lines = [
        "| policy | what it is | a tree waits for | scored | ended chains | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for policy, made in POLICIES.items():
        text = sys.modules[made.__module__].__doc__ or ""
        own, example = own_knobs(policy), made()
        waits = {"level": "all that is in flight", "none": "nothing"}[example.barrier]
        waits = "`barrier`" if "barrier" in own else waits
        scored = {"step": "every step", "end": "the ended chain"}[example.scores]
        ended = "`finished`" if "finished" in own else "see below"
        sources = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", text))
        cited = ", ".join(f"[{name}](https://arxiv.org/abs/{name})" for name in sources) or "Hugging Face 2024"
        lines.append(f"| {policy} | {text.splitlines()[0].rstrip('.')} | {waits} | {scored} | {ended} | {cited} |")
    return "\n".join(lines)


def peers() -> str:
    """The words of other systems."""
    lines: list[str] = []
    for name, peer in PEERS.items():
        lines += [f"### {name}", "", f"Read in {peer.source}. `{peer.chooser}=` names the algorithm"]
        lines[-1] += f"; {peer.default} where none is named." if peer.default else "."
        lines += ["", "| theirs | here | knobs, with their defaults |", "| --- | --- | --- |"]
        for method_name, method in peer.methods.items():
            knobs = [
                f"`{knob}{'=' + word.default if word.default else ''}`: {word.meaning}" for knob, word in method.knobs.items()
            ]
            always = "".join(f" `{knob}={value}`" for knob, value in method.always.items())
            lines.append(f"| `{method_name}` | {method.policy}{always} | {'<br>'.join(knobs)} |")
        without = [f"`{knob}` ({instead})" for knob, instead in (peer.foreign | peer.without).items()]  # type: ignore[operator]
        lines += ["", f"No counterpart: {'; '.join(without)}.", ""]
    return "\n".join(lines).rstrip()


TABLES: dict[str, Any] = {"vocabulary": vocabulary, "defaults": defaults, "rules": rules, "peers": peers}


def filled(page: str) -> str:
    """The page with every table as the code has it."""
    for name, made in TABLES.items():
        begin, end = f"<!-- {name}: made by tests/unit/core/knob_docs.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"docs/knobs.md has no place for {name}"
        page = f"{before}{begin}{made()}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
