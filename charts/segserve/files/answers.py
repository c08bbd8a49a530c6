"""Waits until each address answers 200: `answers.py SECONDS URL...`."""

import sys
import time
import urllib.request


def asked(url: str) -> str:
    """Return what was wrong with the answer, nothing where it was 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return "" if answer.status == 200 else str(answer.status)
    except OSError as error:  # that of a status too
        return str(error)


def waited(url: str, deadline: float) -> bool:
    """Ask until there is a 200 or no time left, and tell whether there was one."""
    while (wrong := asked(url)) and time.monotonic() < deadline:
        time.sleep(1)
    print(f"{url}: {wrong or 'ok'}", flush=True)
    return not wrong


end = time.monotonic() + float(sys.argv[1])
answers = [waited(url, end) for url in sys.argv[2:]]  # all of them are told
sys.exit(0 if all(answers) else 1)
