"""Patterns of personal data, each with the check that makes it more than a pattern.

The one choice that matters: precision before recall: a number counts only with valid check digits, a known prefix, an
unmistakable format or a word beside it that says what it is, and an address only when it is public; version numbers,
times, formulas and ids stay. Sources: ISO 7812 and 13616, RFC 4291, 5322 and 7519, the North American numbering plan,
issuers' documented formats of keys.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import log2

from filters import pii_checks as checks

EMAIL, NUMBER, ADDRESS, TOKEN, KEY_BLOCK = 1, 2, 4, 8, 16
"""What makes a place suspicious (`pii_candidates.py`); each kind is looked for around one or two of them."""


@dataclass(frozen=True)
class Kind:
    """One type of personal data.

    Attributes:
        name: `email`, as recipes say it.
        near: suspicions that this kind is looked for around.
        pattern: candidates.
        valid: says whether a candidate is real, given the match.
        group: the group of the pattern that is the data itself (0: all).
    """

    name: str
    near: int
    pattern: re.Pattern[str]
    valid: Callable[[re.Match[str]], bool]
    group: int = 0

    @property
    def placeholder(self) -> str:
        """What replaces it: `<EMAIL>`."""
        return f"<{self.name.upper()}>"


_PHONE_WORD = (
    r"(?:(?:tele)?phone|tel|mobile|cell|fax|desk|hotline|whats ?app|viber|call|dial|ring|sms"
    r"|text (?:me|us|at|on|to)|voicemail|answering"
    r"|messages? to|message on my registered|reach (?:me|us|him|her|them)|contact(?: (?:me|us|him|her|them))?"
    r"|telefono|teléfono|telefon|téléphone|móvil|handy|телефон)"
)
PHONE_BEFORE = re.compile(
    rf"(?:\b{_PHONE_WORD}\b|电话|手机|传真|電話|手機|전화)"
    r"(?:[ \t]+(?:number|numbers|no|nr|me|us|at|on|is|my|our|now|to)\b"
    r"|[ \t:：.#(=*_,-])*$", re.IGNORECASE,
)  # fmt: skip
"""A cue right before digits makes a national number a phone number."""
PHONE_AFTER = re.compile(
    r"(?P<joined>[ \t]?[-–(][ \t]?(?:office|fax|mobile|cell|desk|home|work)\b)|[ \t](?:office|fax|mobile|desk)\b",
    re.IGNORECASE,
)
VERSION_BEFORE = re.compile(
    r"(?:\bv|version|ver\.?|release|build|chapter|section|firmware|§)[\s:=]*$|(?:==|>=|<=|~=|@)\s*$", re.IGNORECASE
)
ADDRESS_BEFORE = re.compile(r"(?:\bip(?:v4)?\b|\baddress\b|\bhost\b|\bping\b|\bdns\b|\bfrom\b)\W{0,4}$", re.IGNORECASE)
CARD_BEFORE = re.compile(r"\b(?:card|cc|visa|maestro|debit|credit)\b[^\d\n]{0,24}$", re.IGNORECASE)
DATES = re.compile(
    r"(?:19|20)\d\d(?:[-. ]\d\d?[-. ]\d\d?(?!\d)|[-/ –](?:19|20)\d\d\b)|\d\d?[-. ]\d\d?[-. ](?:19|20)\d\d\b"
)
NEAR_CHARS = 48
"""How far a word before a number still speaks of it."""


def _before(match: re.Match[str], cue: re.Pattern[str], group: int = 0) -> bool:
    start = match.start(group)
    return cue.search(match.string, max(0, start - NEAR_CHARS), start) is not None


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9]", "", match.group())


def _card(match: re.Match[str]) -> bool:
    digits = _digits(match)
    separators = set(re.sub(r"\d", "", match.group()))
    if len(separators) > 1 or len(set(digits)) < 2 or not checks.luhn(digits):
        return False
    if checks.CARD_PREFIXES.fullmatch(digits):
        return True
    return checks.SHORT_CARDS.fullmatch(digits) is not None and _before(match, CARD_BEFORE)


def _public_address(match: re.Match[str]) -> bool:
    text = match.group()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast:
        return False
    if address.version == 6:
        return sum(bool(group) for group in text.split(":")) >= 4
    if _before(match, VERSION_BEFORE):
        return False
    # 1.2.3.4 is a version or a section far more often than an address
    return max(address.packed) >= 20 or _before(match, ADDRESS_BEFORE)


def _phone(match: re.Match[str]) -> bool:
    number = re.split(r"[xe]", match.group(), maxsplit=1)[0]
    digits = re.sub(r"\D", "", number)
    return (12 if number[:2] == "00" else 8) <= len(digits) <= 15  # 0020-9910 is an ISSN


def _cued_phone(match: re.Match[str]) -> bool:
    longest = 15 if match.group().startswith("00") else 12
    if not 7 <= len(_digits(match)) <= longest or DATES.match(match.group()):
        return False
    if _before(match, PHONE_BEFORE):
        return True
    after = PHONE_AFTER.match(match.string, match.end())
    return after is not None and (after["joined"] is not None or not match.group().isdigit())


def entropy_bits(text: str) -> float:
    """Shannon entropy of a text's characters, bits per character."""
    counts = [text.count(char) for char in set(text)]
    return -sum(n / len(text) * log2(n / len(text)) for n in counts)


