"""Child process that evaluates CEL expressions: a JSON question on stdin, a JSON answer on stdout.

CEL always terminates, but a short expression can fill any memory, and block its process for seconds; here it only costs
a child with limits. It runs as a file, so that only the library is imported.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, Final

MEMORY_BYTES: Final = 1024 * 2**20
CPU_S: Final = 2


def main() -> None:
    """Answer one question: `{"expressions": {name: text}, "variables": {name: value}}`.

    The answer is `{"values": {name: bool}}`, or `{"problem": text}` if one is not an expression or not a boolean.
    """
    question = json.load(sys.stdin)
    limit_resources()
    json.dump(answer(question["expressions"], question["variables"]), sys.stdout)


def limit_resources() -> None:
    """Bound this process's memory and time, if the system can."""
    import resource

    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


def answer(expressions: dict[str, str], variables: dict[str, Any]) -> dict[str, Any]:
    """Return each expression's value, or the first one's problem."""
    from cel_expr_python import cel

    environment = cel.NewEnv(variables={name: _type_of(cel.Type, value) for name, value in variables.items()})
    values = {}
    for name, text in expressions.items():
        try:
            value = environment.compile(text).eval(data=variables)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return {"problem": f"{name}: {_brief(str(error))}"}
        if value.type() != cel.Type.BOOL:
            actual = _brief(str(value.value())) if value.type() == cel.Type.ERROR else f"type {value.type().name()}"
            return {"problem": f"{name}: {actual}; expected true or false"}
        values[name] = bool(value.value())
    return {"values": values}


def _type_of(types: Any, value: Any) -> Any:
    if isinstance(value, list):
        return types.List(types.DYN)
    # A service may answer with any type, and with another one each time.
    return types.INT if isinstance(value, int) and not isinstance(value, bool) else types.DYN


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]


if __name__ == "__main__":
    main()
