"""CEL expressions of users, evaluated in a child process that can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from segserve_operator.core.gates.checks import CheckError

TIMEOUT_S: Final = 5.0
_CHILD: Final = Path(__file__).with_name("cel_process.py")


async def evaluate(
    expressions: Mapping[str, str], variables: Mapping[str, Any], timeout_s: float = TIMEOUT_S
) -> dict[str, bool]:
    """Return the value of each CEL expression over `variables`, which are JSON values.

    Raises `CheckError` if one cannot be parsed, names an unknown variable, is neither true nor false, or exceeds the
    limits of time or memory.
    """
    question = json.dumps({"expressions": dict(expressions), "variables": dict(variables)}).encode()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_CHILD)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate(question)
    except TimeoutError:
        raise CheckError(f"the expressions were not evaluated within {timeout_s:.3g} s") from None
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        raise CheckError("the expressions need more time or memory than they are given")
    answer: dict[str, Any] = json.loads(output)
    if "problem" in answer:
        raise CheckError(answer["problem"])
    values: dict[str, bool] = answer["values"]
    return values
