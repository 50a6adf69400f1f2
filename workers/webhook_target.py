"""Where webhooks may go: a URL's form when it is given, and the address at the moment of each connection.

`check_url` is asked by the worker when a subscription is made, `Addresses.permits` by the connector for the very
address that is about to be connected to (workers/webhook_post.py), so that a name which resolves to something else by
then gains nothing. Pure: it resolves no name and opens no socket.

Refused unless allowed: whatever is not reachable in the public internet (private, loopback, link-local with the clouds'
metadata services, shared, reserved), also when it is written as an IPv4 address inside an IPv6 one. Multicast and the
unspecified address are always refused.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from workers.errors import SettingsError

MAX_URL_CHARS: Final = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_PLATFORM: Final = frozenset({ipaddress.ip_address("168.63.129.16")})  # a cloud's own services under a public address


class Addresses:
    """Which addresses may be connected to."""

    def __init__(self, *, allow_private: bool = False, allow_networks: Iterable[str] = ()) -> None:
        """Make the rule.

        Args:
            allow_private: everything but multicast and unspecified addresses.
            allow_networks: "10.1.0.0/16", "::1": these, too.

        Raises:
            SettingsError: a network that is none.
        """
        self._allow_private = allow_private
        networks: list[Network] = []
        for text in allow_networks:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise SettingsError(f"[webhooks] allow_networks: {text!r}: {error}") from None
        self._networks = tuple(networks)

    def permits(self, host: str) -> bool:
        """Whether the address `host` (numeric, perhaps with a zone) may be connected to. False for what is no address.

        An address that carries another one is as good as the one it carries.
        """
        try:
            address = _inner(ipaddress.ip_address(host.partition("%")[0]))
        except ValueError:
            return False
        if address.is_multicast or address.is_unspecified:
            return False
        if self._allow_private or any(address in network for network in self._networks):
            return True
        return address.is_global and address not in _PLATFORM


def _inner(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where a gateway or the kernel would unpack it."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    number = int(address)
    if any(address in network for network in _NAT64) or (number >> 32 == 0 and number > 1):
        return ipaddress.IPv4Address(number & 0xFFFF_FFFF)
    return address


def literal_address(host: str) -> str | None:
    """The address that `host` is, in any notation the system would take for one; None for a name."""
    bare = host.strip("[]")
    if bare.lower().rstrip(".") in ("localhost", "localhost.localdomain") or bare.lower().rstrip(".").endswith(
        ".localhost"
    ):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(bare.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(bare))  # "127.1", "0x7f.1", "2130706433"
    except (OSError, UnicodeEncodeError):
        return None


def check_url(url: str, addresses: Addresses) -> None:
    """Refuse a callback URL that can never work or must not be used; SettingsError begins with the field's name."""
    if len(url) > MAX_URL_CHARS:
        raise SettingsError(f"callback_url: {len(url)} characters, at most {MAX_URL_CHARS} are taken")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise SettingsError("callback_url: must be printable ASCII without blanks (percent-encode the rest)")
    if "\\" in url:
        raise SettingsError("callback_url: must not hold a backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"callback_url: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise SettingsError(f"callback_url: must begin with http:// or https://, not {parts.scheme[:16]!r}")
    if not parts.hostname or port == 0:
        raise SettingsError("callback_url: has no host, or the port 0")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("callback_url: must not hold a user or password; check the signature instead")
    if parts.fragment:
        raise SettingsError("callback_url: must not hold a fragment")
    literal = literal_address(parts.hostname)
    if literal is not None and not addresses.permits(literal):
        raise SettingsError(
            f"callback_url: {literal} is not a public address; see [webhooks] allow_networks and allow_private"
        )
