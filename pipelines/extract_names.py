"""What elements say about themselves: tags, roles, and words in class and id that mark boilerplate or the article.

The words are those that many sites share, in whatever spelling (`side-bar`, `sideBar`, `side_bar`); none belongs to
one site. Verdicts are kept, since a page repeats its class names.
"""

import re

DEAD = frozenset(
    """script style noscript template svg iframe frame frameset object embed applet audio video canvas map area nav
    footer aside menu dialog button select textarea input progress datalist option optgroup head link meta
    source track param base basefont title""".split()  # noqa: SIM905
)
INLINE = frozenset(
    """a abbr acronym b bdi bdo big br cite code data del dfn em font i img ins kbd mark math nobr q rp rt ruby s samp
    small span strike strong sub sup time tt u var wbr""".split()  # noqa: SIM905
)
PARAGRAPH = frozenset(("p", "pre", "blockquote", "h2", "h3", "li"))
LEAF = frozenset(("p", "pre", "blockquote", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6"))
DEAD_ROLES = frozenset(
    """alert alertdialog banner complementary contentinfo dialog menu menubar navigation search tablist toolbar
    tooltip""".split()  # noqa: SIM905
)
# Parts of class names that say nothing: layout, states, content-management fields, the tags of a WordPress post
NEUTRAL = re.compile(
    r"(?:field|elementor|js[-_]|has-|is-|with-?|no-|non-|without|(?:xs|sm|md|lg|xl|2xl|print|dark):|"
    r"post-\d|tag-|category-|"
    r"type-|status-|hidden-(?:xs|sm|md|lg|print|phone)|col-|u-|style)"
)
# Words in class and id, between word boundaries of any spelling: side-bar, sideBar, side_bar
BAD = re.compile(
    r"(?:^|[\s_-])(?:"
    r"nav|navi|navbar|navigation|topnav|subnav|submenu|breadcrumbs?|crumbs?|pagination|pager|paginator|"
    r"footer|bottom-?bar|copyright|disclaimer|imprint|"
    r"sidebar|side-?bar|side-?col|sidecolumn|widgets?|"
    r"share|shares|sharing|sharedaddy|sharebar|social|socials|addthis|addtoany|"
    r"related|relateds|recirc\w*|recommend(?:ed|ations?|s)?|more-?(?:stories|articles|news|links|from)|see-?also|"
    r"similar|trending|popular|most-?(?:read|popular|viewed)|latest|teasers?|outbrain|upsell|cross-?sell|"
    r"snippet|appstores?|community-notice|nocomments|entry-?footer|nextread|no-?print|sociable|bilduntertitel|"
    r"copyrights|cta|callout|zergnet|outbrain|taboola|zergnet|promo\w*|"
    r"sponsor\w*|advert\w*|ads|adv|banner|banners|commercial|"
    r"newsletter|subscri\w+|sign-?up|signup|optin|login|log-?in|register|paywall|"
    r"cookies?|consent|gdpr|popup|pop-?up|modal|overlay|lightbox|tooltip|dropdown|"
    r"byline|author-?(?:box|bio|info|card|meta)|about-?(?:the-?)?author|authorbox|"
    r"tags|tag-?list|taglist|tagcloud|tag-?links|cat-?links|post-?meta|entry-?meta|postmetadata|entry-?utility|"
    r"post-?info|"
    r"comments?|comment-?list|commentlist|comment-?form|respond|disqus\w*|replies|reply|"
    r"toolbar|toolbox|skip-?links?|screen-?reader\w*|sr-?only|visually-?hidden|visuallyhidden|noprint|"
    r"captions?|credits?|rating|ratings|voting|editsection|jp-?relatedposts|masthead|slideshow|carousel|"
    r"site-?header|page-?header|global-?header|header-?top|topbar|top-?bar"
    r")(?=$|[\s_-])|"
    r"(?<!\S)(?:menu|foot|legal|rail|aside|ad|bio|meta|metadata|keywords|topics|categories|print|tools|skip|"
    r"hidden|hide|vote|feedback|kontakt|contact|contactbox|kontaktbox|mini-?bio|"
    r"search|searchform|toc|gallery|video|player|follow|twitter|facebook|also|pos-?ts|date|timestamp|author|"
    r"teaser)(?!\S)"
)
COMMENTS = re.compile(
    r"(?:^|[\s_-])(?:comments?|comment-?list|commentlist|comment-?form|respond|disqus\w*|replies|reply)(?=$|[\s_-])"
)
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
GOOD = re.compile(
    r"(?:^|[\s_-])(?:article-?(?:body|content|text)|articlebody|story-?(?:body|content|text)|storytext|"
    r"post-?(?:body|content|text|entry)|"
    r"entry-?content|entrycontent|main-?content|maincontent|content-?(?:body|main|text)|text-?content|"
    r"body-?(?:content|text|copy)|"
    r"rich-?text|article|mw-parser-output|markdown-body|e-content|blogpost|page-?content|contenttext|"
    r"artikel)(?=$|[\s_-])"
)
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
MAX_NAME = 500  # characters of class and id that are looked at
MAX_VERDICTS = 50_000
UNNAMED = frozenset(("body", "html", "a", "sup", "em", "b", "i", "strong"))  # their class names style words

NAMED_BAD, NAMED_GOOD, NAMED_COMMENTS = 1, 2, 4
DIGITS = "0123456789"


class Verdicts(dict[str, int]):
    """What names say: the sum of `NAMED_BAD` (boilerplate), `NAMED_GOOD` (the article) and `NAMED_COMMENTS`.

    Each word of a class or an id speaks for itself. Names and words are remembered, since pages repeat them.

    Example:
        >>> VERDICTS["articleBody"], VERDICTS["box relatedPosts"], VERDICTS["comments"], VERDICTS["col-8"]
        (2, 1, 5, 0)
    """

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, int] = {}

    def __missing__(self, name: str) -> int:
        found = 0
        for word in name[:MAX_NAME].split():
            # a number at the end (comment-4711) changes no verdict, and is what makes names many
            key = word.rstrip(DIGITS) if word[-1] in DIGITS else word
            if key[-1:] not in ("-", "_"):
                key = word
            known = self.words.get(key)
            found |= self._judge(key) if known is None else known
        if len(self) >= MAX_VERDICTS:
            self.clear()
        self[name] = found
        return found

    def _judge(self, word: str) -> int:
        plain = CAMEL.sub("-", word).lower()
        found = 0
        if not NEUTRAL.match(plain):
            if BAD.search(plain):
                found = NAMED_BAD | NAMED_COMMENTS * bool(COMMENTS.search(plain))
            found |= NAMED_GOOD * bool(GOOD.search(plain))
        if len(self.words) >= MAX_VERDICTS:
            self.words.clear()
        self.words[word] = found
        return found


VERDICTS = Verdicts()
