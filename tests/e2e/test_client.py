"""The client at the real platform: every way to send is the same, and its page does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
from PIL import Image

from bench.platform import Running
from segserve import Client, DeadlineExceededError

pytestmark = [pytest.mark.platform, pytest.mark.core]

PAGE = Path(__file__).parents[2] / "docs/reference/client.md"


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_call_ends_at_its_deadline_and_the_next_is_answered(coins: Running, photo: bytes, transport: Any) -> None:
    with Client(coins.url, transport=transport) as client:
        client.model_info("coins")
        # It takes hundreds of times as long: no answer comes first because the caller waited for a core.
        large = Image.new("L", (1500, 1500))
        with pytest.raises(DeadlineExceededError):
            client.segment(large, model="coins", timeout_s=0.01)
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
