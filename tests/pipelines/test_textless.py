"""The wrong field for the text is one error that names the fields; bad documents are counted."""

from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.inputs import as_documents
from pipelines.textless import refuse_textless


def refuse(file: Path, work: Path, text: str | None = None) -> None:
    refuse_textless(as_documents([file], work, text=text), [file], work, text)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"question": "q", "answer": "a"}\n'), ("a.csv", "question,answer\nq,a\n")]
)
def test_fields_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        DataError, match=r"no record of 1 .*\(1 no_text\); its fields are question, answer; .*--text '\{question\}'"
    ):
        refuse(tmp_path / name, tmp_path / "work")
    refuse(tmp_path / name, tmp_path / "other", "{question} {answer}")


def test_blank_texts_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    refuse(tmp_path / "a.jsonl", tmp_path / "work")
