import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.extract_declared import read_declared, reconcile
from pipelines.extract_lines import clean_lines
from pipelines.extract_names import NAMED_BAD, NAMED_COMMENTS, NAMED_GOOD, VERDICTS
from pipelines.extract_page import extract_page
from pipelines.extract_render import render
from pipelines.extract_tree import lean, parse

SENTENCES = [
    f"The soil of plain number {number} is a mixture of sand, silt and clay that holds water and air in balance, "
    "and farmers have known for a long time which crops do well in it." for number in range(12)
]  # fmt: skip
ARTICLE = "".join(f"<p>{sentence}</p>" for sentence in SENTENCES)
TEXT = "\n\n".join(SENTENCES)


def page(body: str, head: str = "<title>Soil</title>") -> str:
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"


def laid_out(body: str) -> str:
    tree = parse(page(body))
    assert tree is not None
    return render(tree.find("body"))


BOILERPLATE = [
    "<nav><a href=/>Home</a><a href=/a>About</a></nav>",
    "<script>var a = '<p>not a paragraph</p>';</script>",
    "<style>p { color: red }</style>",
    "<div class='cookie-banner'><p>We use cookies to make this site better for you and for us.</p></div>",
    "<div id='related-posts'><h3>Related articles</h3><ul><li><a href=/x>One</a></li></ul></div>",
    "<footer><p>Copyright by the publishers of this page, who reserve all rights to it.</p></footer>",
    "<div style='display: none'>Hidden words</div>",
    "<div class='shareButtons'><a>Share</a> <a>Tweet</a></div>",
    "<!-- a comment with <p>markup</p> -->",
    "<aside><p>Something else that a reader may like to look at some day.</p></aside>",
]


@pytest.mark.parametrize("noise", BOILERPLATE)
def test_boilerplate_changes_nothing(noise):
    for body in (noise + f"<div>{ARTICLE}</div>", f"<div>{ARTICLE}</div>" + noise):
        assert extract_page(page(body)).text == TEXT


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(BOILERPLATE), max_size=5), st.lists(st.sampled_from(BOILERPLATE), max_size=5))
def test_any_boilerplate_around_changes_nothing(before, after):
    body = "".join(before) + f"<article>{ARTICLE}</article>" + "".join(after)
    assert extract_page(page(body)).text == TEXT


@pytest.mark.parametrize(
    ("head", "title"),
    [
        ("<title> Soil\n and water </title>", "Soil and water"),
        ("<meta property='og:title' content='Clay'><title>Clay | Site</title>", "Clay"),
        ("", ""),
    ],
)
def test_titles(head, title):
    assert extract_page(page(ARTICLE, head)).title == title


def test_a_wrapper_with_a_bad_name_is_kept_when_the_article_is_in_it():
    assert extract_page(page(f"<div class='modal widget'>{ARTICLE}</div>")).text == TEXT


def test_comments_are_a_setting():
    remark = f"<div class=comments><p>{'I think that this is quite right. ' * 9}</p></div>"
    body = f"<main><div class=post>{ARTICLE}</div>{remark}</main>"
    assert "quite right" not in extract_page(page(body)).text
    assert "quite right" in extract_page(page(body), comments=True).text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("entry-content", NAMED_GOOD),
        ("box relatedPosts", NAMED_BAD),
        ("comment-list", NAMED_BAD | NAMED_COMMENTS),
        ("comment-4711 article", NAMED_BAD | NAMED_COMMENTS | NAMED_GOOD),
        ("field--name-field-media tag-ads", 0),  # what systems write, not what authors mean
        ("shareholder", 0),
    ],
)
def test_names(name, expected):
    assert VERDICTS[name] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<p>a<br>b</p><p>c  d</p>", "a\nb\n\nc d"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
        ("<pre>def f():\n    return 1\n</pre>", "```\ndef f():\n    return 1\n```"),
        ("<table><tr><th>x</th><th>y</th></tr><tr><td>1</td><td>a|b</td></tr></table>",
         "| x | y |\n| --- | --- |\n| 1 | a\\|b |"),
        ("<table><tr><td><p>layout</p></td></tr></table>", "layout"),
        ("<p>so <math alttext='x^2'><mi>x</mi></math> is</p>", "so $x^2$ is"),
        ("<p><span class=katex><span class=katex-mathml><math><semantics><mi>x</mi><annotation encoding="
         "'application/x-tex'>\\frac12</annotation></semantics></math></span><span class=katex-html>1</span></span>",
         "$\\frac12$"),
        ("<p><img class='mwe-math-fallback-image-inline' alt='\\pi r'> <img alt='a cat'></p>", "$\\pi r$"),
        ("<p>a <b>b</b>, <i>c</i>.</p>", "a b, c."),
        ("<p>土壤<span>是沙</span></p>", "土壤是沙"),
    ],
)  # fmt: skip
def test_layout(body, expected):
    assert laid_out(body) == expected


def test_formulas_in_scripts_stay():
    assert laid_out(lean("<p>so <script type='math/tex'>a<b</script> holds</p>").html) == "so $a<b$ holds"


