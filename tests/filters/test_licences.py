import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.licences import Licences, LicenceSettings, filter_licences, spdx_of
from pipelines.document import STREAM, conform


@pytest.mark.parametrize(
    ("stated", "identifier"),
    [
        ("Apache License 2.0", "Apache-2.0"), ("apache-2.0", "Apache-2.0"), ("MIT License", "MIT"),
        ("MIT (repo)", "MIT"),
        ("CC-BY-SA-3.0 (Wikipedia)", "CC-BY-SA-3.0"), ("cc-by-4.0", "CC-BY-4.0"), ("CC BY-NC-SA 4", "CC-BY-NC-SA-4.0"),
        ("https://creativecommons.org/licenses/by-nd/2.5/fr/", "CC-BY-ND-2.5"), ("cc0-1.0", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"), ("GPLv3", "GPL-3.0"),
        ("GFDL-1.2", "GFDL-1.2"),
        ("GNU Lesser General Public License v3", "LGPL-3.0"), ("BSD 3-Clause", "BSD-3-Clause"),
        ("ODC-BY (C4)", "ODC-By-1.0"),
        ("public domain (published <1928)", "public-domain"), ("all rights reserved", None), ("admittance", None),
    ],
)  # fmt: skip
def test_names_of_licences(stated, identifier):
    assert spdx_of(stated) == identifier


def judged(settings, *rows):
    table = pa.table({"id": [f"d{n}" for n in range(len(rows))], "text": [row[0] for row in rows],
                      "metadata": pa.array([row[1] for row in rows], pa.map_(pa.string(), pa.string()))})  # fmt: skip
    return Licences(settings).apply(conform(table, STREAM))


ROWS = [
    ("# SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note\nint main", [("licence", "MIT")]),
    ("/* Licensed under the Apache License, Version 2.0 (the License) */", []),
    ("A page. This work is under https://creativecommons.org/licenses/by-sa/4.0/deed.en", [("page", "1")]),
    ("plain", [("license", "CC-BY-SA-3.0 (Wikipedia)")]),
    ("plain", [("licence", "")]),
    ("plain", None),
]


def test_a_document_speaks_before_its_source():
    result = judged(LicenceSettings(), *ROWS)
    assert result["licence"].to_pylist() == [
        "GPL-2.0-only WITH Linux-syscall-note", "Apache-2.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0", None, None]  # fmt: skip
    assert result["licence.from"].to_pylist() == ["document", "document", "document", "source", None, None]
    assert dict(result["metadata"][2].as_py()) == {"page": "1", "licence": "CC-BY-SA-4.0"}
    assert dict(result["metadata"][3].as_py()) == {"license": "CC-BY-SA-3.0 (Wikipedia)"}
    assert result["reason"].null_count == len(ROWS)


def test_allow_deny_and_unknown():
    allowed = judged(LicenceSettings(allow=["permissive", "CC-BY-SA-*"], unknown="drop"), *ROWS)
    assert allowed["reason"].to_pylist() == [
        "licence.GPL-2.0-only WITH Linux-syscall-note", None, None, None, *["licence.unknown"] * 2]  # fmt: skip
    denied = judged(LicenceSettings(deny=["gpl-*"]), *ROWS)
    assert denied["reason"].null_count == len(ROWS) - 1
    assert judged(LicenceSettings(detect=False), *ROWS)["licence"].to_pylist()[:3] == ["MIT", None, None]
    assert judged(LicenceSettings(allow=["permissive"]), ("x", [("licence", "CC-BY-NC-4.0")]))["reason"].null_count == 0


def test_the_verb_counts_licences(tmp_path):
    rows = [{"id": str(n), "text": text, "metadata": metadata or []} for n, (text, metadata) in enumerate(ROWS)]
    kind = pa.schema([("id", pa.string()), ("text", pa.string()), ("metadata", pa.map_(pa.string(), pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=kind), tmp_path / "in.parquet")
    outcome = filter_licences([tmp_path / "in.parquet"], tmp_path / "out", LicenceSettings(deny=["Apache-*"]))
    assert outcome.counts.dropped == {"licence.Apache-2.0": 1}
    assert outcome.metrics["licences"] == {"unknown": 2, "Apache-2.0": 1, "CC-BY-SA-3.0": 1, "CC-BY-SA-4.0": 1,
                                           "GPL-2.0-only WITH Linux-syscall-note": 1}  # fmt: skip
