"""Where a model's chat template is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from ramify.chat import ChatFormat, chat_format
from ramify.scheduler.engines.chat import read_chat
from ramify.scheduler.engines.openai import OpenAIEngine
from ramify.scheduler.engines.openai_params import OpenAIParams
from ramify.scheduler.errors import EngineError
from tests.unit.engines.completions_server import CompletionsServer
from tests.unit.engines.openai_helpers import character_tokenizer, saved


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_folder_without_any_has_none(tmp_path: Path) -> None:
    assert read_chat(tmp_path) == ChatFormat("", "", "")
    write(tmp_path, "tokenizer_config.json", {"chat_template": None, "bos_token": None, "eos_token": "</s>"})
    assert read_chat(tmp_path) == ChatFormat("", "", "</s>")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ messages }}", "{{ messages }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], ""),
        ({"default": "d", "rag": "r"}, "d"),
    ],
)
def test_a_configuration_may_have_one_or_several(tmp_path: Path, template: Any, wanted: str) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": template, "bos_token": {"content": "<s>", "lstrip": False}})
    write(tmp_path, "special_tokens_map.json", {"bos_token": "<other>", "eos_token": {"content": "</s>"}})
    assert read_chat(tmp_path) == ChatFormat(wanted, "<s>", "</s>")
    assert chat_format(template, "<s>", None).chat_template == wanted


def test_a_file_of_its_own_goes_over_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("{# ö #}new")
    assert read_chat(tmp_path).chat_template == "{# ö #}new"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(EngineError, match=r"the chat template in .* can't be read: "):
        read_chat(tmp_path)


async def test_an_openai_engine_has_that_of_its_tokenizer_and_another_revision_with_another_one(tmp_path: Path) -> None:
    revisions = set()
    with CompletionsServer() as server:
        params = OpenAIParams(tokenizer=saved(character_tokenizer(), tmp_path))
        for template in ("", "one", "other"):
            (tmp_path / "chat_template.jinja").write_text(template)
            engine = OpenAIEngine(server.url, params)
            assert engine.info.chat_template == template
            revisions.add(engine.info.revision)
            await engine.close()
    assert len(revisions) == 3
