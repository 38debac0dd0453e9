"""Problems as prompts: what a model is given of a job's settings and a problem."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ramify.scheduler.actors.prompts import PromptError, Prompts, check_step_prompt
from ramify.scheduler.engines.base import ModelInfo
from ramify.v1 import job_pb2
from tests.simulation.world import plan

STARTED_MS = 1_700_000_000_000  # 2023-11-14
AUTO, ALWAYS, NEVER = job_pb2.CHAT_RULE_AUTO, job_pb2.CHAT_RULE_ALWAYS, job_pb2.CHAT_RULE_NEVER
CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    "{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}[INST] {{ message['content'] | trim }} [/INST]{% endfor %}"
)


def info(**given: Any) -> ModelInfo:
    return replace(ModelInfo("m", "1", "b", "", 99, 1), **given)


def text(model: ModelInfo, problem: str = "1+1", **settings: Any) -> str:
    given: dict[str, Any] = {"chat": AUTO} | settings
    return Prompts(model, job_pb2.Prompt(**given), STARTED_MS).text(problem)


def test_without_a_chat_a_prompt_is_the_template() -> None:
    own = info(prompt_template="Q: {problem}\n")
    assert text(own) == "Q: 1+1\n"
    assert text(own, template="<{problem}|{problem}>") == "<1+1|1+1>"
    assert text(own, system="be brief") == "be brief\n\nQ: 1+1\n"
    assert text(info(), problem="{problem}") == "{problem}"


def test_a_chat_template_is_rendered_where_it_is_to_be() -> None:
    chat, both = info(chat_template=CHATML), info(chat_template=CHATML, prompt_template="Q: {problem}")
    rendered = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert text(chat) == rendered
    assert text(chat, chat=NEVER) == "1+1"
    assert text(both) == "Q: 1+1", "the model has a template of its own"
    assert text(both, chat=ALWAYS) == rendered.replace("1+1", "Q: 1+1")
    assert text(chat, template="solve {problem}") == rendered.replace("1+1", "solve 1+1")
    assert text(chat, system="be brief") == "<|im_start|>system\nbe brief<|im_end|>\n" + rendered
    assert text(chat, system="s", chat=NEVER) == "s\n\n1+1"


def test_a_job_from_before_there_were_settings_has_the_prompts_that_it_had() -> None:
    assert Prompts(info(chat_template=CHATML), job_pb2.Prompt(), STARTED_MS).text("1+1") == "1+1"


def test_a_template_that_refuses_the_system_role_gets_it_with_the_problem() -> None:
    refuses = info(chat_template=NO_SYSTEM, bos_token="<s>")
    assert text(refuses) == "<s>[INST] 1+1 [/INST]"
    assert text(refuses, system="be brief") == "<s>[INST] be brief\n\n1+1 [/INST]"


def test_templates_find_what_transformers_gives_them() -> None:
    """The day is that on which the job began; a tag that marks for training and loop controls are known; JSON is not for HTML."""
    asks = info(
        chat_template="{{ strftime_now('%d %b %Y') }}|{{ {'a': '<é>'} | tojson }}|{{ eos_token }}|{{ tools is none }}|"
        "{% generation %}said{% endgeneration %}|{% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
        eos_token="</s>",
    )
    assert text(asks) == '14 Nov 2023|{"a": "<é>"}|</s>|True|said|1'


def test_blocks_leave_no_white_space_of_their_own() -> None:
    laid_out = "{% for message in messages %}\n    {% if message['role'] == 'user' %}\n<u>\n    {% endif %}\n{% endfor %}\n"
    assert text(info(chat_template=laid_out)) == "<u>\n"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('only\n two') }}", "the chat template of m fails: only two"),
        ("{% for %}", "the chat template of m fails: "),
        ("{{ messages[7]['content'] + 1 }}", "the chat template of m fails: "),
        ("{{ ''.__class__.__mro__ }}", "the chat template of m fails: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "the chat template of m fails: "),
        ("", "the job says chat=always, and m has no chat template: say auto or never"),
    ],
)
@pytest.mark.parametrize("system", ["", "be brief"])
def test_a_template_that_fails_says_so(template: str, system: str, says: str) -> None:
    with pytest.raises(PromptError) as error:
        text(info(chat_template=template), chat=ALWAYS, system=system)
    assert str(error.value).startswith(says)


def test_special_tokens_are_known_in_a_prompt_and_none_is_added() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    made.enable_truncation(8)
    chat = info(chat_template=CHATML, tokenizer_json=made.to_str())
    (tokens,) = Prompts(chat, job_pb2.Prompt(chat=AUTO), STARTED_MS).encode(["1+1"])
    assert tokens.tolist().count(made.token_to_id("<|im_start|>")) == 2
    assert made.decode(tokens.tolist(), skip_special_tokens=False) == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="a prompt is empty"):
        Prompts(info(chat_template="{# nothing #}"), job_pb2.Prompt(chat=AUTO), STARTED_MS).encode(["1+1"])


def test_a_step_prompt_leaves_room_for_the_step() -> None:
    job = plan(max_step_tokens=6, max_steps=12)
    for begin, longest in (("", 0), ("#####", 5), ("{step}: ", 4)):
        check_step_prompt(info(), replace(job, step_prompt=begin))
        assert len(replace(job, step_prompt=begin).begin_step(12)) == longest
    with pytest.raises(PromptError, match="the step prompt has up to 6 tokens, which leaves nothing of max_step_tokens=6"):
        check_step_prompt(info(), replace(job, step_prompt="### {step}"))  # of step 12
