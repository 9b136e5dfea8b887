"""Check digits of numbers that name a person, an account or a wallet.

The one choice that matters: a number counts by its arithmetic, not by its length: one of ten random numbers passes
Luhn, one of ninety-seven passes mod 97, one of four thousand million passes Base58Check. Sources: ISO 7812 (Luhn),
ISO 7064 and 13616 (mod 97), GB 11643 (mod 11-2), Verhoeff 1969, BIP-173 and BIP-350 (bech32), the countries' own rules.
"""

import hashlib
import re

_IBAN_CODES = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27
GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24
ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24
TR26 UA29 VA22 VG24 XK20
"""
IBAN_LENGTHS = {code[:2]: int(code[2:]) for code in _IBAN_CODES.split()}
"""Country -> characters of its IBAN (the registry of ISO 13616)."""
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


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


def resident_id(text: str) -> bool:
    """Whether 18 characters are a Chinese resident identity number: mod 11-2 of ISO 7064 (GB 11643)."""
    total = sum(int(char) * pow(2, 17 - place, 11) for place, char in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


_DIHEDRAL = tuple(
    tuple((a + b if b < 5 else a + b - 5) % 5 + 5 * (b >= 5) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10))
    for a in range(10)
)  # fmt: skip
_VERHOEFF_STEP = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def verhoeff(digits: str) -> bool:
    """Whether the last digit is the Verhoeff check digit of the others: Indian Aadhaar numbers."""
    value = 0
    for place, char in enumerate(reversed(digits)):
        digit = int(char)
        for _ in range(place % 8):
            digit = _VERHOEFF_STEP[digit]
        value = _DIHEDRAL[value][digit]
    return value == 0


def dni(text: str) -> bool:
    """Whether a Spanish DNI or NIE without hyphen ends in its control letter: the number modulo 23."""
    number = text[:-1].upper().translate(str.maketrans("XYZ", "012"))
    return DNI_LETTERS[int(number) % 23] == text[-1].upper()


def cpf(digits: str) -> bool:
    """Whether the last two of eleven digits check a Brazilian CPF."""
    for size in (9, 10):
        total = sum(int(char) * (size + 1 - place) for place, char in enumerate(digits[:size]))
        if int(digits[size]) != total * 10 % 11 % 10:
            return False
    return len(set(digits)) > 1


def nir(text: str) -> bool:
    """Whether a French social security number (15 characters) has the key 97 - number modulo 97."""
    number = text[:13].upper().replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(text[13:])


def rrn(digits: str) -> bool:
    """Whether thirteen digits are a Korean resident registration number."""
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(int(char) * weight for char, weight in zip(digits, weights, strict=False))
    return (11 - total % 11) % 10 == int(digits[12])


_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def fiscal_code(text: str) -> bool:
    """Whether the last letter checks an Italian fiscal code (16 characters)."""
    total = 0
    for place, char in enumerate(text[:15].upper()):
        value = int(char) if char.isdigit() else ord(char) - 65
        odd = place % 2 == 0  # the rule counts from one
        total += (_ODD_DIGITS if char.isdigit() else _ODD_LETTERS)[value] if odd else value
    return chr(65 + total % 26) == text[15].upper()


def base58check(text: str) -> bool:
    """Whether a Bitcoin address of the old form ends in the first four bytes of its double SHA-256."""
    value = 0
    for char in text:
        value = value * 58 + BASE58.index(char)
    if value >= 1 << 200:
        return False
    raw = value.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


def bech32(text: str) -> bool:
    """Whether a Bitcoin address of the newer form has a valid polynomial checksum (bech32 or bech32m)."""
    prefix, _, data = text.lower().rpartition("1")
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    check = 1
    for value in values + [BECH32.find(char) for char in data]:
        if value < 0:
            return False
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)


CARD_PREFIXES = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720))\d+(?<=^\d{16})|3[47]\d{13}"
    r"|(?:6011|64[4-9]|65)\d{12,15}|35\d{14}|(?:2131|1800)\d{11}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
    r"|(?:50|5[6-9]|6[37])\d{11,17}"
)
"""Issuer prefixes with their lengths: Visa, Mastercard, Amex, Discover, JCB, Diners, UnionPay, Maestro."""
SHORT_CARDS = re.compile(r"(?:50|5[6-9]|6[37]|0604)\d+(?<=^\d{12})")
"""Maestro cards of twelve digits: too short to be told from other numbers unless a word before them says so."""
