"""Lines that are no content although they stand in it: credits, calls to share, headings of lists of other articles.

The last step of extraction, on the laid-out text: short lines are compared with phrases that web pages of several
languages share. A heading such as "Related articles" near the end ends the text. Long lines are never touched.
"""

import re

MAX_SKIPPED = 120  # characters; a longer line is prose whatever it begins with
MAX_HEADING = 60
TAIL = 0.25  # share of the text that a closing heading may cut
# Headings of what follows an article; whole lines, any case
CLOSING = re.compile(
    r"(?:(?:more|related|similar|recommended|popular|trending|latest|other|further|most read|top)\s+(?:\w+\s+){0,2}"
    r"(?:articles?|stories|posts?|news|topics?|links?|reading|content|videos?|products?|recipes?|coverage)|related|"
    r"(?:more|read more|also) (?:from|on|in|about) .{1,40}|you (?:may|might) (?:also )?(?:like|"
    r"be interested).{0,20}|read (?:also|next|more)|see also|"
    r"what to read next|recommended(?: for you)?|trending(?: now)?|share this(?: \w+)?|comments?(?: \(\d+\))?|"
    r"\d+ comments?|"
    r"leave a (?:reply|comment)|about the authors?|tags|categories|advertisement|sign up .{0,40}|subscribe.{0,40}|"
    r"(?:mehr|weitere|ähnliche|neueste|aktuelle|verwandte|andere|passende|top)\w*\s+(?:zum thema|beiträge|"
    r"artikel|themen|nachrichten|"
    r"meldungen|informationen|infos|links|news|rezepte|produkte|videos)(?: .{0,20})?|das könnte (?:sie|dich|"
    r"ihnen|dir) auch .{0,25}|auch interessant|lesen sie auch|"
    r"lesetipps?|passend dazu|zum weiterlesen|(?:ein )?kommentare?(?: .{0,25})?|schreibe? einen kommentar|"
    r"schlagworte|schlagwörter|stichworte|"
    r"themen|über den autor|über die autorin|teilen|artikel teilen|newsletter.{0,30}|kontakt|zur startseite|"
    r"(?:articles?|sujets?) (?:similaires?|liés?|connexes?)|(?:à )?lire (?:aussi|également).{0,20}|"
    r"sur le même (?:thème|sujet)|(?:les )?commentaires?|partager.{0,20}|"
    r"(?:noticias|artículos|notas) relacionad[ao]s|te puede interesar|(?:lea|lee) también|más (?:noticias|"
    r"leídas|información)|comentarios|compartir.{0,20}|"
    r"artigos relacionados|leia (?:também|mais)|veja também|(?:você )?pode gostar.{0,5}|comentários|"
    r"articoli correlati|leggi anche|potrebbe(?:ro)? interessarti.{0,10}|"
    r"(?:czytaj|zobacz|przeczytaj) (?:także|też|również|więcej)|komentarze|powiązane.{0,20}|"
    r"lees ook|meer over.{0,30}|gerelateerd.{0,20}|läs (?:också|mer)|les også|læs også|lue myös|"
    r"相关(?:新闻|链接|阅读|文章|报道|专题|推荐)|推荐阅读|延伸阅读|热门(?:文章|推荐)|我来说两句|网友评论|更多(?:新闻|精彩).{0,8}|関連記事|おすすめ記事)"
    r"\s*[:：.…!?]*",
    re.IGNORECASE,
)
# Of these, those that also stand between the paragraphs of an article: only the line itself goes
INLINE_CALL = re.compile(
    r"(?:read|see|lesen sie|leggi|lire|lea|lee|leia|veja|czytaj|zobacz|przeczytaj|lees|läs|les|læs|lue|à lire|"
    r"auch|also|"
    r"share|partager|compartir|teilen|sign up|subscribe|newsletter|themen|kontakt|passend|lesetipp|advertisement)\b.*",
    re.IGNORECASE,
)
# Lines of machinery anywhere in the text
SKIPPED = re.compile(
    r"(?:(?:photo|image|picture|video|credit|photograph|source|foto|bild|bilder|quelle|fotos|fuente|źródło|"
    r"фото)s?(?: (?:by|credit|courtesy|von))?\s*[:©/].*|"
    r"[©(]\s*(?:c\s*\))?\s*.{0,80}|.{0,40}(?:getty images|shutterstock|all rights reserved|"
    r"alle rechte vorbehalten|版权所有|ICP备).{0,60}|"
    r"adverts?|advertisements?|anzeige|-\s*anzeige\s*-|werbung|publicidad|publicité|pubblicità|reklama|iklan|sponsored|"
    r"share(?: this)?(?: \w+){0,2}|tweet|print|email|e-mail|drucken|drukuj|imprimir|imprimer|teilen|text size|"
    r"loading.{0,3}|"
    r"(?:read|click|tap) (?:more|here).{0,20}|continue reading.{0,30}|mehr lesen|weiterlesen|(?:leer|ver) más|"
    r"lire la suite|"
    r"(?:tags?|filed under|categor(?:y|ies)|posted in|schlagw\w+|themen|keywords|topics|kategorien?)\s*:.*|"
    r"comments? (?:are )?(?:closed|off).{0,20}|no comments?(?: yet)?|bisher keine kommentare|be the first to .{0,40}|"
    r"(?:last )?updated?(?: on| at)?\s*[:：].*|published(?: on| at)?\s*[:：].*|publiziert:.*|aktualisiert:.*|"
    r"publikacja:.*|stand:.*|von:|autor(?:en|in)?:.*|by:?|"
    r"(?:来源|责任编辑|编辑|作者|发布时间|责编)\s*[:：].*|[(（\[【]?\s*责任编辑.*|【?(?:打印|关闭|收藏|字体|推荐)】?.*)",
    re.IGNORECASE,
)


