"""Which convention is a model's, and what is said where none can be told or the model is not of the one that was named."""

import re
from pathlib import Path
from typing import Any

import pytest

from ramify.chat import ChatFormat
from ramify.verifier.backends.folder import open_tokenizer
from ramify.verifier.conventions import CONVENTIONS, make_convention, recognise
from ramify.verifier.conventions.base import Subject
from ramify.verifier.conventions.vocabulary import Vocabulary
from ramify.verifier.errors import StartupError
from tests.unit.verifier.conventions.tokenizers_made import CHATML, llama3, mistral, qwen


def subject_of(tokenizer: Any, folder: Path, chat: str | None = None, **config: Any) -> Subject:
    tokenizer.save_pretrained(folder)
    template = tokenizer.chat_template if chat is None else chat
    return Subject(Vocabulary(open_tokenizer(folder)), ChatFormat(template or "", tokenizer.bos_token or ""), config)


@pytest.mark.parametrize(
    ("config", "folder", "name"),
    [
        ({"architectures": ["Qwen2ForProcessRewardModel"]}, "any", "qwen-math-prm"),
        ({"architectures": ["Qwen2ForRewardModel"]}, "any", "orm"),
        ({"architectures": ["Qwen2ForPrmModel"]}, "any", "skywork"),
        ({"architectures": ["LlamaForTokenClassification"]}, "any", "token-classifier"),
        ({"architectures": ["Qwen3ForTokenClassification"], "id2label": {"0": "LABEL_0"}}, "any", "value-head"),
        ({"architectures": ["GemmaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, "any", "orm"),
        ({"architectures": ["MistralForCausalLM"]}, "math-shepherd-mistral-7b-prm", "math-shepherd"),
        (
            {"architectures": ["MistralForCausalLM"], "_name_or_path": "peiyi9979/math-shepherd-mistral-7b-prm"},
            "any",
            "math-shepherd",
        ),
        ({"architectures": ["LlamaForCausalLM"]}, "models--RLHFlow--Llama3.1-8B-PRM-Deepseek-Data/snapshots/1a2b", "rlhflow"),
        ({"architectures": ["LlamaForCausalLM"]}, "Llama3.1-8B-PRM-Mistral-Data", "rlhflow"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Skywork-o1-Open-PRM-Qwen-2.5-1.5B", "skywork"),
    ],
)
def test_a_model_is_recognised(config: dict[str, Any], folder: str, name: str, tmp_path: Path) -> None:
    assert recognise(tmp_path / folder, subject_of(qwen(), tmp_path, **config)) == name


@pytest.mark.parametrize("config", [{}, {"architectures": ["LlamaForCausalLM"]}])
def test_a_model_that_is_not_recognised_gets_a_list(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StartupError) as caught:
        recognise(tmp_path, subject_of(qwen(), tmp_path, **config))
    assert str(caught.value).endswith(f"add convention=NAME, one of {', '.join(CONVENTIONS)}")


TURNS = "{% for m in messages %}{% if loop.index > 4 %}later {% endif %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
RAISES = "{{ raise_exception('no system here') }}"


@pytest.mark.parametrize(
    ("name", "tokenizer", "chat", "config", "message"),
    [
        ("qwen-math-prm", llama3, None, {}, "the tokenizer has no '<extra_0>': this is no Qwen2.5-Math-PRM"),
        ("qwen-math-prm", qwen, "", {}, "the model has no chat template"),
        ("qwen-math-prm", qwen, RAISES, {}, "the model's chat template fails: no system here"),
        ("qwen-math-prm", qwen, "{{ messages[-1].content }}", {}, "the model's chat template leaves a message out"),
        ("math-shepherd", qwen, None, {}, "'ки' is 3 tokens of the tokenizer, not one: this is no Math-Shepherd"),
        ("rlhflow", mistral, None, {}, "the model has no chat template"),
        ("rlhflow", qwen, TURNS, {}, "treats turns unlike, or does not mark their ends: it is of no RLHFlow PRM"),
        ("rlhflow", qwen, "{% for m in messages %}{{ m.content }}+{% endfor %}", {}, "does not mark their ends"),
        ("token-classifier", qwen, None, {"num_labels": 3}, "the model's labels are 3, not two"),
        ("orm", qwen, None, {"num_labels": 3}, "the model has 3 labels; an outcome reward model has one, or two"),
        ("value-head", qwen, None, {}, "the separator is empty"),
        ("judge", qwen, None, {}, "'Perhaps not' is no token of its own where the model is to say it"),
    ],
)
def test_a_model_of_another_convention_is_refused(
    name: str, tokenizer: Any, chat: str | None, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = {"judge": {"no": "Perhaps not"}, "value-head": {"separator": ""}}.get(name, {})
    with pytest.raises(StartupError, match=re.escape(message)):
        make_convention(name, subject_of(tokenizer(), tmp_path, chat, **config), options)


def test_a_tag_that_the_tokenizer_has_as_text_is_a_mark_from_then_on(tmp_path: Path) -> None:
    """As an added token that is not special it would be read in a stranger's text too."""
    tokenizer = qwen()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    told = file.read_text()
    before, after = told.split('"content": "<extra_0>"')
    file.write_text(before + '"content": "<extra_0>"' + after.replace('"special": true', '"special": false', 1))
    subject = Subject(Vocabulary(open_tokenizer(tmp_path)), ChatFormat(CHATML), {})
    tag = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert tag in subject.vocabulary.text("<extra_0>?")
    row = make_convention("qwen-math-prm", subject, {}).render("a <extra_0>", ["<extra_0>", "b <extra_0> c"], 0)[0]
    assert (row.tokens == tag).sum() == 2


@pytest.mark.parametrize(
    ("filtered", "begins", "ends"),
    [
        ("m.content", "\n\n a", "b \n"),
        ("m.content.lstrip('\\n')", " a", "b \n"),
        ("m.content | trim", "a", "b"),
    ],
)
def test_what_a_template_strips_is_stripped(filtered: str, begins: str, ends: str, tmp_path: Path) -> None:
    """Of a step, in the same way only before the first: the tag stands between the last and what is stripped."""
    subject = subject_of(qwen(), tmp_path, CHATML.replace("m.content", filtered))
    row = make_convention("qwen-math-prm", subject, {}).render("\n\n a b \n", ["\n\n a ", "c "], 0)[0]
    told = qwen().decode(row.tokens)
    assert f"<|im_start|>user\n{begins} {ends}<|im_end|>\n" in told
    assert told.endswith(f"<|im_start|>assistant\n{begins} <extra_0>c <extra_0>")


def test_rlhflow_strips_steps_itself(tmp_path: Path) -> None:
    convention = make_convention("rlhflow", subject_of(qwen(), tmp_path), {})
    rows = [convention.render("a", steps, 0)[0] for steps in (["b", "c", ""], [" b\n", "\n\nc ", "\n\n"])]
    assert rows[0].tokens.tolist() == rows[1].tokens.tolist()
    assert qwen().decode(rows[0].tokens).count("<|im_start|>assistant\n+<|im_end|>\n") == 2
