"""Tenants' services asked by this process: a worker without credentials, and tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import httpx

from segserve_common.http.guard import body_within, send_async, single_use_transport
from segserve_common.http.urls import AddressCheck, RefusedError, RequestError, Url, UrlError
from segserve_common.interpreter import python
from segserve_operator.adapters.checks.cel_process import READY
from segserve_operator.adapters.checks.context import Question, ServiceVerdict
from segserve_operator.adapters.checks.promql import SHOWN, numbers_of
from segserve_operator.core.gates.checks import CheckError

TIMEOUT_S: Final = 5.0
"""Of expressions; it begins once their process has loaded what it needs."""
START_TIMEOUT_S: Final = 20.0
"""Of their process: Python may take seconds to start on a busy machine. The outbound client waits longer than both."""
MAX_CHILDREN: Final = 2
"""Children at the same time; each may take 192 MiB."""
_SLOTS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()
_CHILD: Final = Path(__file__).with_name("cel_process.py")
MAX_BYTES: Final = 64 * 1024


class DirectServices:
    """Asks services at the addresses that `check_address` allows.

    A pool's expressions are evaluated one after the other, so that no pool holds up all others.
    """

    def __init__(self, check_address: AddressCheck) -> None:
        self._check_address = check_address
        self._evaluations: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, question: Question) -> ServiceVerdict:
        """Send a question and evaluate its expressions; raises `CheckError` if that is no verdict."""
        is_query = question.kind == "promql"
        reply = await call(
            "POST",
            question.url,
            check_address=self._check_address,
            timeout_s=question.timeout_s,
            parameters={name: str(value) for name, value in question.fields.items()} if is_query else None,
            payload=None if is_query else question.fields,
        )
        if is_query:
            results = numbers_of(reply.status, reply.body)
            variables: dict[str, Any] = {"result": results}
            shown = f"result {', '.join(f'{number:.6g}' for number in results[:SHOWN])}"
        else:
            # Nothing of the body is shown: whoever configures a gate need not be allowed to read what answers it.
            variables, shown = {"status": reply.status, "body": reply.body}, f"status {reply.status}"
        expressions = {"passCondition": question.pass_condition, "breachCondition": question.breach_condition}
        evaluation = self._evaluations.setdefault(question.pool, asyncio.Lock())
        async with evaluation:
            values = await evaluate(expressions, variables)
        return ServiceVerdict(values["passCondition"], values["breachCondition"], shown)


async def evaluate(
    expressions: Mapping[str, str], variables: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S
) -> dict[str, bool]:
    """Return the value of each CEL expression over `variables`, which are JSON values.

    Raises `CheckError` if one cannot be parsed, names an unknown variable, is neither true nor false, or exceeds the
    limits of time or memory.
    """
    question = json.dumps({"expressions": dict(expressions), "variables": dict(variables)}).encode()
    loop = asyncio.get_running_loop()
    async with _SLOTS.setdefault(loop, asyncio.Semaphore(MAX_CHILDREN)):
        answer = await _ask_child(question, timeout_s)
    if "problem" in answer:
        raise CheckError(answer["problem"])
    values: dict[str, bool] = answer["values"]
    return values


async def _ask_child(question: bytes, timeout_s: float) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *python("-I", str(_CHILD)),
        env={},
        cwd="/",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    late = f"the process of the expressions did not start within {START_TIMEOUT_S:.3g} s"
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await child.stdout.read(len(READY))
        late = f"the expressions were not evaluated within {timeout_s:.3g} s"
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate(question)
    except TimeoutError:
        raise CheckError(late) from None
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        raise CheckError("the expressions need more time or memory than they are given")
    answer: dict[str, Any] = json.loads(output)
    return answer


@dataclass(frozen=True, slots=True)
class Reply:
    """The response of a service; `body` is its JSON, or its text if it is not JSON."""

    status: int
    body: Any


async def call(
    method: str,
    url: str,
    *,
    check_address: AddressCheck,
    timeout_s: float,
    parameters: Mapping[str, str] | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Reply:
    """Send `parameters` as a form, or `payload` as JSON, and read the whole response.

    Redirects are not followed, proxies not used. Raises `CheckError` if the target is refused, does not answer within
    `timeout_s`, or answers with more than 64 KiB.
    """
    try:
        target = Url.normalised(url)
    except UrlError as error:
        raise CheckError(str(error)) from error
    # Errors name scheme and host alone: the rest of a URL may hold a secret.
    shown = f"{target.scheme}://{target.netloc}"
    try:
        async with asyncio.timeout(timeout_s), single_use_transport(target) as transport:
            response = await send_async(
                transport,
                method,
                target,
                check_address,
                {"Accept-Encoding": "identity"},  # a small body could decompress to a very large one
                timeout_s,
                data=parameters or None,
                json=payload,
            )
            try:
                return Reply(response.status_code, _parsed(await body_within(response, MAX_BYTES)))
            finally:
                await response.aclose()
    except TimeoutError:
        raise CheckError(f"{shown} did not answer within {timeout_s:.3g} s") from None
    except RequestError as error:
        raise CheckError(f"{shown}: {error}") from error
    except RefusedError as error:
        raise CheckError(f"not asked: {error}") from error
    except (httpx.HTTPError, OSError) as error:
        raise CheckError(f"{shown} cannot be asked: {error or type(error).__name__}") from error


def _parsed(body: bytes) -> Any:
    text = body.decode(errors="replace")
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
