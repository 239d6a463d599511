"""What is a URL, and which IP addresses are of the open internet, by IANA's registries of special purposes."""

import ipaddress
from collections.abc import Iterator

# https://www.iana.org/assignments/iana-ipv4-special-registry, all of it, multicast (224.0.0.0/4) and what is reserved.
SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
# Of IPv6 only this is given out: loopback, link-local, unique-local, site-local, multicast, IPv4-mapped and
# -compatible addresses, discard-only and segment-routing prefixes all lie outside of it.
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# https://www.iana.org/assignments/iana-ipv6-special-registry, what of it lies in 2000::/3: among it Teredo
# (2001::/32), which 2001::/23 holds, and 6to4 (2002::/16), which both lead on to an IPv4 address.
SPECIAL_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)
# Where a network without IPv4 shows the IPv4 internet (RFC 6052): the last 32 bits are the address.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# An interface identifier that begins so holds an IPv4 address, to which a router sends on (ISATAP, RFC 5214).
ISATAP = (0x00005EFE, 0x02005EFE)


def is_url(name: str) -> bool:
    """Whether a text is an http(s) URL rather than a path."""
    return name.lower().startswith(("http://", "https://"))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also where IPv6 only wraps an IPv4 address.

    What is no address at all raises ValueError.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_V4)
    if ip in NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip not in GLOBAL_V6 or any(ip in network for network in SPECIAL_V6):
        return False
    return all(is_public(str(wrapped)) for wrapped in _wrapped(ip))


def _wrapped(ip: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    if (int(ip) >> 32) & 0xFFFFFFFF in ISATAP:
        yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
