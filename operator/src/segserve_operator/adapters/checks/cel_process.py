"""Child process that evaluates CEL expressions: `READY` on stdout, a JSON question on stdin, a JSON answer on stdout.

CEL always terminates, but a short expression can fill any memory, and block its process for seconds; here it only costs
a child with limits. It runs as a file, so that only the library is imported, and once that is done it opens no file and
no connection any more: no token of the operator, whatever an expression makes of the library.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from typing import Any, Final

MEMORY_BYTES: Final = 192 * 2**20
CPU_S: Final = 2
READY: Final = "\n"
"""Written once the library is loaded: what follows is the expressions' own time."""
_KEY: Final = re.compile(r'not found in map : "(.*)"')
_KINDS: Final = (
    "not found in map",
    "divide by zero",
    "modulus by zero",
    "overflow",
    "No matching overloads found",
    "cannot convert",
    "conversion",
    "Index error",
    "invalid regular expression",
    "duplicate key",
    "budget",
)
"""Errors of evaluations: a whole text could quote the answer, which the author of a gate may not be allowed to read."""


def main() -> None:
    """Answer one question: `{"expressions": {name: text}, "variables": {name: value}}`.

    The answer is `{"values": {name: bool}}`, or `{"problem": text}` if one is not an expression or not a boolean.
    """
    from cel_expr_python import cel

    limit_resources()
    print(end=READY, flush=True)
    question = json.load(sys.stdin)
    json.dump(answer(cel, question["expressions"], question["variables"]), sys.stdout)


def limit_resources() -> None:
    """Bound this process's memory, time and files (no more are opened, nor processes started), if the system can."""
    import resource

    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


def answer(cel: Any, expressions: dict[str, str], variables: dict[str, Any]) -> dict[str, Any]:
    """Return each expression's value, or the first one's problem, which shows nothing of the variables."""
    environment = cel.NewEnv(variables={name: _type_of(cel.Type, value) for name, value in variables.items()})
    values = {}
    for name, text in expressions.items():
        try:
            compiled = environment.compile(text)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return {"problem": f"{name}: {_brief(str(error))}"}
        try:
            value = compiled.eval(data=variables)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return {"problem": f"{name}: {_shown(str(error), text)}"}
        if value.type() != cel.Type.BOOL:
            is_error = value.type() == cel.Type.ERROR
            actual = _shown(str(value.value()), text) if is_error else f"type {value.type().name()}"
            return {"problem": f"{name}: {actual}; expected true or false"}
        values[name] = bool(value.value())
    return {"values": values}


def _type_of(types: Any, value: Any) -> Any:
    if isinstance(value, list):
        return types.List(types.DYN)
    # A service may answer with any type, and with another one each time.
    return types.INT if isinstance(value, int) and not isinstance(value, bool) else types.DYN


def _shown(error: str, expression: str) -> str:
    """Return what an error says without what it quotes of the answer, unless the expression has that as well."""
    key = _KEY.search(error)
    if key is not None and key[1] in expression:
        return f'not found in map : "{_brief(key[1])}"'
    return next((kind for kind in _KINDS if kind in error), "it does not fit the answer")


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]


if __name__ == "__main__":
    main()
