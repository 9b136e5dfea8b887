"""Names of licences: what people write to SPDX expressions, and expressions against lists of identifiers.

The one choice that matters: a licence is never guessed. A name counts only as a whole (`MIT License`, not `MIT` in a
sentence) and with its version where versions differ. Sources: the SPDX list as `packaging` carries it, SPDX 2.3 annex D
(expressions), Creative Commons' addresses.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

LABELS = ("public-domain", "GPL", "LGPL", "AGPL", "GFDL", "MPL", "EUPL", "CC-BY", "CC-BY-SA", "CC-BY-NC", "CC-BY-ND",
          "CC-BY-NC-SA", "CC-BY-NC-ND")  # fmt: skip
"""Names of ours, beside SPDX's: works in the public domain, and families of licences stated without a version."""
PERMISSIVE = (
    "MIT", "MIT-0", "X11", "Apache-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-3-Clause", "0BSD",
    "ISC", "Zlib", "BSL-1.0", "Unlicense", "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0",
    "Python-2.0", "PSF-2.0", "PostgreSQL", "PDDL-1.0", "ODC-By-1.0", "NCSA", "W3C", "public-domain",
)  # fmt: skip
"""What `permissive` stands for in a recipe."""
LONGEST = 300
"""Characters of a licence's name or expression; what is longer is prose."""

Tree = str | tuple[str, list["Tree"]]
"""An expression: an identifier with its exception, or `AND` / `OR` and what it joins."""

_LINK = (r"(?:https?://)?(?:www\.)?creativecommons\.org/(?P<kind>licenses|publicdomain)/(?P<code>[a-z-]+)/"
         r"(?P<version>\d\.\d)(?:/[a-z]{2,3})?(?:/(?:deed|legalcode)(?:\.[a-z_-]+)?)?/?")  # fmt: skip
_V = r"(?: ?,? ?-?v(?:ersion)? ?\.? ?| ?,? | ?-?)"
_MORE = r"(?P<more> ?\+| ?\(?or[ -](?:any[ -])?later(?: version)?\)?|[ -]only)?"
_FAMILIES = (
    (rf"(?:gnu )?(?:agpl|affero general public license|affero gpl){_V}(?P<v>1|3)(?:\.0)?{_MORE}", "AGPL-{}"),
    (rf"(?:gnu )?(?:lgpl|(?:lesser|library) general public license|lesser gpl){_V}(?P<v>2\.1|2|3)(?:\.0)?{_MORE}",
     "LGPL-{}"),
    (rf"(?:gnu )?(?:gpl|general public license){_V}(?P<v>1|2|3)(?:\.0)?{_MORE}", "GPL-{}"),
    (rf"(?:gnu )?(?:gfdl|fdl|free documentation license){_V}(?P<v>1\.[123]){_MORE}", "GFDL-{}"),
    (rf"(?:mpl|mozilla public license){_V}(?P<v>1\.0|1\.1|2)(?:\.0)?", "MPL-{}"),
    (rf"(?:eupl|european union public license){_V}(?P<v>1\.[012])", "EUPL-{}"),
    (rf"(?:apache|asl)(?: software)?(?: license)?{_V}(?P<v>1\.0|1\.1|2)(?:\.0)?(?: license)?", "Apache-{}"),
)  # fmt: skip
_NAMES = (
    (r"(?:mit|expat|mit/expat)(?: license)?", "MIT"), (r"isc(?: license)?", "ISC"), (r"zlib(?: license)?", "Zlib"),
    (r"0bsd|(?:bsd )?zero[ -]clause(?: bsd)?(?: license)?", "0BSD"),
    (r"bsd[ -]2(?:[ -]clause)?(?: license)?|(?:2|two)[ -]clause bsd(?: license)?|simplified bsd(?: license)?",
     "BSD-2-Clause"),
    (r"bsd[ -]3(?:[ -]clause)?(?: license)?|(?:(?:3|three)[ -]clause|new|modified|revised) bsd(?: license)?",
     "BSD-3-Clause"),
    (r"bsd[ -]4(?:[ -]clause)?(?: license)?|(?:4|four)[ -]clause bsd(?: license)?", "BSD-4-Clause"),
    (r"boost(?: software license)?[ -]1\.0", "BSL-1.0"), (r"unlicense", "Unlicense"),
    (r"(?:psf|python software foundation)(?: license)? (?:version )?2(?:\.0)?", "PSF-2.0"),
    (r"(?:cc[ -]?0|creative commons zero)(?:[ -]?v?1(?:\.0)?)?(?: universal)?", "CC0-1.0"),
    (r"(?:odc[ -]by|open data commons attribution license)(?:[ -]v?1\.0)?", "ODC-By-1.0"),
    (r"(?:odbl|open database license|open data commons open database license)(?:[ -]v?1\.0)?", "ODbL-1.0"),
    (r"pddl(?:[ -]v?1\.0)?", "PDDL-1.0"), (r"public[ -]domain", "public-domain"),
    (r"gnu general public license|(?:gnu )?gpl(?: license)?", "GPL"),
    (r"gnu (?:lesser|library) general public license|(?:gnu )?lgpl(?: license)?", "LGPL"),
    (r"gnu affero general public license|(?:gnu )?agpl(?: license)?", "AGPL"),
    (r"gnu free documentation license|(?:gnu )?gfdl(?: license)?", "GFDL"),
    (r"mozilla public license", "MPL"), (r"european union public license", "EUPL"),
)  # fmt: skip
_CC = (r"(?:cc|creative commons)[ -](?P<code>by(?:[ -](?:nc|sa|nd))*|attribution(?:[ -](?:noncommercial|non-commercial|"
       r"sharealike|share alike|noderivatives|noderivs))*)(?:[ -]v?(?P<version>\d(?:\.\d)?))?"
       r"(?: (?:international|unported|generic))?(?: public)?(?: license)?")  # fmt: skip
