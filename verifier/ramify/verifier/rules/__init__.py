"""Rules: exact checkers of chains. Light on purpose, for the gateway checks problems with them at submission.

A rule is one of ours or the user's own: an entry point of the group `ramify.rules` that names a `Rule`, or a class of them.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from types import MappingProxyType

from ramify.verifier.errors import StartupError
from ramify.verifier.rules.base import Rule
from ramify.verifier.rules.countdown import CountdownRule
from ramify.verifier.rules.math import MathRule

logger = logging.getLogger(__name__)

GROUP = "ramify.rules"

_OURS: tuple[Rule, ...] = (CountdownRule(), MathRule())

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _OURS})
"""Our rules by their names."""


def known_rules() -> tuple[str, ...]:
    """Names of all rules, ours first. Nothing of the user's is imported for it."""
    return (*RULES, *sorted({entry.name for entry in entry_points(group=GROUP)} - RULES.keys()))


@lru_cache
def load_rule(name: str) -> Rule:
    """The rule of that name; ours hide those of the user that have the same name.

    Raises:
        StartupError: there is none, it cannot be imported, or what it names is no rule.
    """
    if name in RULES:
        return RULES[name]
    entry = next(iter(entry_points(group=GROUP, name=name)), None)
    if entry is None:
        raise StartupError(f"no rule '{name}'; there is {', '.join(known_rules())}, and any entry point of the group {GROUP}")
    where = f"rule '{name}' ({entry.value})"
    try:
        found = entry.load()
        rule = found() if isinstance(found, type) else found
    except Exception as error:
        raise StartupError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(rule, Rule):
        raise StartupError(f"{where} is {type(rule).__name__}, which does not derive from {Rule.__module__}.{Rule.__name__}")
    for member in ("name", "revision"):
        if not (isinstance(value := getattr(rule, member, None), str) and value):
            raise StartupError(f"{where} lacks the text '{member}'")
    if rule.name != name:
        raise StartupError(f"{where} calls itself '{rule.name}'; give the entry point and the rule one name")
    return rule


def rule_here(name: str) -> Rule | None:
    """The rule of that name if it is installed here: a service that only checks problems can do without."""
    if not name or name not in known_rules():
        return None
    try:
        return load_rule(name)
    except StartupError as error:
        logger.warning("problems are not checked: %s", error)
        return None


__all__ = ["GROUP", "RULES", "Rule", "known_rules", "load_rule", "rule_here"]
