import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.charset import decode, encoding_of, standard_name
from pipelines.warc import read_pages

TRADITIONAL = "土壤是由礦物質、有機質、水分和空氣組成的混合物，農民在雨季之前翻耕田地，河流每年春天把泥沙帶到平原。"
SIMPLIFIED = "土壤是由矿物质、有机质、水分和空气组成的混合物，农民在雨季之前翻耕田地，河流每年春天把泥沙带到平原。"
JAPANESE = "土壌は鉱物や有機物、水、空気からなる混合物であり、農民は雨季の前に畑を耕す。カタカナとひらがなもあります。"
KOREAN = "토양은 광물질과 유기물, 물과 공기로 이루어진 혼합물이며 농부들은 우기가 오기 전에 밭을 간다."
RUSSIAN = "Почва состоит из минералов, органических веществ, воды и воздуха; крестьяне пашут поле перед дождями."
GREEK = "Το έδαφος αποτελείται από ορυκτά, οργανική ύλη, νερό και αέρα· οι αγρότες οργώνουν το χωράφι."
FRENCH = (
    "Le sol est un mélange de sable, de limon et d'argile; l'été dernier, l'agriculteur a labouré près de la forêt."
)
POLISH = "Gleba składa się z minerałów, materii organicznej, wody i powietrza; rolnicy orzą pole przed deszczami."
TURKISH = (
    "Toprak minerallerden, organik maddelerden, su ve havadan oluşur; çiftçiler yağmurdan önce tarlayı sürer, ışık."
)
HEBREW = "הקרקע מורכבת ממינרלים, חומר אורגני, מים ואוויר; האיכרים חורשים את השדה לפני הגשמים הראשונים."
ARABIC = "تتكون التربة من المعادن والمواد العضوية والماء والهواء ويحرث المزارعون الحقل قبل الأمطار."
THAI = "ดินประกอบด้วยแร่ธาตุ อินทรียวัตถุ น้ำ และอากาศ ชาวนาไถนาก่อนฝนแรกของฤดูกาล"

DECLARED = [
    ("big5", TRADITIONAL), ("big5-hkscs", TRADITIONAL + "喺"), ("gb2312", SIMPLIFIED), ("gbk", SIMPLIFIED + "鎔"),
    ("gb18030", SIMPLIFIED + "𠀀"), ("hz-gb-2312", SIMPLIFIED), ("shift_jis", JAPANESE), ("euc-jp", JAPANESE),
    ("iso-2022-jp", JAPANESE), ("euc-kr", KOREAN), ("ks_c_5601-1987", KOREAN + "뷁"), ("windows-1250", POLISH),
    ("windows-1251", RUSSIAN), ("koi8-r", RUSSIAN), ("iso-8859-5", RUSSIAN), ("windows-1252", FRENCH),
    ("iso-8859-1", FRENCH), ("windows-1253", GREEK), ("windows-1254", TURKISH), ("windows-1255", HEBREW),
    ("windows-1256", ARABIC), ("windows-874", THAI), ("utf-16", RUSSIAN), ("utf-32", GREEK),
]  # fmt: skip
PYTHON = {"hz-gb-2312": "hz", "ks_c_5601-1987": "cp949", "windows-874": "cp874"}


@pytest.mark.parametrize(("label", "text"), DECLARED)
@pytest.mark.parametrize("where", ["header", "meta"])
def test_what_is_declared_is_read(label, text, where):
    page = f'<html><head><meta charset="{label}"></head><p>{text * 3}</p></html>'
    payload = page.encode(PYTHON.get(label, label))
    if where == "meta" and label.startswith("utf-"):
        assert decode(payload, None)[0] == page  # their own byte order mark, since no ASCII can be found in them
    assert decode(payload, label if where == "header" else None)[0] == page


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("big5", TRADITIONAL), ("gb18030", SIMPLIFIED), ("shift_jis", JAPANESE), ("euc-jp", JAPANESE),
        ("iso-2022-jp", JAPANESE), ("euc-kr", KOREAN), ("windows-1251", RUSSIAN), ("koi8-r", RUSSIAN),
        ("windows-1252", FRENCH), ("windows-1253", GREEK), ("windows-1255", HEBREW), ("windows-1256", ARABIC),
        ("utf-16-le", FRENCH), ("utf-16-be", FRENCH), ("utf-32-le", FRENCH),
    ],
)  # fmt: skip
def test_what_nobody_declared_is_told_by_statistics(encoding, text):
    assert decode((text * 4).encode(encoding))[0] == text * 4


@pytest.mark.parametrize(
    ("payload", "declared", "expected"),
    [
        (SIMPLIFIED.encode(), "gb2312", "utf-8"),  # a stale declaration
        (b'<meta charset="gbk">' + SIMPLIFIED.encode("gbk"), "iso-8859-1", "gb18030"),  # a server's default
        (SIMPLIFIED.encode("gbk"), "iso-8859-1", "gb18030"),
        (FRENCH.encode("latin-1"), "iso-8859-1", "cp1252"),
        (b'<meta charset="big5">' + FRENCH.encode("latin-1"), None, "cp1252"),
        (b"\xef\xbb\xbfbom", "latin-1", "utf-8"),
        (b"\x84\x31\x95\x33" + SIMPLIFIED.encode("gb18030"), None, "gb18030"),
        (b"ascii ~{ is no Chinese", None, "utf-8"),
        (b"", None, "utf-8"),
        (b"caf\xe9", "base64", "cp1252"),
        (b"caf\xe9", "no\x00such", "cp1252"),
        (b"caf\xe9", "unicode_escape", "cp1252"),
    ],
)
def test_evidence_is_weighed(payload, declared, expected):
    assert decode(payload, declared)[1] == expected


def test_bytes_that_are_no_text_are_refused():
    assert decode(bytes(range(128, 256)) * 40, "utf-16") is None or decode(bytes(range(128, 256)) * 40, "utf-8") is None


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["utf-8", "big5", "hz"])))
def test_any_bytes_are_decoded_or_refused(payload, declared):
    found = decode(payload, declared)
    assert found is None or (isinstance(found[0], str) and standard_name(found[1]) is not None)
    assert encoding_of(payload, declared) is None or isinstance(encoding_of(payload, declared), str)


def test_a_sample_may_end_within_a_character():
    data = SIMPLIFIED.encode()
    assert {encoding_of(data[:end]) for end in range(60, 70)} == {"utf-8"}
    data = (SIMPLIFIED * 9).encode("gb18030")
    assert {encoding_of(data[:end]) for end in range(400, 410)} == {"gb18030"}


def test_every_chinese_page_in_a_national_encoding_is_read_right(shared):
    """Oracle: a strict decoder. One page is damaged (12 bytes); every other is valid UTF-8 or valid GB 18030."""
    folder, found = shared / "web/warc", Counter()
    manifest = map(json.loads, (folder / "realpages.manifest.jsonl").read_text().splitlines())
    chinese = {row["sha1"] for row in manifest if row["set"] in ("zh_netease", "zh_cwced")}
    for file in sorted(folder.glob("realpages-*.warc.gz")):
        for page in read_pages(file, 10**8):
            if hashlib.sha1(page.payload).hexdigest() not in chinese or _is_utf8(page.payload):
                continue
            text, encoding = decode(page.payload, page.charset)
            assert encoding == "gb18030"
            assert text == page.payload.decode("gb18030", "replace")
            found["damaged" if "\ufffd" in text else "whole"] += 1
    assert found == {"whole": 83, "damaged": 1}


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