_PLACES = r"repo|repository|wikipedia|c4|published <? ?\d{4}"
"""Notes in brackets that say where or when, and nothing of a licence."""


def spdx_of(stated: str) -> str | None:
    """The SPDX expression (or one of `LABELS`) of a licence as people write it; None when it is not known.

    The whole text must be a name, an expression or an address of Creative Commons. A note in brackets may only repeat
    the licence or say where it was found; ports of Creative Commons' licences go by their international name.

    Args:
        stated: `Apache License 2.0`, `cc-by-sa-4.0`, `MIT OR Apache-2.0`, ...
    """
    text = " ".join(stated.split())
    if not text or len(text) > LONGEST:
        return None
    if (known := _named(text)) is not None:
        return known
    noted = re.fullmatch(r"(?P<name>[^()]+) \((?P<note>[^()]+)\)", text)
    if noted is None or (known := _named(noted["name"])) is None:
        return None
    same = re.fullmatch(_PLACES, noted["note"].lower()) or _named(noted["note"]) == known
    return known if same else None


def _named(text: str) -> str | None:
    if (tree := parse(text)) is not None:
        return written(tree)
    low = re.sub(r"^license :: (?:osi approved :: )?", "", text.lower().replace("licence", "license"))
    low = low.removeprefix("the ").removesuffix(".").strip()
    if link := re.fullmatch(_LINK, low):
        return _creative_commons(link["code"], link["version"], link["kind"] == "publicdomain")
    if cc := re.fullmatch(_CC, low):
        return _creative_commons(cc["code"], cc["version"], False)
    for pattern, name in _FAMILIES:
        if found := re.fullmatch(pattern, low):
            return _versioned(name, found)
    return next((name for pattern, name in _NAMES if re.fullmatch(pattern, low)), None)


def _versioned(name: str, found: re.Match[str]) -> str | None:
    version, more = found["v"], found.groupdict().get("more")
    plain = name.format(version if "." in version else f"{version}.0")
    suffix = "" if not more else "-only" if more.endswith("only") else "-or-later"
    return _identifier(plain + suffix)


