import io
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramify.cli.errors import CliError, ProblemFileError
from ramify.cli.problem_values import LINE_BYTES_MAX
from ramify.cli.problems import ProblemFile, parse_fields
from ramify.v1 import job_pb2


def read(path: Path | str, *fields: str, file_format: str | None = None) -> list[job_pb2.Problem]:
    with ProblemFile(str(path), file_format=file_format, fields=parse_fields(list(fields))) as problems:
        count = problems.check()
        again = list(problems)
    assert len(again) == count
    return again


def written(directory: Path, content: str | bytes, name: str = "problems.jsonl") -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(problems: list[job_pb2.Problem]) -> list[str]:
    return [problem.text for problem in problems]


@pytest.mark.parametrize("name", ["text", "problem", "puzzle", "question", "prompt"])
def test_jsonl_with_a_usual_field(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, json.dumps({name: "4 5 6 10", "id": 7, "reference": None}) + "\n\n" + json.dumps({name: "é"}))
    assert read(path) == [job_pb2.Problem(text="4 5 6 10", id="7"), job_pb2.Problem(text="é")]


def test_text_wins_over_the_other_names(tmp_path: Path) -> None:
    assert texts(read(written(tmp_path, '{"prompt": "a", "text": "b", "puzzle": "c"}'))) == ["b"]


def test_mapped_fields(tmp_path: Path) -> None:
    path = written(tmp_path, '{"q": "6*4", "name": "x", "answer": 24, "text": "not this"}')
    (problem,) = read(path, "text=q", "id=name", "reference=answer")
    assert problem == job_pb2.Problem(text="6*4", id="x", reference="24")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[4, 5, 6, 10]", "4 5 6 10"),
        ("24", "24"),
        ("1.10", "1.10"),
        ("9" * 5000, "9" * 5000),
        (r'"\u00e9\n"', "é\n"),
    ],
)
def test_numbers_become_text(tmp_path: Path, value: str, text: str) -> None:
    assert texts(read(written(tmp_path, f'{{"text": {value}}}'))) == [text]


def test_csv(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeffid,puzzle,answer\r\na,"4 5\n6 10",24\r\n\r\nb,"1, 2",\r\n', "problems.CSV")
    assert read(path, "reference=answer") == [
        job_pb2.Problem(id="a", text="4 5\n6 10", reference="24"),
        job_pb2.Problem(id="b", text="1, 2"),
    ]


def test_text_lines(tmp_path: Path) -> None:
    assert texts(read(written(tmp_path, "4 5 6 10\n\n1 2 3 4", "problems.txt"))) == ["4 5 6 10", "1 2 3 4"]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    table = pa.table({"question": [[4, 5, 6, 10]] * 3_000, "id": range(3_000), "x": [None] * 3_000})
    pq.write_table(table, path)
    problems = read(path)
    assert problems[2_999] == job_pb2.Problem(text="4 5 6 10", id="2999")


def test_standard_input_is_read_once_and_sent_from_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "a"}\n')))
    assert texts(read("-")) == ["a"]


def test_a_pipe_is_read_once_and_sent_from_a_copy(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("4 5 6 10\n",))
    writer.start()
    assert texts(read(pipe, file_format="txt")) == ["4 5 6 10"]
    writer.join()


