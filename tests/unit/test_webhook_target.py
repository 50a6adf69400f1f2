"""Where webhooks may go: nothing that is not public, in whatever notation, unless it is allowed."""

from __future__ import annotations

import pytest

from workers.errors import SettingsError
from workers.webhook_target import MAX_URL_CHARS, Addresses, check_url, literal_address

PUBLIC = ["8.8.8.8", "1.1.1.1", "203.0.114.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.2.1",
    "198.18.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:0a00:0001::1",
]
NEVER = ["0.0.0.0", "::", "224.0.0.1", "239.1.1.1", "ff02::1", "::ffff:224.0.0.1", "", "no address", "1.2.3"]


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_are_permitted(host: str) -> None:
    assert Addresses().permits(host)


@pytest.mark.parametrize("host", PRIVATE)
def test_others_are_not_unless_all_are(host: str) -> None:
    assert not Addresses().permits(host)
    assert Addresses(allow_private=True).permits(host)


@pytest.mark.parametrize("host", NEVER)
def test_some_never_are(host: str) -> None:
    assert not Addresses(allow_private=True, allow_networks=["0.0.0.0/0", "::/0"]).permits(host)


def test_a_network_that_is_allowed_and_no_more() -> None:
    addresses = Addresses(allow_networks=["10.1.0.0/16", "::1"])
    assert addresses.permits("10.1.2.3")
    assert addresses.permits("::ffff:10.1.2.3")
    assert addresses.permits("::1")
    assert not addresses.permits("10.2.0.1")
    assert not addresses.permits("127.0.0.1")
    with pytest.raises(SettingsError, match=r"allow_networks: '10\.1\.0\.1/16'"):
        Addresses(allow_networks=["10.1.0.1/16"])


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("LOCALHOST.", "127.0.0.1"),
        ("a.localhost", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("example.com", None),
        ("10.example.com", None),
    ],
)
def test_addresses_are_known_in_any_notation(host: str, address: str | None) -> None:
    assert literal_address(host) == address


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook?x=1", "http://hooks.example.com:8080", "http://8.8.8.8/", "http://[2606:4700::1]/"],
)
def test_usable_urls(url: str) -> None:
    check_url(url, Addresses())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "http"),
        ("example.com/hook", "http"),
        ("file:///etc/passwd", "http"),
        ("http://", "host"),
        ("http:///path", "host"),
        ("http://example.com:0/", "port"),
        ("http://example.com:99999/", "ort"),
        ("http://user:secret@example.com/", "user"),
        ("http://example.com/#part", "fragment"),
        ("http://example.com\\@127.0.0.1/", "backslash"),
        ("http://exa mple.com/", "blanks"),
        ("http://example.com/\n", "printable"),
        ("http://exämple.com/", "ASCII"),
        ("http://[::1", ""),
        ("http://127.0.0.1/", "127.0.0.1 is not a public address"),
        ("http://localhost:8800/", "127.0.0.1 is not a public address"),
        ("https://[::ffff:7f00:1]/", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://0x7f000001/", "127.0.0.1 is not a public address"),
        ("http://example.com/" + "x" * MAX_URL_CHARS, "at most"),
    ],
)
def test_unusable_urls_are_named(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=r"^callback_url: .*") as error:
        check_url(url, Addresses())
    assert words in str(error.value)