def _secret(match: re.Match[str]) -> bool:
    text = match.group()
    return any(c.isdigit() for c in text) and any(c.isalpha() for c in text) and len(set(text)) > 9


def _assigned_secret(match: re.Match[str]) -> bool:
    value = match.group(1)
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return mixed and entropy_bits(value) >= (3.0 if re.fullmatch(r"[0-9a-fA-F]+", value) else 3.5)


def _email(match: re.Match[str]) -> bool:
    text = match.group()
    if text.startswith("git@") or ".." in text or match.string[max(0, match.start() - 3) : match.start()] == "://":
        return False  # a login in an address of a repository
    called = match.string[match.end() : match.end() + 1] == "("  # MATLAB calls `obj@package.Class(...)`
    return not (called and not text.rpartition(".")[2].islower())


def _compact(match: re.Match[str]) -> str:
    return re.sub(r"[ -]", "", match.group())


def _cued(words: str) -> Callable[[re.Match[str]], bool]:
    cue = re.compile(rf"(?:{words})[^\d\n]{{0,24}}$", re.IGNORECASE)
    return lambda match: _before(match, cue)


_nino_cue = _cued(r"national insurance|\bnino\b|\bni (?:no|number)")
_aadhaar_cue = _cued(r"aadhaa?r|uidai|आधार")
_sin_cue = _cued(r"\bsin\b|social insurance|assurance sociale")
_wallet_cue = _cued(r"\b(?:eth|ethereum|ether|wallet|crypto|donat\w*|usdt|erc-?20)\b")


def _nino(match: re.Match[str]) -> bool:
    return match.group().count(" ") == 4 or _nino_cue(match)


def _aadhaar(match: re.Match[str]) -> bool:
    grouped = not match.group().isdigit()
    return checks.verhoeff(_digits(match)) and (grouped or _aadhaar_cue(match))


def _bitcoin(match: re.Match[str]) -> bool:
    text = match.group()
    return checks.bech32(text) if text[:3].lower() == "bc1" else checks.base58check(text)


def _fiscal_code(match: re.Match[str]) -> bool:
    return checks.fiscal_code(match.group())


def _always(match: re.Match[str]) -> bool:
    return True


def _ascii(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII | flags)  # a number beside a Chinese character stands alone