@pytest.mark.parametrize(
    ("html", "left"),
    [
        ("a<script>b</script>c", "ac"),
        ("a<SCRIPT >b</Script >c", "ac"),
        ("a<script>b", "a<script>b"),
        ("a<!-- b <script> -->c<style>d</style>e", "ace"),
        ("a<!-->b", "ab"),
        ("a<SCRIPT>b</SCRIPT>c<script>d</script>e", "ace"),
        ("a<iframe src=x>b</IFRAME>c<iframe>d</iframe>e<iframe x>f<iframe y>g", "acefg"),
        ("a<scripted>b", "a<scripted>b"),
    ],
)
def test_scripts_are_cut(html, left):
    assert lean(html).html == left


def test_many_open_scripts_are_scanned_once():
    html = "<script>" * 300_000
    assert lean(html).html == html  # quadratic, this would take hours


def test_lines_of_machinery():
    prose = "Prose of the article. " * 20
    text = f"Photo: Anna Smith\n{prose}\nAdvertisement\n{prose}\nRelated articles\nAnother one"
    assert clean_lines(text) == f"{prose}\n{prose}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("This website uses cookies. Click here for more.\n\nProse.\n\nFollow us on Twitter.\nSubscribe!", "Prose."),
        ("Prose.\nThis website uses cookies, he said.\nMore prose.", None),  # in the middle it is a sentence
        ("Follow us on the way through the valley.\nProse.", None),  # a call comes at the end
        ("Prose.\nSign up " + "for the long journey " * 20, None),  # a paragraph
    ],
)
def test_notices_at_the_edges_go(text, left):
    assert clean_lines(text) == (text if left is None else left)


def test_a_quoted_post_is_kept():
    post = "<blockquote><p>A post that the article speaks of, at some length.</p></blockquote>"
    found = extract_page(page(f"<article>{ARTICLE}<div class=social-embed>{post}</div>{ARTICLE}</article>"))
    assert "A post that the article" in found.text


def test_a_page_for_those_without_scripts_is_read():
    assert extract_page(page(f"<script>write()</script><noscript><div>{ARTICLE}</div></noscript>")).text == TEXT


@pytest.mark.parametrize(
    ("sentence", "text"),
    [("Die Schutz\u00adgemein\u00adschaft.", "Die Schutzgemeinschaft."),
     ("<ruby>子<rp>(</rp><rt>こ</rt><rp>)</rp></ruby>ども", "子ども")],
)  # fmt: skip
def test_marks_for_the_eye_do_not_split_words(sentence, text):
    assert extract_page(page(f"{ARTICLE}<p>{sentence}</p>{ARTICLE}")).text == f"{TEXT}\n\n{text}\n\n{TEXT}"


def test_a_page_inside_an_unclosed_control_is_found_all_the_same():
    assert extract_page(page(f"<button>Menu<div>{ARTICLE}</div>")).text == TEXT


def test_code_is_left_alone():
    text = "```\nPhoto: x\ntags: y\n```"
    assert clean_lines(text) == text


RECIPE = {"@graph": [{"@type": ["Recipe"], "name": "Bread", "recipeIngredient": ["500 g flour", "300 g water"],
          "recipeInstructions": [{"@type": "HowToStep", "text": "Mix &amp; knead."},
                                 {"text": "Bake <b>it</b>."}]}]}  # fmt: skip


def test_a_declared_recipe_is_added_where_the_text_lacks_it():
    declared = read_declared([json.dumps(RECIPE)])
    assert declared.recipe == ("Bread", "", "- 500 g flour", "- 300 g water", "", "Mix & knead.", "Bake it.")
    shown = "Bread 500 g flour 300 g water Mix & knead. Bake it."
    assert reconcile("Bread", declared, shown) == "\n".join(declared.recipe)
    assert reconcile(TEXT, declared, shown) == TEXT + "\n\n" + "\n".join(declared.recipe)
    assert reconcile(TEXT, declared, "a page that shows none of it") == TEXT


@pytest.mark.parametrize("script", ["", "{", "[" * 100_000, '{"@type": "Recipe"}', '{"articleBody": 3}', "null"])
def test_bad_structured_data_says_nothing(script):
    declared = read_declared([script])
    assert (declared.body, declared.recipe) == ("", ())


MARKUP = st.sampled_from(
    ["<div>", "</div>", "<p>", "<table><tr><td>", "</table>", "<pre>", "<math>", "<li>", "<script>", "</script>",
     "<!--", "<a href='x", "&#0;", "&amp", "<svg>", "</svg", "<p class='comment ", "<title>", "\0", "\ud800", "土",
     "<h1>", "<", "<figure>", "<body>", "<html><head>", "</p>", "<script type=application/ld+json>{", "]]>",
     "<![CDATA["]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(MARKUP, st.text(max_size=12)), max_size=60).map("".join))
def test_no_markup_breaks_it_and_the_text_is_clean(html):
    found = extract_page(html)
    assert "\0" not in found.text
    assert extract_page(html) == found
