r"""What a recipe may say of a source: found on the machine, in files, or in a dataset repository of a Hub.

All three end as files that readers take one part at a time. A source on the Hub (Hugging Face's) needs a download:
`loam check` says so, `loam fetch RECIPE` does it, and until then nothing reaches for the network. In a recipe:

    sources:
      finemath:
        kind: huggingface
        dataset: HuggingFaceTB/finemath      # owner/name
        subset: finemath-4plus               # a config of the dataset's card, else a folder of the repository
        split: train
        revision: main                       # a branch, a tag or a commit; `loam fetch` pins the commit
        text: "{text}"                       # template over a record's fields, as in every source of records
        id_field: id
        url_field: url
        licence: ODC-By-1.0
        domain: math/finemath
        max_bytes: 50GB

`files: ["data/train-*.parquet"]` (globs in the repository) says which files there are instead of `subset` and `split`.
A path of any other source may be `hf://datasets/owner/name[@revision]/glob` or a URL that fsspec opens (`s3://...`).
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.document import STREAM
from pipelines.quantities import Bytes
from pipelines.recipe import Section


class _Source(Section):
    """What every source has."""

    domain: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_]+(/[A-Za-z0-9_]+)?$")
    language: str | None = Field(default=None, pattern=r"^[a-z]{3}$")
    licence: str | None = None
    max_documents: int | None = Field(default=None, gt=0)
    max_bytes: Bytes | None = Field(default=None, gt=0)


class MachineSource(_Source):
    """Text found on the machine.

    Attributes:
        kind: what is looked for.
        domain: name of the domain; the source's name when not given.
        language: ISO 639-3 code for all its documents, when known.
        licence: kept in the documents' metadata.
        max_documents: at most so many raw records, drawn by hash.
        max_bytes: at most so many raw bytes, drawn by hash.
        seed: of the draw.
        shards: raw files to spread the records over.
    """

    kind: Literal["pydoc", "package_readme", "python_code", "licences"]
    seed: int = Field(default=0, ge=0)
    shards: int = Field(default=4, ge=1, le=1000)


class RecordSource(_Source):
    r"""How the records of a source's files become documents.

    Attributes:
        domain: name of the domain; the source's name when not given.
        language: ISO 639-3 code for all its documents, when known.
        max_documents: at most so many documents, shared out evenly over the parts that are read.
        max_bytes: at most so many bytes of text, shared out evenly over the parts that are read.
        licence: kept in the documents' metadata.
        members: shell pattern for names of members of an archive.
        per: what one document of a text file is; `section` begins at each line that matches `section_start`.
        section_start: regular expression.
        text: template of JSON, CSV, Parquet and Arrow records: `{question}\n{answer}`, `{code.0}`,
            `{content|paragraphs}`.
        join: what lies between the items of a list in the template.
        id_field: field with an id that is unique in the source; without it the id is the record's place.
        url_field: field with the URL.
        metadata: fields that are kept as metadata.
        columns: names of the columns of CSV and TSV files without a header line.
        json_path: keys that lead to the array of records in JSON files, with dots.
        encoding: of text, CSV and HTML files; detected when not given.
        max_record_bytes: larger records are rejected.
    """

    members: str = "*"
    per: Literal["file", "line", "paragraph", "section"] = "file"
    section_start: str | None = None
    text: str = "{text}"
    join: str = "\n"
    id_field: str | None = None
    url_field: str | None = None
    metadata: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    json_path: str = ""
    encoding: str | None = None
    max_record_bytes: Bytes = Field(default=20_000_000, gt=0)

    @field_validator("metadata")
    @classmethod
    def _no_columns(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted(set(names) & set(STREAM.names)):
            raise ValueError(f"{taken[0]!r} is a column of documents; it cannot be metadata too")
        return names

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        try:
            "".encode(name or "utf-8")
        except LookupError:
            raise ValueError(f"{name!r} is no encoding; expected such as utf-8, gb18030, windows-1252") from None
        return name

    @model_validator(mode="after")
    def _sections_start(self) -> "RecordSource":
        if (self.per == "section") != (self.section_start is not None):
            raise ValueError("per: section and section_start belong together")
        return self


class FileSource(RecordSource):
    """Text in files.

    Attributes:
        kind: format of the files; `archive` is tar or zip with members in `format`.
        paths: files, folders or globs, relative to the recipe's root; `hf://` and other URLs too.
        format: of the members of an archive.
    """

    kind: Literal["warc", "html", "jsonl", "json", "csv", "parquet", "arrow", "text", "archive"]
    paths: tuple[str, ...] = Field(min_length=1)
    format: Literal["text", "jsonl", "json", "csv", "html"] = "text"


class HubSource(RecordSource):
    """Files of a dataset repository on the Hugging Face Hub, fetched by `loam fetch`.

    Attributes:
        kind: says that the source is on the Hub.
        dataset: the repository, owner/name.
        subset: a config of the dataset's card; without a card that has it, the folder of that name.
        split: of that config; without a card, the files whose names have it.
        revision: branch, tag or commit; the commit that it names when fetched is what is read.
        files: globs in the repository, instead of `subset` and `split`.
        format: of the files; told by their names when not given.
    """

    kind: Literal["huggingface"]
    dataset: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    subset: str | None = None
    split: str = "train"
    revision: str = Field(default="main", min_length=1, pattern=r"^[\w./-]+$")
    files: tuple[str, ...] = ()
    format: Literal["warc", "html", "jsonl", "json", "csv", "parquet", "arrow", "text"] | None = None


SourceSettings = Annotated[MachineSource | FileSource | HubSource, Field(discriminator="kind")]
"""One source of a recipe, told apart by `kind`."""