_EXTENSION = r"(?:\s?(?:x|ext\.?)\s?\d{1,5})?"
_AREA = r"(?:\([2-9]\d\d\)[ .-]?|[2-9]\d\d[.-])"
KINDS = (
    Kind("private_key", KEY_BLOCK, _ascii(
        r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]{1,20000}-----END (?:[A-Z]+ ){0,3}PRIVATE KEY"
        r"(?: BLOCK)?-----"), _always),
    Kind("api_key", TOKEN, _ascii(
        r"(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36,251}|github_pat_\w{30,251}"
        r"|glpat-[\w-]{20,60}|hf_[0-9A-Za-z]{30,60}|xox[abeoprs]-[0-9A-Za-z-]{20,200}|xapp-[0-9A-Za-z-]{30,200}"
        r"|AIza[\w-]{35}|ya29\.[\w-]{20,200}|npm_[0-9A-Za-z]{36}|pypi-[\w-]{60,250}|SG\.[\w-]{16,32}\.[\w-]{32,64}"
        r"|dop_v1_[0-9a-f]{64}|AGE-SECRET-KEY-1[0-9A-Z]{58}"
        r"|sk-(?:[a-z]{2,8}-)?[0-9A-Za-z_-]{20,200}|[rs]k_live_[0-9A-Za-z]{16,200})(?![\w-])"), _secret),
    Kind("api_key", TOKEN, _ascii(
        r"(?<![\w-])eyJ[\w-]{8,2000}\.eyJ[\w-]{8,8000}\.[\w-]{16,2000}(?![\w-])"), _secret),
    Kind("email", EMAIL, _ascii(
        r"(?<![\w.+%-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![\w@-])"),
        _email),
    Kind("iban", NUMBER, _ascii(
        r"(?<!\w)[A-Za-z]{2}\d\d(?:[A-Za-z0-9]{11,30}|(?: [A-Za-z0-9]{4}){2,7}(?: [A-Za-z0-9]{1,3})?)(?!\w)"),
        lambda match: checks.iban(_compact(match))),
    Kind("cn_resident_id", NUMBER, _ascii(
        r"(?<![\w.-])[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\w-])"),
        lambda match: checks.resident_id(match.group())),
    Kind("fr_nir", NUMBER, _ascii(
        r"(?<![\w.-])[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?![\w-]|\.\d)"),
        lambda match: checks.nir(_compact(match))),
    Kind("credit_card", NUMBER, _ascii(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![ -]?\d|\w|\.\d)"), _card),
    Kind("us_ssn", NUMBER, _ascii(
        r"(?<![\w-])(?!000|666)[0-8]\d\d-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"), _always),
    Kind("br_cpf", NUMBER, _ascii(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d\d(?![\w-])"),
         lambda match: checks.cpf(_digits(match))),
    Kind("kr_rrn", NUMBER, _ascii(
        r"(?<![\w.-])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-4]\d{6}(?![\w-])"),
        lambda match: checks.rrn(_digits(match))),
    Kind("in_aadhaar", NUMBER, _ascii(
        r"(?<![\w.-])(?<![\d-] )(?:[2-9]\d{3}([ -])\d{4}\1\d{4}|[2-9]\d{11})(?![\w-]|\.\d| \d)"), _aadhaar),
    Kind("ca_sin", NUMBER, _ascii(r"(?<![\w.-])\d{3}([ -]?)\d{3}\1\d{3}(?![\w-]|\.\d)"),
         lambda match: _sin_cue(match) and checks.luhn(_digits(match))),
    Kind("es_dni", NUMBER, _ascii(r"(?<![\w.-])(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z](?![\w-])"),
         lambda match: checks.dni(_compact(match))),
    Kind("uk_nino", NUMBER, _ascii(
        r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)"), _nino),
    Kind("it_fiscal_code", TOKEN, _ascii(
        r"(?<!\w)[A-Z]{6}\d\d[A-EHLMPRST][0-7]\d[A-Z]\d{3}[A-Z](?!\w)"), _fiscal_code),
    Kind("crypto_wallet", TOKEN, _ascii(
        r"(?<![\w.+/=-])(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[02-9ac-hj-np-z]{11,71}|BC1[02-9AC-HJ-NP-Z]{11,71})"
        r"(?![\w+/=])"), _bitcoin),
    Kind("crypto_wallet", TOKEN, _ascii(r"(?<!\w)0x[0-9A-Fa-f]{40}(?!\w)"), _wallet_cue),
    Kind("api_key", TOKEN, _ascii(
        r"(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?key|auth[_-]?token|access[_-]?token|client[_-]?secret"
        r"|private[_-]?key|passw(?:or)?d)[\"']?\s{0,4}(?::|=|:=|=>)\s{0,4}[\"']([\w+/=.~-]{16,200})[\"']",
        re.IGNORECASE),
        _assigned_secret, 1),
    Kind("ip_address", ADDRESS, _ascii(
        r"(?<![\w.:-])(?:(?:(?:0|[1-9]\d{0,2})\.){3}(?:0|[1-9]\d{0,2})(?![\w-]|\.\d)"
        r"|(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:.]))"), _public_address),
    Kind("mac_address", ADDRESS, _ascii(
        r"(?<![\w:-])[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}(?![\w:-])"), _always),
    Kind("phone_number", NUMBER, _ascii(
        rf"(?<![\w+./-])(?:(?:\+|(?<!,)00(?=[1-9]\d{{0,2}}[ .(-]))[1-9]\d{{0,2}}"
        r"(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,4}){2,6}"
        rf"|(?<!,)(?:1[ .-])?{_AREA}[2-9]\d\d[.-]\d{{4}}){_EXTENSION}(?![\w/]|[.,-]\d)"), _phone),
    Kind("phone_number", NUMBER, _ascii(
        rf"(?<![\w+./-])\(?\d{{2,5}}\)?(?:[ .-]?\d{{2,4}}){{1,5}}{_EXTENSION}(?![\w/]|[.,-]\d)"), _cued_phone),
)  # fmt: skip
"""In the order of precedence: where two overlap, the one that is earlier here stays."""
TYPES = tuple(dict.fromkeys(kind.name for kind in KINDS))