def _creative_commons(code: str, version: str | None, public: bool) -> str | None:
    if public:
        return {"zero": "CC0-1.0", "mark": "public-domain"}.get(code) if version == "1.0" else None
    words = {"BY"}
    for short, pattern in (("NC", r"nc|non-?commercial"), ("ND", r"nd|noderiv"), ("SA", r"sa|share")):
        words |= {short} if re.search(rf"[ -](?:{pattern})", code) else set()
    if not re.match(r"by|attribution", code):
        return None
    name = "-".join(["CC", *(word for word in ("BY", "NC", "ND", "SA") if word in words)])
    if version is None:
        return _identifier(name)
    return _identifier(f"{name}-{version if '.' in version else f'{version}.0'}")


def _identifier(text: str) -> str | None:
    """One identifier of SPDX, with its exception, or a label, in the list's own case; None when it is neither."""
    for label in LABELS:
        if text.lower() == label.lower():
            return label
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return None


def parse(text: str) -> Tree | None:
    """An SPDX expression as a tree; None when it is not a valid one.

    Args:
        text: identifiers of the SPDX list or `LABELS`, joined by AND, OR, WITH and parentheses.
    """
    if len(text) > LONGEST or text.count("(") > 20:
        return None
    tokens = re.findall(r"[()]|[^\s()]+", text)
    tree = _joined(tokens, "OR", lambda rest: _joined(rest, "AND", _leaf))
    return None if tokens else tree


def _joined(tokens: list[str], word: str, operand: Callable[[list[str]], Tree | None]) -> Tree | None:
    found = [operand(tokens)]
    while tokens and tokens[0].upper() == word:
        tokens.pop(0)
        found.append(operand(tokens))
    trees = [tree for tree in found if tree is not None]
    if len(trees) < len(found):
        return None
    return trees[0] if len(trees) == 1 else (word, trees)


def _leaf(tokens: list[str]) -> Tree | None:
    if not tokens:
        return None
    first = tokens.pop(0)
    if first == "(":
        tree = _joined(tokens, "OR", lambda rest: _joined(rest, "AND", _leaf))
        return tree if tokens and tokens.pop(0) == ")" else None
    if len(tokens) > 1 and tokens[0].upper() == "WITH":
        tokens.pop(0)
        return _identifier(f"{first} WITH {tokens.pop(0)}")
    return _identifier(first) if first.upper() not in ("AND", "OR", "WITH", ")") else None


def written(tree: Tree) -> str:
    """An expression in its plainest form: parentheses only where they change the meaning."""
    if isinstance(tree, str):
        return tree
    word, parts = tree
    return f" {word} ".join(
        f"({written(part)})" if word == "AND" and not isinstance(part, str) and part[0] == "OR" else written(part)
        for part in parts
    )


def passes(expression: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """True where a licence may be used: every part joined by AND, any one joined by OR.

    Args:
        expression: of `spdx_of`.
        allow: identifiers, patterns of one identifier, `permissive`; empty: all.
        deny: the same; goes before `allow`.
    """

    def may(tree: Tree) -> bool:
        if isinstance(tree, str):
            return not _listed(tree, deny, True) and (not allow or _listed(tree, allow, False))
        return (all if tree[0] == "AND" else any)(may(part) for part in tree[1])

    return may(parse(expression) or expression)


def _listed(leaf: str, patterns: Sequence[str], denies: bool) -> bool:
    """Whether an identifier, its exception aside, is one of a list; to deny a version denies what states none."""
    name = leaf.split(" WITH ")[0]
    forms = {name, name.removesuffix("+"), name.removesuffix("-only").removesuffix("-or-later")}
    if old := re.fullmatch(r"((?:[AL]?GPL|GFDL)-\d\.\d)(\+?)", name):  # SPDX's older identifiers
        forms.add(f"{old[1]}-or-later" if old[2] else f"{old[1]}-only")
    every = [p for pattern in patterns for p in (PERMISSIVE if pattern == "permissive" else (pattern,))]
    if denies and name in LABELS and any(re.match(rf"(?i){name}-[\d*?\[]", pattern) for pattern in every):
        return True
    return any(fnmatch.fnmatchcase(form.lower(), pattern.lower()) for form in forms for pattern in every)
