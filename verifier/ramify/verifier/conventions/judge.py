"""A language model that is asked whether a solution is right so far, and answers with one of two words.

The score is P(yes) against P(no), the softmax over the logits of those two tokens where the model is to answer.
"""

from dataclasses import dataclass

from ramify.verifier.conventions.base import Subject, Whole
from ramify.verifier.conventions.templates import chat_items, fill_apart, next_token, plain_items
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Pair

TEMPLATE = """Problem:
{problem}

Solution so far:
{solution}

Is every step of this solution right so far? Answer with one word, Yes or No."""


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What is asked, and which words answer it."""

    template: str = TEMPLATE  # with {problem} and {solution}, in this order
    system: str = ""  # of the chat; empty: what the chat template itself says
    yes: str = "Yes"
    no: str = "No"


class Judge(Whole):
    """See the module. Without a chat template the model reads the template as it is, and answers after a space."""

    name = "judge"

    def __init__(self, subject: Subject, options: JudgeOptions) -> None:
        super().__init__(subject)
        chat, own = subject.chat, options.template
        if [own.count(hole) for hole in ("{problem}", "{solution}")] != [1, 1] or own.index("{problem}") > own.index(
            "{solution}"
        ):
            raise StartupError("the judge's template must have {problem} and then {solution} in it, each once")
        if chat.chat_template:
            system = [("system", options.system)] if options.system else []
            self._items = chat_items(self._vocabulary, chat, [*system, ("user", own)], prompt=True)
        else:
            self._items = plain_items(self._vocabulary, own)
        space = "" if chat.chat_template or own[-1:].isspace() else " "
        self.head = Pair(*(self._answer(space + word) for word in (options.yes, options.no)))

    def whole(self, problem: str, solution: str) -> tuple[Tokens, int]:
        """See `Whole`."""
        texts = {"problem": problem, "solution": solution}
        return fill_apart(self._vocabulary, self._items, texts, {**texts, "solution": ""})

    def _answer(self, word: str) -> int:
        return next_token(self._vocabulary, self._items, {"problem": "1", "solution": "1"}, word)
