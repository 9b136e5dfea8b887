import gzip

import numpy as np
import pyarrow as pa

from filters.url_lists import compile_entries, is_public_suffix, match_addresses
from pipelines.url_key import normalise_addresses


def addresses_of(addresses):
    return normalise_addresses(pa.array(addresses, pa.string()), lists=True)


def covered(entries, *addresses):
    """By domain, by address or not at all."""
    compiled = compile_entries([(0, pa.array(entries))])
    domain, address = match_addresses(addresses_of(addresses), compiled)
    return ["domain" if d >= 0 else "address" if a >= 0 else None for d, a in zip(domain, address, strict=True)]


def test_a_domain_covers_what_lies_below_it_label_by_label():
    addresses = ["http://bad.com/x", "http://a.b.BAD.com", "http://notbad.com", "http://bad.com.org", "http://bad.co"]
    assert covered(["bad.com"], *addresses) == ["domain", "domain", None, None, None]
    assert covered(["deep.bad.com"], "http://bad.com", "http://x.deep.bad.com") == [None, "domain"]


def test_an_address_covers_what_begins_with_it_at_a_boundary():
    entries = ["host.com/Page", "www.other.com/a?b=1"]
    addresses = ["http://www.host.com/page", "https://host.com/page/more", "http://host.com/page?x", "http://host.com/pages",
                 "http://host.com", "http://sub.host.com/page", "http://other.com/a?b=1&c=2",
                 "http://other.com/a?b=12"]  # fmt: skip
    assert covered(entries, *addresses) == ["address", "address", "address", None, None, None, "address", None]


def test_numbers_are_covered_whole():
    assert covered(["10.0.0.1", "0.1"], "http://10.0.0.1/x", "http://9.0.0.1") == ["domain", None]


def test_names_of_any_script_meet_their_ascii_form():
    assert covered(["xn--bcher-kva.example"], "http://BÜCHER.example") == ["domain"]
    assert covered(["bücher.example"], "http://xn--bcher-kva.example/x") == ["domain"]


def test_public_suffixes_cover_nobody():
    compiled = compile_entries([(0, pa.array(["com", "co.uk", "", "a.co.uk"]))])
    assert compiled.refused == 3
    assert len(compiled.domains_E) == 1
    rules = frozenset(["com", "*.ck", "!www.ck", "blogspot.com"])
    hosts = ["blogspot.com", "a.blogspot.com", "x.ck", "www.ck", "com"]
    assert [is_public_suffix(host, rules) for host in hosts] == [True, False, True, False, True]


def test_the_first_category_of_an_entry_stays():
    compiled = compile_entries([(3, pa.array(["a.com"])), (1, pa.array(["a.com", "b.com"]))])
    found = addresses_of(["http://a.com", "http://b.com"])
    assert match_addresses(found, compiled)[0].tolist() == [3, 1]


def test_every_entry_of_a_real_list_covers_itself_and_nothing_like_it(shared):
    with gzip.open(shared / "lists/ut1/gambling_domains.txt.gz", "rt") as lines:
        entries = [line.strip() for line in lines if line.strip()]
    compiled = compile_entries([(0, pa.array(entries))])
    for form, expected in (
        ("http://{}/", True),
        ("https://sub.{}/x", True),
        ("http://not{}/", False),
        ("http://{}.invalid", False),
    ):
        domain, _ = match_addresses(addresses_of([form.format(e) for e in entries]), compiled)
        share = np.mean(domain >= 0)
        assert share > 0.999 if expected else share < 0.001, form
