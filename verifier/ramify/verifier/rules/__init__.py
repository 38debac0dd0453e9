"""Rules: exact checkers of chains. Light on purpose, for the gateway checks problems with them at submission."""

from collections.abc import Mapping
from types import MappingProxyType

from ramify.verifier.rules.base import Rule
from ramify.verifier.rules.countdown import CountdownRule

_ALL: tuple[Rule, ...] = (CountdownRule(),)

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ALL})
"""Every rule by its name."""

__all__ = ["RULES", "Rule"]
