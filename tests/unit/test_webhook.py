import socket
import ssl

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from server.alerts.signing import secret_bytes, signature
from server.alerts.webhook import NotDelivered, PublicResolver, Webhook, is_public
from tests.support.receiver import SECRET, receiver


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        *("64:ff9b:1::1", "64:ff9b:1::7f00:1", "::ffff:0:7f00:1", "::ffff:0:808:808", "::127.0.0.1", "::8.8.8.8"),
        *("fec0::1", "feff::1", "5f00::1", "3fff::1", "3fff:fff::1", "100::1", "4000::1", "fe00::1", "ffff::1"),
        *("192.0.0.9", "192.88.99.1", "2001::1", "2001:2::1", "2001:20::1", "2001:1ff::1", "2001:0:7f00:1::80ff:fffe"),
        *("localhost", "", "1.2.3", "0x7f000001"),
    ],
)
def test_addresses_that_are_not_called(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "192.0.1.1", "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1", "3ffe::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


class Names(AbstractResolver):
    """Any name has these addresses."""

    def __init__(self, *addresses: str, port: int = 0) -> None:
        self.addresses = addresses
        self.port = port
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=each, port=self.port or port, family=socket.AF_INET, proto=0, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None: ...


async def test_of_a_names_addresses_only_public_ones_are_used() -> None:
    found = await PublicResolver(Names("10.0.0.1", "8.8.8.8", "::1")).resolve("x.example", 443)
    assert [each["host"] for each in found] == ["8.8.8.8"]
    with pytest.raises(OSError, match="no public address"):
        await PublicResolver(Names("127.0.0.1", "::1")).resolve("x.example", 443)


async def test_a_message_is_signed() -> None:
    async with receiver() as to:
        webhook = Webhook(f"http://127.0.0.1:{to.port}/hook?a=b", SECRET, allow_private=True)
        await webhook.deliver("msg_1", b'{"a":1}', 1_790_000_000)
    (message,) = to.messages
    assert message.body == b'{"a":1}'
    assert message.headers["Content-Type"] == "application/json"
    assert (message.headers["webhook-id"], message.headers["webhook-timestamp"]) == ("msg_1", "1790000000")
    expected = signature(secret_bytes(SECRET), "msg_1", 1_790_000_000, message.body)
    assert message.headers["webhook-signature"] == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "hook.example"])
async def test_private_addresses_are_not_called_whatever_they_are_called(host: str) -> None:
    async with receiver() as to:
        webhook = Webhook(f"http://{host}:{to.port}/", SECRET, resolver=Names("127.0.0.1"))
        with pytest.raises(NotDelivered):
            await webhook.deliver("msg_1", b"{}", 1)
        assert to.messages == []


async def test_what_is_not_taken_was_not_delivered() -> None:
    async with receiver() as to:
        webhook = Webhook(f"http://127.0.0.1:{to.port}/", SECRET, allow_private=True)
        to.redirect = f"http://127.0.0.1:{to.port}/elsewhere"
        for status in (500, 404, 410, 302, 307):
            to.statuses = [status]
            with pytest.raises(NotDelivered, match=f"answered {status}"):
                await webhook.deliver("msg_1", b"{}", 1)
        assert len(to.messages) == 5  # no redirect was followed
    with pytest.raises(NotDelivered, match="could not be reached"):
        await webhook.deliver("msg_1", b"{}", 1)


async def test_https_with_a_certificate_that_is_trusted_and_one_that_is_not() -> None:
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hook.example").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with receiver(serving) as to:
        names = Names("127.0.0.1")
        url = f"https://hook.example:{to.port}/"
        await Webhook(url, SECRET, allow_private=True, resolver=names, tls=trusting).deliver("msg_1", b"{}", 1)
        assert names.asked == ["hook.example"]
        assert len(to.messages) == 1
        with pytest.raises(NotDelivered, match="Certificate"):
            await Webhook(url, SECRET, allow_private=True, resolver=names).deliver("msg_1", b"{}", 1)
        assert len(to.messages) == 1
