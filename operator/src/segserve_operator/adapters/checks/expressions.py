"""CEL expressions of users, evaluated in a child process that can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from segserve_operator.adapters.checks.cel_process import READY
from segserve_operator.core.gates.checks import CheckError

TIMEOUT_S: Final = 5.0
"""Of expressions; it begins once their process has loaded what it needs."""
START_TIMEOUT_S: Final = 20.0
"""Of their process: Python may take seconds to start on a busy machine. The outbound client waits longer than both."""
MAX_CHILDREN: Final = 2
"""Children at the same time; each may take 192 MiB."""

_SLOTS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()
_CHILD: Final = Path(__file__).with_name("cel_process.py")


async def evaluate(
    expressions: Mapping[str, str], variables: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S
) -> dict[str, bool]:
    """Return the value of each CEL expression over `variables`, which are JSON values.

    Raises `CheckError` if one cannot be parsed, names an unknown variable, is neither true nor false, or exceeds the
    limits of time or memory.
    """
    question = json.dumps({"expressions": dict(expressions), "variables": dict(variables)}).encode()
    async with _slots():
        answer = await _ask_child(question, timeout_s)
    if "problem" in answer:
        raise CheckError(answer["problem"])
    values: dict[str, bool] = answer["values"]
    return values


async def _ask_child(question: bytes, timeout_s: float) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", str(_CHILD)),
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


def _slots() -> asyncio.Semaphore:
    """Return the semaphore of this event loop."""
    loop = asyncio.get_running_loop()
    return _SLOTS.setdefault(loop, asyncio.Semaphore(MAX_CHILDREN))
