"""Where a pool's servers fetch from on a cluster: a bucket that a Secret opens, and nothing that is not allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fakes.callers import PHOTO
from fakes.cluster import Cluster, Json
from fakes.cluster_models import EXAMPLES, model, pool
from fakes.object_servers import BUCKET, ObjectServer, s3_server
from fakes.served_namespace import ServedNamespace
from segserve import Client

pytestmark = [pytest.mark.cluster, pytest.mark.needs("peers")]

COINS = EXAMPLES / "coins"
SECRET = "bucket-reader"


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Iterator[ObjectServer]:
    """The coins' example as a bucket, which answers nobody without a signature."""
    with s3_server(cluster.host) as server:
        for path in (COINS / "coins-unet.onnx", *(COINS / "golden").rglob("*")):
            if path.is_file():
                server.put(path.relative_to(COINS).as_posix(), path.read_bytes())
        yield server


@pytest.fixture(scope="module")
def pool_of_bucket(served: ServedNamespace, bucket: ObjectServer) -> Iterator[str]:
    """A pool of one server whose artifacts are in the bucket."""
    artifacts = {
        "base": f"s3://{BUCKET}/",
        "endpoints": {"s3": bucket.endpoint},
        "credentials": [{"scheme": "s3", "host": BUCKET, "secretRef": {"name": SECRET}}],
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": bucket.keys}
    served.apply(secret, pool("bucket", replicas=1, gateway={"replicas": 1}, artifacts=artifacts))
    yield "bucket"
    served.delete("tpool", "bucket", wait=False)


@contextmanager
def applied(served: ServedNamespace, manifest: Json) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    served.apply(manifest)
    yield name
    served.delete("segm", name)


def test_a_bucket_that_a_secret_opens_is_served(served: ServedNamespace, pool_of_bucket: str) -> None:
    with applied(served, model("coins", name="bucket-coins", pool=pool_of_bucket)) as name:
        served.wait_ready(name)

        verified, proved = (served.condition(name, kind) for kind in ("ArtifactVerified", "GoldenPassed"))
        with Client(served.url(pool_of_bucket)) as client:
            result = client.segment(PHOTO, model=name)
        stable = served.stable(name)

    assert (verified or {})["reason"] == "DigestMatches"
    assert (proved or {})["reason"] == "AnswersMatch"
    assert result.revision == stable


@pytest.mark.parametrize("host", ["10.11.12.13", "169.254.169.254", "127.0.0.1:8010"])
def test_an_address_that_is_not_public_is_denied_unless_the_pool_allows_it(
    served: ServedNamespace, pool_of_bucket: str, host: str
) -> None:
    other = model("coins", name="elsewhere", pool=pool_of_bucket)
    # Another digest: what is in the cache already is not asked for.
    other["spec"]["artifact"] |= {"uri": f"http://{host}/model.onnx", "sha256": "0" * 64}

    with applied(served, other) as name:
        said = served.becomes(name, "ArtifactVerified", "False", "SourceDenied")

    assert host.partition(":")[0] in said["message"]
