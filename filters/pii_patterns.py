"""Patterns of personal data, each with the check that makes it more than a pattern.

The one choice that matters: precision before recall: a number counts only with valid check digits (Luhn, mod 97), a
known prefix or an unmistakable format, and an address only when it is public; version numbers, times and ids stay.
Sources: ISO 7812 and 13616, RFC 4291 and 5322, the North American numbering plan, issuers' documented key formats.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One type of personal data.

    Attributes:
        name: `email`, as recipes say it.
        pattern: candidates.
        valid: says whether a candidate is real, given the match.
    """

    name: str
    pattern: re.Pattern[str]
    valid: Callable[[re.Match[str]], bool]

    @property
    def placeholder(self) -> str:
        """What replaces it: `<EMAIL>`."""
        return f"<{self.name.upper()}>"


_IBAN_CODES = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 ES24 FI18 FO18 FR27
GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IS26 IT27 JO30 KW30 KZ20 LB28 LI21 LT20 LU20 LV21 MC27 MD24
ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SE24 SI19 SK24 SM27 TN24 TR26 UA29
"""
IBAN_LENGTHS = {code[:2]: int(code[2:]) for code in _IBAN_CODES.split()}
"""Country -> characters of its IBAN (the registry of ISO 13616)."""
CARD_PREFIXES = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720))\d+(?<=^\d{16})|3[47]\d{13}"
    r"|(?:6011|64[4-9]|65)\d{12,15}|35\d{14}|(?:2131|1800)\d{11}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
    r"|(?:50|5[6-9]|6[37])\d{11,17}"
)
"""Issuer prefixes with their lengths: Visa, Mastercard, Amex, Discover, JCB, Diners, UnionPay, Maestro."""
PHONE_BEFORE = re.compile(
    r"(?:phone|\btel|mobile|\bcell|\bfax|whatsapp|\bcall(?: me)?(?: (?:at|on))?|\btext(?: me)?(?: at| on)"
    r"|电话|手机|传真|電話)(?: (?:number|no\.?))?(?: is)?\s*[:：.#]*\s*$", re.IGNORECASE,
)  # fmt: skip
"""A cue right before digits makes a national number a phone number."""
VERSION_BEFORE = re.compile(r"(?:\bv|version|ver\.?|release|build|chapter|section|§)\s*[:=]?\s*$", re.IGNORECASE)


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO 7812)."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """Whether a text without spaces is an IBAN: a known country's length, remainder 1 modulo 97 (ISO 13616)."""
    text = text.upper()
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def _card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    separators = set(re.sub(r"\d", "", match.group()))
    return len(separators) <= 1 and len(set(digits)) > 1 and bool(CARD_PREFIXES.fullmatch(digits)) and luhn(digits)


def _public_address(match: re.Match[str]) -> bool:
    text = match.group()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4:
        if max(address.packed) < 20:  # 1.2.3.4 is a version or a section far more often than an address
            return False
        return address.is_global and not VERSION_BEFORE.search(match.string, max(0, match.start() - 12), match.start())
    return address.is_global and sum(bool(group) for group in text.split(":")) >= 4


def _phone(match: re.Match[str]) -> bool:
    number = re.split(r"[xe]", match.group(), maxsplit=1)[0]
    digits = re.sub(r"\D", "", number)
    return 8 <= len(digits) <= 15 and (number[:2] != "00" or number != digits)  # bare digits after 00 are an id


def _cued_phone(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return 7 <= len(digits) <= 12 and bool(PHONE_BEFORE.search(match.string, max(0, match.start() - 30), match.start()))


def _secret(match: re.Match[str]) -> bool:
    text = match.group()
    return any(c.isdigit() for c in text) and any(c.isalpha() for c in text) and len(set(text)) > 9


def _email(match: re.Match[str]) -> bool:
    return not match.group().startswith("git@") and ".." not in match.group()


def _iban(match: re.Match[str]) -> bool:
    return iban(match.group().replace(" ", ""))


def _always(match: re.Match[str]) -> bool:
    return True


def _ascii(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)  # a number beside a Chinese character stands alone


_EXTENSION = r"(?:\s?(?:x|ext\.?)\s?\d{1,5})?"
_AREA = r"(?:\([2-9]\d\d\)[ .-]?|[2-9]\d\d[.-])"
KINDS = (
    Kind("private_key", _ascii(
        r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]{1,20000}-----END (?:[A-Z]+ ){0,3}PRIVATE KEY"
        r"(?: BLOCK)?-----"), _always),
    Kind("api_key", _ascii(
        r"(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36,251}|github_pat_\w{30,251}"
        r"|glpat-[\w-]{20,60}|hf_[0-9A-Za-z]{30,60}|xox[abprs]-[0-9A-Za-z-]{20,200}|AIza[\w-]{35}"
        r"|sk-(?:[a-z]{2,8}-)?[0-9A-Za-z_-]{20,200}|[sr]k_live_[0-9A-Za-z]{16,200})(?![\w-])"), _secret),
    Kind("email", _ascii(
        r"(?<![\w.+%-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![\w@-])"),
        _email),
    Kind("iban", _ascii(
        r"(?<!\w)[A-Za-z]{2}\d\d(?:[A-Za-z0-9]{11,30}|(?: [A-Za-z0-9]{4}){2,7}(?: [A-Za-z0-9]{1,3})?)(?!\w)"), _iban),
    Kind("credit_card", _ascii(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![ -]?\d|\w|\.\d)"), _card),
    Kind("us_ssn", _ascii(
        r"(?<![\w-])(?!000|666)[0-8]\d\d-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"), _always),
    Kind("ip_address", _ascii(
        r"(?<![\w.:-])(?:(?:(?:0|[1-9]\d{0,2})\.){3}(?:0|[1-9]\d{0,2})(?![\w-]|\.\d)"
        r"|(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:.]))"), _public_address),
    Kind("phone_number", _ascii(
        rf"(?<![\w+.,/-])(?:(?:\+|00)[1-9]\d{{0,2}}(?:[ .-]?\(\d{{1,4}}\))?(?:[ .-]?\d{{1,4}}){{2,6}}"
        rf"|(?:1[ .-])?{_AREA}[2-9]\d\d[.-]\d{{4}}){_EXTENSION}(?![\w/]|[.,-]\d)"), _phone),
    Kind("phone_number", _ascii(
        rf"(?<![\w+.,/-])\(?\d{{2,4}}\)?(?:[ .-]?\d{{2,4}}){{1,5}}{_EXTENSION}(?![\w/]|[.,-]\d)"), _cued_phone),
)  # fmt: skip
"""In the order of precedence: where two overlap, the one that is earlier here stays."""

CANDIDATE = (
    r"@[A-Za-z0-9]|[0-9](?:[ .()-]{0,3}[0-9]){6}|[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
    r"|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:|PRIVATE KEY|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|hf_|xox"
    r"|AIza|sk-|k_live_|[A-Za-z]{2}[0-9]{2} ?[A-Za-z0-9]{4}"
)
"""RE2: what every document with personal data contains; the others are passed over as a column."""
