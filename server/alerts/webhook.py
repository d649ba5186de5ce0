"""One delivery to a webhook: signed, over HTTPS, and only to public addresses.

The headers are those of Standard Webhooks 1.0.0 (standardwebhooks.com).
"""

import ipaddress
import socket
import ssl
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from server.alerts.signing import secret_bytes, signature

TIMEOUT: Final = 15.0
"""Seconds for a whole delivery."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that IANA assigns as global unicast (RFC 4291, section 2.4). All others are reserved, or lead to
this machine and its networks: ::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48, 5f00::/16, fc00::/7, fe80::/10, fec0::/10."""
_SPECIAL: Final[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]] = tuple(
    ipaddress.ip_network(each)
    for each in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # protocol assignments (RFC 2928)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
"""Ranges of the special-purpose registries that `ipaddress` calls global in some version of Python."""


class NotDelivered(Exception):
    """The receiver did not accept the message; the text says why, without credentials in the address."""


def is_public(address: str) -> bool:
    """Return whether `address` is a public IP address.

    Not public are those of this machine and its networks, those that lead there by translation, reserved ones, and text
    that is not an IP address.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in each for each in _SPECIAL)


class PublicResolver(AbstractResolver):
    """Resolves a name and keeps only its public addresses, so that the address connected to is the one checked."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`. Raises `OSError` if there is no public address."""
        found = [each for each in await self._inner.resolve(host, port, family) if is_public(each["host"])]
        if not found:
            raise OSError(f"{host} has no public address")
        return found

    async def close(self) -> None:
        """See `AbstractResolver`."""
        await self._inner.close()


class Webhook:
    """The receiver of messages. `tls` is for tests: by default the system's certificate authorities are trusted."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        allow_private: bool = False,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = URL(url)
        self._key = secret_bytes(secret)
        self._allow_private = allow_private
        self._resolver = resolver
        self._tls = tls

    async def deliver(self, message_id: str, body: bytes, timestamp: int) -> None:
        """Send one message, once. Raises `NotDelivered`. `timestamp` is in seconds since the epoch."""
        host = self._url.host or ""
        if not self._allow_private and _is_literal(host) and not is_public(host):
            raise NotDelivered(f"{host} is not a public address")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "spendstream",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, message_id, timestamp, body),
        }
        resolver = self._resolver or ThreadedResolver()
        connector = aiohttp.TCPConnector(
            resolver=resolver if self._allow_private else PublicResolver(resolver), use_dns_cache=False, limit=1
        )
        options: dict[str, Any] = {"allow_redirects": False, "headers": headers, "data": body}
        if self._tls is not None:
            options["ssl"] = self._tls
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, trust_env=False, timeout=aiohttp.ClientTimeout(total=TIMEOUT)
                ) as session,
                session.post(self._url, **options) as response,
            ):
                if not 200 <= response.status < 300:
                    raise NotDelivered(f"{host} answered {response.status}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NotDelivered(f"{host} could not be reached ({type(error).__name__})") from None


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
