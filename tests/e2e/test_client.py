"""The client at the real platform: every way to send is the same, and its page does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from bench.platform import Running
from segserve import AsyncClient, Client, DeadlineExceededError

pytestmark = [pytest.mark.platform, pytest.mark.core]

PAGE = Path(__file__).parents[2] / "docs/reference/client.md"
WAYS = {"HTTP/1.1": {}, "HTTP/2": {"http2": True}, "gzip": {"gzip": True}, "gRPC": {"transport": "grpc"}}


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_send_gets_the_same_answer(coins: Running, photo: bytes, way: str) -> None:
    options: Any = WAYS[way]
    pixels = np.zeros((300, 400, 3), np.uint8)
    with Client(coins.url) as plain, Client(coins.url, **options) as client:
        expected = plain.segment(photo, model="coins")
        found = client.segment(photo, model="coins", encoding="rle", request_id="mine")
        assert client.segment(pixels, model="coins").size == (300, 400)
    async with AsyncClient(coins.url, **options) as client_of_tasks:
        again = await client_of_tasks.segment(photo, model="coins")

    assert found.request_id == "mine"
    assert expected.revision == found.revision == again.revision
    for result in (found, again):
        np.testing.assert_array_equal(result.mask("coin"), expected.mask("coin"))  # type: ignore[union-attr]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_call_ends_at_its_deadline_and_the_next_is_answered(coins: Running, photo: bytes, transport: Any) -> None:
    with Client(coins.url, transport=transport) as client:
        client.model_info("coins")
        with pytest.raises(DeadlineExceededError):
            client.segment(photo, model="coins", timeout_s=0.002)
        assert client.segment(photo, model="coins").model == "coins"


def test_the_page_of_the_client_does_what_it_says(
    coins: Running, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("client.example")
    certificate.private_key_pem.write_to_path(tmp_path / "client.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "token.txt").write_text("abc\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSERVE_URL", coins.url)

    space: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)

    assert len(blocks) > 6
    assert space["result"].request_id == "order-1234"
    space["client"].close()
