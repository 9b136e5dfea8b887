"""Coverage-guided fuzzing of extraction: `python tests/fuzz/fuzz_extract.py -max_total_time=180` (needs atheris)."""

import sys

import atheris

with atheris.instrument_imports(include=["pipelines"]):
    from pipelines.extract_page import extract_page

PIECES = [
    "<div>", "</div>", "<p>", "<table><tr><td>", "</table>", "<pre>", "<math>", "<li>", "<script>", "</script>", "<!--",
    "-->", "&#0;", "<svg>", "<p class='comment'>", "<h1>", "<figure>", "<body>", "<article>", "<ul>", "<a href=x>",
    "<br>",
    "<script type=application/ld+json>", '{"@type":"Recipe","recipeIngredient":["a"],"recipeInstructions":"b"}',
    "<annotation encoding=tex>", "A sentence of some length, with a comma. ",
]  # fmt: skip


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    parts = []
    while provider.remaining_bytes() and len(parts) < 400:
        number = provider.ConsumeIntInRange(0, len(PIECES))
        parts.append(PIECES[number] if number < len(PIECES) else provider.ConsumeUnicode(20))
    found = extract_page("".join(parts))
    assert "\0" not in found.text


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
