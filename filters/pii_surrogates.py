"""Made-up values in the place of personal data: the same value always becomes the same surrogate.

The one choice that matters: a surrogate is a hash of the value, not a counter, so that it depends on nothing but the
value and the seed, for any order of documents and any number of workers; it lies in ranges that nobody owns (RFC 2606,
5737, 3849, the 555-01xx numbers) or fails its check digit, so that no real person, host or card is named by accident.
"""

import xxhash

from filters.pii_patterns import KINDS

NETWORKS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737: for documentation
_ATTEMPTS = 32


def surrogate(value: str, kind: str, seed: int = 0) -> str:
    """A made-up value of the same kind.

    Args:
        value: the personal data as it stands in the text.
        kind: its type.
        seed: another seed, other surrogates.

    Returns:
        a value of the same shape; a placeholder where none could be found that names nobody.
    """
    number = xxhash.xxh64_intdigest(value.casefold().encode("utf-8", "surrogatepass"), seed)
    if kind == "email":
        return f"user{number % 16**8:08x}@example.com"
    if kind == "ip_address" and ":" in value:
        return f"2001:db8::{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}"
    if kind == "ip_address":
        return f"{NETWORKS[number % 3]}.{1 + number // 3 % 254}"
    if kind == "phone_number":
        return f"+1-{200 + number % 800}-555-01{number // 800 % 100:02d}"
    if kind == "us_ssn":
        return f"000-{number % 100:02d}-{number // 100 % 10_000:04d}"
    if kind == "mac_address":
        return ":".join(["00", "00", "5e", "00", "53", f"{number % 256:02x}"])  # RFC 7042: for documentation
    for attempt in range(_ATTEMPTS):
        made = _same_shape(value, number + attempt)
        if not any(_counts(entry, made) for entry in KINDS if entry.name == kind):
            return made
    return f"<{kind.upper()}>"


def _same_shape(value: str, number: int) -> str:
    """The value with other letters and digits."""
    stream = xxhash.xxh3_128_digest(f"{number}:{value}".encode("utf-8", "surrogatepass"))
    made = []
    for place, char in enumerate(value):
        random = stream[place % 16] + 7 * place
        if char.isascii() and char.isdigit():
            char = str(random % 10)
        elif char.isascii() and char.isalpha():
            char = chr((65 if char.isupper() else 97) + random % 26)
        made.append(char)
    return "".join(made)


def _counts(entry, made: str) -> bool:
    match = entry.pattern.fullmatch(made)
    return match is not None and entry.valid(match)
