"""What two addresses of one page have in common.

The one choice that matters: only what cannot change the page is left out, so that two pages never get one key; a query
is therefore kept but for parameters that follow campaigns. Source: RFC 3986, section 6, and the lists of tracking
parameters that browsers strip.
"""

import posixpath
import re
from urllib.parse import quote, unquote, urlsplit

CAMPAIGN = re.compile(
    r"(utm_\w*|fbclid|gclid|dclid|gbraid|wbraid|msclkid|yclid|twclid|ttclid|igshid|mc_cid|mc_eid|_ga|_gl|spm|"
    r"phpsessid|jsessionid)(=.*)?",
    re.IGNORECASE,
)
SESSION = re.compile(r";jsessionid=[^/?#]*", re.IGNORECASE)
DEFAULT_PORTS = (None, 80, 443)
UNRESERVED = "!$&'()*+,;=:@/~-._"


def normalized_url(url: str) -> str:
    """The key of an address.

    Left out: scheme, `www.`, a default port, user and password, the fragment, session ids, campaign parameters
    (`CAMPAIGN`), a last slash and `index.html`, `.` and `..` in the path. The host is in lower case, an international
    one in Punycode; percent-encoding is made uniform; parameters are sorted.

    Args:
        url: an address, with or without scheme.

    Returns:
        The key; the address itself where it cannot be understood.
    """
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = (parts.hostname or "").rstrip("."), parts.port
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError:  # brackets, a port or a name that mean nothing: only equal strings are equal
        return url
    path = "%2F".join(_uniform(piece) for piece in re.split("%2[fF]", SESSION.sub("", parts.path)))
    path = posixpath.normpath(path) if path else ""
    path = re.sub(r"/(index\.(html?|php))?$", "", re.sub(r"^/+", "/", path))
    address = host.removeprefix("www.") + (f":{port}" if port not in DEFAULT_PORTS else "") + path
    parameters = [p for p in parts.query.split("&") if p and not CAMPAIGN.fullmatch(p)]
    return address + ("?" + "&".join(sorted(parameters)) if parameters else "")


def _uniform(piece: str) -> str:
    """Percent-encoding of all that needs it, and of nothing else."""
    return quote(unquote(piece, errors="surrogateescape"), UNRESERVED, errors="surrogateescape")
