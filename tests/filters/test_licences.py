import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.licence_names import passes, spdx_of
from filters.licences import Licences, LicenceSettings, filter_licences
from pipelines.document import STREAM, conform


@pytest.mark.parametrize(
    ("stated", "identifier"),
    [
        ("Apache License 2.0", "Apache-2.0"), ("apache-2.0", "Apache-2.0"), ("MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"), ("Apache License 1.1", "Apache-1.1"),
        ("Apache-1.0", "Apache-1.0"),
        ("MIT (repo)", "MIT"), ("The MIT License (MIT)", "MIT"), ("License :: OSI Approved :: MIT License", "MIT"),
        ("CC-BY-SA-3.0 (Wikipedia)", "CC-BY-SA-3.0"), ("cc-by-4.0", "CC-BY-4.0"), ("CC BY-NC-SA 4", "CC-BY-NC-SA-4.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "CC-BY-SA-4.0"),
        ("https://creativecommons.org/licenses/by-nd/2.5/fr/", "CC-BY-ND-2.5"), ("cc0-1.0", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"), ("GPLv3", "GPL-3.0"),
        ("GPLv2+", "GPL-2.0-or-later"), ("GNU General Public License v3 or later (GPLv3+)", "GPL-3.0-or-later"),
        ("GFDL-1.2", "GFDL-1.2"), ("LGPLv3", "LGPL-3.0"), ("LGPL-2.1", "LGPL-2.1"), ("AGPLv3", "AGPL-3.0"),
        ("GNU Lesser General Public License v3", "LGPL-3.0"), ("EUPL 1.2", "EUPL-1.2"), ("MPL 2.0", "MPL-2.0"),
        ("BSD 3-Clause", "BSD-3-Clause"), ("ODC-BY (C4)", "ODC-By-1.0"), ("public domain", "public-domain"),
        ("public domain (published <1928)", "public-domain"),
    ],
)  # fmt: skip
def test_names_of_licences(stated, identifier):
    assert spdx_of(stated) == identifier


@pytest.mark.parametrize(
    "stated",
    ["© MIT Press. All rights reserved", "PolyForm; not MIT", "Public domain dedication not given", "BSD",
     "BSD License", "Apache", "Apache License", "all rights reserved", "admittance", "MIT (non-commercial only)",
     "MIT, see LICENSE", "ODC-By-1.0 (texts CC-BY-SA)", "CC-BY-5.0", "photo: https://creativecommons.org/licenses/by/2.0/",
     "GPL-9.0", "", " ", "MIT OR", "MIT)", "(" * 5000, "MIT AND " * 5000, "MIT AND whatever", "MIT WITH nothing"],
)  # fmt: skip
def test_a_licence_is_never_guessed(stated):
    assert spdx_of(stated) is None


@pytest.mark.parametrize(
    ("stated", "label"),
    [("CC BY", "CC-BY"), ("cc-by-nc-sa", "CC-BY-NC-SA"), ("GPL", "GPL"), ("LGPL", "LGPL"), ("AGPL", "AGPL"),
     ("EUPL", "EUPL"), ("Mozilla Public License", "MPL")],
)  # fmt: skip
def test_families_without_a_version_keep_a_label(stated, label):
    assert spdx_of(stated) == label
    assert not passes(label, [f"{label}-4.0", f"{label}-3.0", "permissive"], [])
    assert passes(label, [label], [])
    assert not passes(label, [], [f"{label}-*"])
    assert not passes(label, [], [f"{label}-3.0"])


def test_expressions_are_written_one_way():
    assert spdx_of("(mit or apache-2.0)") == "MIT OR Apache-2.0"
    assert spdx_of("MIT and (ISC or 0BSD)") == "MIT AND (ISC OR 0BSD)"
    assert spdx_of("(MIT AND ISC) OR public-domain") == "MIT AND ISC OR public-domain"


@pytest.mark.parametrize(
    ("expression", "stays"),
    [
        ("MIT", True), ("MIT AND Apache-2.0", True), ("MIT AND GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True),
        ("BSD-3-Clause AND LGPL-2.1", False), ("CC-BY-4.0 AND CC-BY-NC-4.0", False), ("(MIT OR Apache-2.0)", True),
        ("Apache-2.0 WITH LLVM-exception", True), ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("GPL-3.0-only AND ISC OR MIT", True), ("(GPL-3.0-only OR MIT) AND LGPL-3.0-only", False),
        ("CC-BY-NC-4.0", False), ("BSD-3-Clause-No-Nuclear-License", False), ("Apache-1.1", False), ("CC-BY-3.0", True),
    ],
)  # fmt: skip
def test_permissive(expression, stays):
    assert passes(spdx_of(expression) or "", ["permissive"], []) is stays


@pytest.mark.parametrize(
    ("expression", "stays"),
    [
        ("MIT AND GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True), ("GPL-2.0-only OR GPL-3.0-only", False),
        ("GPL-2.0-only WITH Linux-syscall-note", False), ("LGPL-2.1-only", True), ("(GPL-3.0+ OR MIT) AND ISC", True),
    ],
)  # fmt: skip
def test_deny(expression, stays):
    assert passes(expression, [], ["gpl-*"]) is stays


def test_deny_goes_before_allow_and_older_identifiers_mean_the_newer():
    assert not passes("MIT", ["permissive"], ["MIT"])
    assert not passes("MIT OR GPL-3.0-only", ["permissive"], ["MIT"])
    assert passes("MIT OR Apache-2.0", ["permissive"], ["MIT"])
    assert not passes("GPL-3.0", [], ["GPL-3.0-only"])
    assert not passes("GPL-3.0-or-later", [], ["GPL-3.0"])
    assert not passes("GPL-2.0+", [], ["GPL-2.0-or-later"])


def judged(settings, *rows):
    table = pa.table({"id": [f"d{n}" for n in range(len(rows))], "text": [row[0] for row in rows],
                      "metadata": pa.array([row[1] for row in rows], pa.map_(pa.string(), pa.string()))})  # fmt: skip
    return Licences(settings).apply(conform(table, STREAM))


def told(text, stated=None, **settings):
    result = judged(LicenceSettings(**settings), (text, [("licence", stated)] if stated else []))
    return result["licence"][0].as_py(), result["licence.from"][0].as_py()


REACT = "React is licensed under the MIT license, whereas our text is all rights reserved."
PHOTO = "Photo: J. Doe, https://creativecommons.org/licenses/by/2.0/deed.en, cropped."
TAG = "# SPDX-License-Identifier: MIT"


@pytest.mark.parametrize("text", [REACT, PHOTO, TAG, f"{TAG} is what you should write"])
def test_a_document_never_overrides_its_source(text):
    for prose in (False, True):
        assert told(text, "CC-BY-NC-4.0", detect_prose=prose) == ("CC-BY-NC-4.0", "source")
        assert told(text, "all rights reserved", detect_prose=prose) == (None, None)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (TAG, "MIT"), (f"#!/bin/sh\n  {TAG}\r\necho", "MIT"),
        ("/* SPDX-License-Identifier: MIT OR ISC */\nint", "MIT OR ISC"),
        ("/*\n * SPDX-License-Identifier: gpl-2.0-only WITH Linux-syscall-note\n */",
         "GPL-2.0-only WITH Linux-syscall-note"),
        ("<!-- SPDX-License-Identifier: CC0-1.0 -->", "CC0-1.0"), ("x" * 9000 + f"\n{TAG}\n", "MIT"),
        (f"{TAG}\n// SPDX-License-Identifier: GPL-3.0-only OR ISC", "MIT AND (GPL-3.0-only OR ISC)"),
        (f"{TAG}\n# SPDX-License-Identifier: Ours", None), (f"{TAG} is what you should write", None),
        ("SPDX-License-Identifier: MIT is what you should write", None), ("SPDX-License-Identifier: MIT", None),
        ('"SPDX-License-Identifier: MIT"', None), ("Write SPDX-License-Identifier: MIT", None),
        (f"{'x' * 5000}{TAG}{'x' * 5000}", None), (f"{'x' * 7000}{TAG}\n{'x' * 2990}", None),
        (f"{'#' * 2900}\n{TAG} AND GPL-3.0-only AND {'x' * 9000}", None), (REACT, None), (PHOTO, None),
        (TAG.replace("MIT", " " * 2900 + "x"), None),
    ],
)  # fmt: skip
def test_a_tag_is_a_comment_line_of_its_own(text, licence):
    assert told(text) == (licence, licence and "document")
    assert told(text, detect=False) == (None, None)


def test_prose_counts_only_where_asked_for():
    apache = "/* Licensed under the Apache License, Version 2.0 (the License) */"
    sharealike = "A page. This work is under https://creativecommons.org/licenses/by-sa/4.0/deed.en"
    assert told(apache) == told(sharealike) == (None, None)
    assert told(apache, detect_prose=True) == ("Apache-2.0", "document")
    assert told(sharealike, detect_prose=True) == ("CC-BY-SA-4.0", "document")
    assert told(f"{apache} {sharealike}", detect_prose=True) == (None, None), "two licences name none"
    assert told(f"{TAG}\n{apache}", detect_prose=True) == ("MIT", "document")
    bsd = "Redistribution and use in source and binary forms. Redistributions of source code must retain this."
    assert told(bsd, detect_prose=True)[0] == "BSD-2-Clause"
    assert told(f"{bsd} Neither the name", detect_prose=True)[0] == "BSD-3-Clause"


ROWS = [
    ("# SPDX-License-Identifier: GPL-2.0-only\nint main", [("licence", "MIT")]),
    ("# SPDX-License-Identifier: GPL-2.0-only\nint main", [("page", "1"), ("licence", " ")]),
    ("plain", [("licence", ""), ("license", "CC-BY-SA-3.0 (Wikipedia)")]),
    ("plain", [("licence", "BSD")]),
    ("plain", None),
]
LICENCES = ["MIT", "GPL-2.0-only", "CC-BY-SA-3.0", None, None]


def test_what_a_document_says_goes_to_its_metadata():
    result = judged(LicenceSettings(), *ROWS)
    assert result["licence"].to_pylist() == LICENCES
    assert result["licence.from"].to_pylist() == ["source", "document", "source", None, None]
    assert dict(result["metadata"][1].as_py()) == {"page": "1", "licence": "GPL-2.0-only"}
    assert [dict(row or []) for row in result["metadata"].to_pylist()][2:] == [dict(row[1] or []) for row in ROWS[2:]]
    assert result["reason"].null_count == len(ROWS)


def test_unknown_goes_where_something_is_allowed():
    unknown = ["licence.unknown"] * 2
    allow = ["permissive", "CC-BY-SA-*"]
    gpl = "licence.GPL-2.0-only"
    assert judged(LicenceSettings(allow=allow), *ROWS)["reason"].to_pylist() == [None, gpl, None, *unknown]
    kept = judged(LicenceSettings(allow=allow, unknown="keep"), *ROWS)
    assert kept["reason"].to_pylist() == [None, gpl, None, None, None]
    denied = judged(LicenceSettings(deny=["gpl-*"]), *ROWS)
    assert denied["reason"].to_pylist() == [None, gpl, None, None, None]
    assert judged(LicenceSettings(unknown="drop"), *ROWS)["reason"].to_pylist() == [None, None, None, *unknown]
    both = judged(LicenceSettings(deny=["gpl-*"], unknown="drop"), *ROWS)
    assert both["reason"].to_pylist() == [None, gpl, None, *unknown]


def test_the_verb_counts_licences(tmp_path):
    rows = [{"id": str(n), "text": text, "metadata": metadata or []} for n, (text, metadata) in enumerate(ROWS)]
    kind = pa.schema([("id", pa.string()), ("text", pa.string()), ("metadata", pa.map_(pa.string(), pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=kind), tmp_path / "in.parquet")
    outcome = filter_licences([tmp_path / "in.parquet"], tmp_path / "out", LicenceSettings(allow=["permissive"]))
    assert outcome.counts.dropped == {"licence.CC-BY-SA-3.0": 1, "licence.GPL-2.0-only": 1, "licence.unknown": 2}
    assert outcome.metrics["licences"] == {"unknown": 2, "CC-BY-SA-3.0": 1, "GPL-2.0-only": 1, "MIT": 1}
