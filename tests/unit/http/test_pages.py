"""The page of a tree, and what of a tree is drawn."""

import asyncio
import re
from pathlib import Path

from ramify.http.view import ROWS_MAX, TEXT_CHARS_MAX, view
from ramify.v1 import job_pb2
from tests.unit.http.house import house

EVIL = "<script>alert('x')</script> & \"quotes\""


def node(node_id: int, parent: int, text: str, score: float = 0.5, **more: object) -> job_pb2.TreeNode:
    return job_pb2.TreeNode(node_id=node_id, parent_id=parent, depth=1, text=text, score=score, tokens=[1], **more)  # type: ignore[arg-type]


async def test_a_page_shows_a_tree_as_it_grows_and_obeys_nobody_s_text(tmp_path: Path) -> None:
    async with asyncio.timeout(60), house(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}") as home:
        asked = asyncio.create_task(home.ask())
        job = await home.job(job_pb2.JOB_STATE_RUNNING)
        path = f"/jobs/{job.job_id}/problems/0"
        page = await home.http.get(path)
        assert "no steps yet" in page.text
        policy = page.headers["content-security-policy"]
        (nonce,) = {*re.findall(r"'nonce-([^']+)'", policy)}
        assert "default-src 'none'" in policy
        assert {*re.findall(r"<(?:script|style)[^>]*>", page.text)} == {f'<script nonce="{nonce}">', f'<style nonce="{nonce}">'}
        assert not re.search(r"\sstyle=|\son\w+=|https?://", page.text), "the policy would forbid it"
        assert nonce not in (await home.http.get(path)).text

        before = (await home.http.get(f"{path}/tree")).json()
        assert (await home.http.get(f"{path}/tree?digest={before['digest']}")).json() == {
            k: before[k] for k in ("done", "digest")
        }
        await home.step(job, EVIL.encode())
        after = (await home.http.get(f"{path}/tree?digest={before['digest']}")).json()
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34;" in after["html"]
        assert "<script" not in after["html"]
        await home.finish(job, answer_node_id=7)
        await asked
        done = (await home.http.get(f"{path}/tree")).json()
        assert done["done"]
        assert 'class="l0 chosen' in done["html"]
        assert (await home.http.get("/jobs/nobody/problems/0")).status_code == 404


def test_a_large_tree_is_cut_to_what_matters() -> None:
    chain = [node(index + 2, index + 1, f"step {index}") for index in range(60)]
    wide = [node(1000 + index, 1, f"other {index}", score=index / 10_000) for index in range(5000)]
    result = job_pb2.Result(outcome=job_pb2.OUTCOME_ANSWERED, answer_node_id=61, answer="x" * 3000)
    found = view(job_pb2.Tree(root_id=1, nodes=[*chain, *wide], result=result))
    assert len(found.rows) == ROWS_MAX
    assert [row.text for row in found.rows if row.chosen] == [f"step {index}" for index in range(60)]
    assert found.rows[60].text == "other 4999", "the most promising come first"
    assert found.hidden == 5060 - ROWS_MAX
    assert len(found.answer) < TEXT_CHARS_MAX + 5
    assert max(row.level for row in found.rows) == 16, "a deep chain is not indented for ever"


def test_what_is_hidden_is_counted_where_it_would_be() -> None:
    first = [node(index + 2, 1, f"a {index}") for index in range(ROWS_MAX)]
    below = [node(10_000 + index, 2, f"b {index}") for index in range(5)]
    found = view(job_pb2.Tree(root_id=1, nodes=[*first, *below]))
    assert (found.state, found.done, found.hidden) == ("growing", False, 0)
    assert [row.hidden for row in found.rows if row.text == "a 0"] == [5]
