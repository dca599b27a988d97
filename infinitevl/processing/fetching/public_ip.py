"""Tells which IP addresses belong to the public internet."""

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.IPv6Network("2000::/3")  # all IPv6 addresses that are assigned to the internet
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")  # 6to4 relays, which forward packets anywhere
_ISATAP = (0x00005EFE, 0x02005EFE)  # the 32 bits before the IPv4 address of such a tunnel


def is_public(address: IPAddress) -> bool:
    """Tells whether an address, and every IPv4 address embedded in it, is on the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and address not in _RELAYS
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        return is_public(low)
    hidden = [address.sixtofour, *(address.teredo or ())]
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        hidden.append(low)
    return address in _UNICAST and address.is_global and all(is_public(each) for each in hidden if each)
