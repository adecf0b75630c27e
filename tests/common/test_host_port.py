"""``host:port`` taken apart and put together again, IPv6 too."""

import pytest

from matl_common.host_port import dialled_from_here, join_address, split_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:8470", "127.0.0.1", 8470),
        ("matl.example:0", "matl.example", 0),
        ("[::1]:9470", "::1", 9470),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize(
    ("listening", "dialled"),
    [
        ("0.0.0.0:8470", "127.0.0.1:8470"),
        (":8470", "127.0.0.1:8470"),
        ("[::]:8470", "[::1]:8470"),
        ("[2001:db8::1]:8470", "[2001:db8::1]:8470"),
        ("matl.example:8470", "matl.example:8470"),
    ],
)
def test_what_listens_everywhere_is_dialled_on_loopback(listening: str, dialled: str) -> None:
    assert dialled_from_here(listening) == dialled