# Notices of cookies, a paragraph long, where they stand at the edge of a text
COOKIES = re.compile(
    r"(?:(?:this|our|the) (?:web)?site|we(?: and our partners)?) uses? cookies\b.*|"
    r"(?:diese|unsere) (?:web)?(?:site|seite) (?:verwendet|benutzt|nutzt) cookies\b.*|"
    r"wir (?:verwenden|nutzen) cookies\b.*|"
    r"(?:ce site|nous) utilis(?:e|ons) des cookies\b.*|(?:este sitio|esta web) (?:web )?utiliza cookies\b.*|"
    r"by (?:continuing to (?:use|browse)|using) (?:this|our) (?:web)?site,? .*",
    re.IGNORECASE,
)
# What a text asks its reader to do when it is over
CALL = re.compile(
    r"(?:please )?(?:follow (?:us|him|her|me|them|@?\w+(?: \w+)?) on|like us on|join us on|subscribe|sign up|"
    r"get (?:the latest|more)|click here|have a (?:news )?tip|tell us what you think|"
    r"download (?:the|our) .{0,30}app|for more (?:news|stories|information)|read more|support our|copyright|"
    r"all rights reserved|this slideshow requires)\b.*",
    re.IGNORECASE,
)
MAX_NOTICE = 300


def without_edges(lines: list[str]) -> list[str]:
    """Leave out notices of cookies at both ends, and calls to the reader at the end."""
    start, end = 0, len(lines)
    while start < end and (not lines[start] or is_notice(lines[start], COOKIES)):
        start += 1
    while start < end and (not (line := lines[end - 1]) or is_notice(line, COOKIES) or is_notice(line, CALL)):
        end -= 1
    return lines[start:end]


def is_notice(line: str, pattern: re.Pattern[str]) -> bool:
    """Whether a line is short enough for a notice, and reads as one."""
    return len(line) <= MAX_NOTICE and pattern.fullmatch(line.strip()) is not None


def clean_lines(text: str) -> str:
    """Leave out lines that are no content.

    Args:
        text: laid out by `extract_render.render`.
    """
    kept: list[str] = []
    left = len(text)
    total = max(1, left)
    fenced = False
    for line in text.split("\n"):
        bare = line.strip().lstrip("-• ").strip()
        if bare.startswith("```"):
            fenced = not fenced
        if bare and not fenced and len(bare) <= MAX_SKIPPED:
            if len(bare) <= MAX_HEADING and CLOSING.fullmatch(bare):
                if left <= TAIL * total and (left <= 0.1 * total or not INLINE_CALL.match(bare)):
                    break
                left -= len(line) + 1
                continue
            if SKIPPED.fullmatch(bare):
                left -= len(line) + 1
                continue
        left -= len(line) + 1
        kept.append(line)
    return "\n".join(without_edges(kept)).strip("\n")