def test_a_large_file_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    with path.open("w") as file:
        file.writelines('{"text": "4 5 6 10"}\n' for _ in range(2_000))
        file.write("broken")
    problems = iter(ProblemFile(str(path)))
    assert next(problems).text == "4 5 6 10"  # the end is not read yet


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "problems.jsonl: is empty; a problem file has at least one problem"),
        ("\n \n", "problems.jsonl: is empty; a problem file has at least one problem"),
        (
            '{"text": "a"}\n{"text": b}\n',
            "line 2: column 10: not JSON: Expecting value; each line must be one JSON object",
        ),
        ('{"text": NaN}', "line 1: not JSON: NaN is no number there"),
        ("[" * 100_000, "line 1: not JSON: the brackets are nested too deep"),
        ('"4 5 6 10"', 'line 1: is no JSON object; write {"text": ...} on each line, not \'"4 5 6 10"\''),
        ('{"text": "a"}\n{"txt": "b"}', "line 2: has no field 'text', only 'txt'; correct it or the --field options"),
        (
            '{"txt": "a", "n": 1}',
            "line 1: has none of the fields text, problem, puzzle, question, prompt, only 'txt', 'n'; "
            "say which one is the text: --field text=NAME",
        ),
        ("{}", "line 1: has none of the fields text, problem, puzzle, question, prompt, only an empty object; "),
        (
            '{"puzzle": "a", "prompt": "b"}',
            "line 1: any of the fields puzzle, prompt could be the text; say which: --field text=NAME",
        ),
        ('{"text": true}', "line 1: field 'text' is true; it must be text, a number, or a list of numbers"),
        ('{"text": {"a": 1}}', "line 1: field 'text' is an object; it must be text"),
        ('{"text": ["a"]}', "line 1: field 'text' is a list of other things than numbers; it must be text"),
        ('{"text": []}', "line 1: field 'text' is an empty list; it must be text"),
        ('{"text": " "}', "line 1: field 'text' is empty; every problem needs a text"),
        ('{"text": null}', "line 1: field 'text' is empty; every problem needs a text"),
        (r'{"text": "\ud800"}', "line 1: field 'text' has half of a surrogate pair; correct the \\u escape"),
        (b'{"text": "a"}\n{"text": "\xff"}', "line 2: byte 24 of the file is not UTF-8; convert the file to UTF-8"),
        (b"\xef\xbb\xbf\xff", "line 1: byte 3 of the file is not UTF-8; convert the file to UTF-8"),
        (
            '{"text": "a", "id": "x"}\n{"text": "b"}\n{"text": "c", "id": "x"}',
            "problems.jsonl: problems 1 and 3 (counted from 1) both have the id 'x'; ids must differ",
        ),
    ],
)
def test_what_is_wrong_in_jsonl(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ProblemFileError) as caught:
        read(written(tmp_path, content))
    assert str(caught.value).startswith(str(tmp_path))
    assert message in str(caught.value)


def test_a_field_that_was_asked_for_is_needed_everywhere(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "a", "answer": 24}\n{"text": "b"}')
    with pytest.raises(ProblemFileError, match="line 2: has no field 'answer', only 'text'; correct it or"):
        read(path, "reference=answer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,id\n", "is empty; a problem file has at least one problem"),
        ("text,id\na\n", "line 2: has 1 values where the header has 2 columns; correct the line"),
        ("text,text\na,b\n", "line 1: the header names 'text' twice; give each column a name of its own"),
        ('text\na\n"b" c\n', "line 3: not CSV: "),
        ('text\na\n"' + "b" * 200_000, "line 3: not CSV: "),
        ("text;id\na;b\n", "line 2: has none of the fields text, problem, puzzle, question, prompt, only 'text;id'"),
        ("text\na\n\xff".encode("latin-1"), "line 3: byte 7 of the file is not UTF-8"),
    ],
)
def test_what_is_wrong_in_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ProblemFileError) as caught:
        read(written(tmp_path, content, "problems.csv"))
    assert message in str(caught.value)


def test_what_is_wrong_in_parquet(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match=r"problems.parquet: can't be read as Parquet: "):
        read(written(tmp_path, "no parquet", "problems.parquet"))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(ProblemFileError, match=r"rows.parquet, row 2: field 'text' is empty"):
        read(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(ProblemFileError, match=r"rows.parquet: is empty"):
        read(path)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "junk.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    with pytest.raises(ProblemFileError, match="line 1: is longer than 1,048,576 bytes; is this a problem file"):
        read(path)


def test_a_value_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"text": ["x" * (LINE_BYTES_MAX + 1)]}), path)
    with pytest.raises(ProblemFileError, match="row 1: field 'text' has 1,048,577 bytes; at most 1,048,576 are read"):
        read(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ProblemFileError, match=r"folder.jsonl: is a directory; name a file in it"):
        read(tmp_path / "folder.jsonl")
    with pytest.raises(ProblemFileError, match=r"missing.jsonl: there is no such file"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(ProblemFileError, match=r"can't be read: Not a directory"):
        read(written(tmp_path, "a", "file") / "below.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("problems.xlsx", "the extension .xlsx doesn't tell the format; say it with --format, one of jsonl, csv"),
        ("problems", "a name without an extension doesn't tell the format; say it with --format"),
    ],
)
def test_unknown_formats(tmp_path: Path, name: str, message: str) -> None:
    path = written(tmp_path, "4 5 6 10", name)
    with pytest.raises(ProblemFileError, match=message):
        read(path)
    assert texts(read(path, file_format="txt")) == ["4 5 6 10"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["puzzle"], "--field is TARGET=NAME, such as text=puzzle, not 'puzzle'"),
        (["text="], "--field is TARGET=NAME, such as text=puzzle, not 'text='"),
        (["answer=x"], "--field answer=x: there is no target 'answer'; there are text, id, reference"),
        (["text=a", "text=b"], "--field text is given twice: 'a' and 'b'"),
    ],
)
def test_malformed_mappings(fields: list[str], message: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_fields(fields)
    assert str(caught.value) == message
