# %% [markdown]
# # Call segserve from an asyncio service
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# `AsyncClient` has the same methods as `Client`, to be awaited. This small web service counts the coins in each image
# that is posted to it. It creates one client at start-up and shares it between all requests.
#
# In a notebook, which runs an event loop of its own, replace `asyncio.run(main())` by `await main()`.

# %%
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from segserve import AsyncClient, BadRequestError, InstanceResult, OverloadedError

photo = Path("examples/coins/coins.png")


async def count_coins(client: AsyncClient, body: bytes) -> tuple[int, dict[str, object]]:
    """Return the status and JSON body; a FastAPI, aiohttp or Starlette handler looks the same."""
    try:
        result = await client.segment(body, model="coins-instances", expect=InstanceResult, timeout_s=20)
    except BadRequestError as error:
        return 400, {"error": error.message}
    except OverloadedError:
        return 503, {"error": "try again later"}
    return 200, {"coins": len(result.instances)}


# %% [markdown]
# The rest is a minimal HTTP server from the standard library.


# %%
async def handle(client: AsyncClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    status, answer = await count_coins(client, await reader.readexactly(length))
    body = json.dumps(answer).encode()
    writer.write(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
    await writer.drain()
    writer.close()


async def main() -> None:
    async with AsyncClient() as client:
        server = await asyncio.start_server(lambda *streams: handle(client, *streams), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, httpx.AsyncClient(timeout=30) as browser:
            bodies = [photo.read_bytes()] * 4 + [b"no image"]
            answers = await asyncio.gather(*(browser.post(url, content=body) for body in bodies))
        for answer in answers:
            print(answer.status_code, sorted(answer.json()))


asyncio.run(main())
# > 200 ['coins']
# > 200 ['coins']
# > 200 ['coins']
# > 200 ['coins']
# > 400 ['error']

# %% [markdown]
# `segment_many` also accepts an asynchronous iterator, such as a queue or a camera. `aclosing` cancels outstanding
# requests immediately if you leave the loop early.


# %%
async def first_three() -> None:
    from contextlib import aclosing

    async def images() -> AsyncIterator[Path]:
        while True:
            yield photo

    async with AsyncClient() as client, aclosing(client.segment_many(images(), model="coins", in_flight=2)) as results:
        number = 0
        async for result in results:
            print(result.size)
            number += 1
            if number == 3:
                break


asyncio.run(first_three())
# > (303, 384)
# > (303, 384)
# > (303, 384)
