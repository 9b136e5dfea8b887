"""What a page declares about itself: schema.org data in JSON-LD, as a second witness of its main content.

Publishers state the body of articles, and the ingredients and steps of recipes, in structured data. Where the text
found on the page disagrees with an article's declared body, the body is taken; of a recipe what the text lacks is
added, or the declared recipe is the text where there is little else. Nothing is taken that the page does not show:
most of the declared words must stand in it.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WORD = re.compile(r"\w+")
TAGS = re.compile(r"<[^<>]{0,2000}>")
BREAK = re.compile(r"<(?:br|/p|/li|/div|/h[1-6])\b[^<>]{0,200}>", re.IGNORECASE)
CONTROLS = re.compile(r"[\x00-\x1f]+")
MAX_NODES = 20_000
MIN_BODY = 300  # characters; a shorter declared body is a summary
AGREE = 0.4  # share of the declared words above which the text of the page stands
SHOWN = 0.85  # share of the declared words that the page must show
MAIN = 0.5  # share of the text that a recipe must be to be all of it


@dataclass(slots=True)
class Declared:
    """What structured data says.

    Attributes:
        title: headline or name, or "".
        body: of the article, or "".
        recipe: title, ingredients and steps as lines, or empty.
    """

    title: str = ""
    body: str = ""
    recipe: tuple[str, ...] = ()


def read_declared(scripts: list[str]) -> Declared:
    """Read the JSON-LD of a page; what is no JSON is passed over."""
    declared = Declared()
    for script in scripts:
        for node in _nodes(script):
            kinds = node.get("@type")
            kinds = kinds if isinstance(kinds, list) else [kinds]
            if "Recipe" in kinds and not declared.recipe:
                declared.recipe = _recipe(node)
            body = node.get("articleBody")
            if isinstance(body, str) and len(body) > len(declared.body):
                declared.body = _plain(body)
                declared.title = _plain(node.get("headline") or node.get("name"))
    return declared


def _nodes(script: str) -> Iterator[dict[str, Any]]:
    try:
        top = json.loads(CONTROLS.sub(" ", script.strip().rstrip(";")))
    except (ValueError, RecursionError):
        return
    waiting, left = [top], MAX_NODES
    while waiting and left:
        node, left = waiting.pop(), left - 1
        if isinstance(node, list):
            waiting += reversed(node)
        elif isinstance(node, dict):
            yield node
            waiting += [value for value in node.values() if isinstance(value, dict | list)]


def _plain(value: Any) -> str:
    """Text of a value that may hold HTML."""
    if not isinstance(value, str):
        return ""
    lines = html.unescape(TAGS.sub("", html.unescape(BREAK.sub("\n", value)))).split("\n")
    return "\n".join(line for line in (" ".join(TAGS.sub(" ", line).split()) for line in lines) if line)


def _recipe(node: dict[str, Any]) -> tuple[str, ...]:
    found = node.get("recipeIngredient") or node.get("ingredients") or []
    ingredients = [_plain(item) for item in (found if isinstance(found, list) else [found])]
    steps = list(_steps(node.get("recipeInstructions")))
    if not any(ingredients) or not steps:
        return ()
    lines = [f"- {' '.join(item.split())}" for item in ingredients if item]
    return (_plain(node.get("name")), "", *lines, "", *steps)


def _steps(value: Any) -> Iterator[str]:
    waiting, left = [value], 1000
    while waiting and left:
        item, left = waiting.pop(), left - 1
        if isinstance(item, list):
            waiting += reversed(item)
        elif isinstance(item, str):
            yield from _plain(item).split("\n")
        elif isinstance(item, dict):
            if name := item.get("itemListElement"):
                if isinstance(item.get("name"), str):
                    yield _plain(item["name"])
                waiting.append(name)
            else:
                yield _plain(item.get("text") or item.get("name"))


def words(text: str) -> Counter[str]:
    """Words of a text, with their counts; of Chinese and Japanese the characters' runs."""
    return Counter(WORD.findall(text.lower()))


def reconcile(text: str, declared: Declared, page: str) -> str:
    """The text of a page in the light of what it declares.

    Args:
        text: found on the page.
        declared: by its structured data.
        page: all text that the page holds, for the check that it shows what it declares.
    """
    if declared.recipe:
        return _with_recipe(text, declared.recipe, page)
    if len(declared.body) >= MIN_BODY:
        own, other = words(text), words(declared.body)
        shared = (own & other).total()
        if shared < AGREE * other.total() and _is_shown(other, page):
            return declared.body
    return text


def _is_shown(declared: Counter[str], page: str) -> bool:
    return (declared & words(page)).total() >= SHOWN * declared.total()


def _with_recipe(text: str, recipe: tuple[str, ...], page: str) -> str:
    whole = "\n".join(recipe)
    wanted, own = words(whole), words(text)
    if not _is_shown(wanted, page):
        return text
    if wanted.total() >= MAIN * own.total():
        return whole
    missing = [line for line in recipe if line and (words(line) - own).total() > 0.5 * words(line).total()]
    lost = len(missing) > 0.3 * len([line for line in recipe if line])
    title = recipe[0]
    if lost:
        return f"{text}\n\n{whole}"
    return text if title.lower() in text.lower() else f"{title}\n\n{text}"
