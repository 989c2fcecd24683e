"""Connections to addresses that somebody else names: each is looked up once, judged, and connected to as judged.

So neither a redirect nor a name that resolves differently the second time leads into the private network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from ssl import SSLContext

import httpx2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
UNICAST = ipaddress.IPv6Network("2000::/3")  # what is given out so far
PORTS = {"http": 80, "https": 443}


class AddressRefused(httpx2.TransportError):
    """The host lies where nobody but this machine's owner may point; no connection was opened."""


class PublicTransport(httpx2.AsyncBaseTransport):
    """HTTPS to public addresses, and whatever `trusted_hosts` are: the names that the owner has set."""

    def __init__(
        self, context: SSLContext, *, trusted_hosts: Collection[str] = (), schemes: Collection[str] = ("https",)
    ) -> None:
        self._trusted_hosts = trusted_hosts
        self._schemes = schemes
        self._transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        if url.host not in self._trusted_hosts:
            request = httpx2.Request(
                request.method,
                url.copy_with(host=await self._judge(url)),
                headers=request.headers,  # with the Host of the name
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": url.host},
            )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _judge(self, url: httpx2.URL) -> str:
        """The address to connect to. One bad answer among several condemns the name."""
        if url.scheme not in self._schemes:
            raise AddressRefused(f"{url.host} is offered over {url.scheme}; {' or '.join(self._schemes)} is needed.")
        addresses = await look_up(url)
        if not all(map(is_public, addresses)):
            raise AddressRefused(f"{url.host} lies in a private network.")
        return str(addresses[0])


async def look_up(url: httpx2.URL) -> list[Address]:
    """All addresses of its host. Raises httpx2.TransportError."""
    if url.scheme not in PORTS or not url.host:
        raise httpx2.UnsupportedProtocol(f"“{url}” does not begin with https:// or http:// and a host")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, url.port or PORTS[url.scheme], type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as exc:
        raise httpx2.ConnectError(f"{url.host} cannot be found") from exc
    return [ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


def is_public(address: Address) -> bool:
    """Whether everybody's packets would reach it; where it carries an IPv4 address, that one decides."""
    address = _carried(address)
    is_unicast = address.version == 4 or address in UNICAST
    return is_unicast and address.is_global and not address.is_multicast and not address.is_reserved


def _carried(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (address, address))[1]
