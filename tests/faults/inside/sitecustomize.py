"""Makes the step `post` of a revision misbehave as a plan says: a Triton's Python reads this before any step is loaded.

The plan is JSON, from a revision's name to those fields of `faults.plan.Fault` that are not as by default. The
variable FAULTS holds it, or names its file, which is read again whenever it has changed: a fault begins, grows and ends
while requests come. A pool cannot set that variable, but KMP_AFFINITY, which no program here reads. Without both
nothing here does anything.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
import zlib
from pathlib import Path

PLAN = os.environ.get("FAULTS") or os.environ.get("KMP_AFFINITY")
STEP = "segserve_builder.backend.post"
WELL = {}
FOR_EVER_S = 1e6
LOST = -1e4


class Plan:
    """What is wrong with one revision at this moment."""

    def __init__(self, text, revision):
        self._revision = revision
        self._path = None if text.startswith("{") else Path(text)
        self._stamp, self._faults = None, json.loads(text) if self._path is None else {}

    def now(self):
        if self._path is not None:
            stamp = self._path.stat().st_mtime_ns if self._path.exists() else None
            if stamp != self._stamp:
                self._stamp = stamp
                self._faults = json.loads(self._path.read_text()) if stamp is not None else {}
        return self._faults.get(self._revision, WELL)


def faulty(step):
    """Return the step's class with all that may go wrong with it."""
    return type("Faulty", (_Faulty, step), {})


class _Faulty:
    """Of a step by itself, and of one that is all of a model."""

    _is_apart = False

    def initialize(self, args):
        self._is_apart = True
        super().initialize(args)

    def open(self, options):
        super().open(options)
        self._plan = Plan(PLAN, self._revision[0].decode())
        self._served, self._leaked, self._fault = 0, [], WELL
        self._right = self._postprocess.value
        self._postprocess.value = self._spoiled
        time.sleep(self._plan.now().get("load_s", 0))

    def execute(self, requests):
        responses = super().execute(requests)
        delay_s = self._fault.get("delay_ms", 0) / 1000
        return _sent_later(requests, responses, delay_s) if delay_s else responses

    def answer(self, request, *place):
        fault = self._plan.now()
        self._served += 1
        self._fault = fault if self._served > fault.get("after", 0) else WELL
        self._harm_all()
        if not self._is_apart:  # others are answered meanwhile, in other threads
            time.sleep(self._fault.get("delay_ms", 0) / 1000)
        return super().answer(request, *place)

    def _harm_all(self):
        if self._fault.get("hang"):
            time.sleep(FOR_EVER_S)
        if 0 < self._fault.get("crash_after", 0) <= self._served - self._fault.get("after", 0):
            os.kill(os.getppid(), signal.SIGKILL)
        self._leaked.append(os.urandom(int(self._fault.get("leak_mib", 0) * 2**20)))

    def _spoiled(self, raw, *others):
        if _draw(raw) < self._fault.get("errors", 0):
            raise RuntimeError("this picture is one of those that fail")
        return self._right({name: self._array(array) for name, array in raw.items()}, *others)

    def _array(self, logits):
        import numpy as np

        if self._fault.get("labels") == "shifted":
            return np.roll(logits, logits.shape[-1] // 3, axis=-1)
        if self._fault.get("labels") == "inverted":
            return -logits
        if (lost := self._fault.get("lost_class", -1)) >= 0:
            logits = np.array(logits)
            logits[:, lost] = LOST
        return logits


def _draw(raw):
    """Return a number from 0 to 1 that is the picture's own: asked again, it fares as before."""
    import numpy as np

    bits = b"".join(np.packbits(array > 0).tobytes() for array in raw.values())
    return (zlib.crc32(bits) % 10_000) / 10_000


def _sent_later(requests, responses, delay_s):
    """Answer after a pause in which the step takes others on: a slow server is not one that answers one by one."""
    import triton_python_backend_utils as pb_utils

    for request, response in zip(requests, responses, strict=True):
        arguments = (response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        threading.Timer(delay_s, request.get_response_sender().send, arguments).start()


class Finder(importlib.abc.MetaPathFinder):
    """Gives the step's module with the class replaced."""

    def find_spec(self, name, path, target=None):
        if name != STEP:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_and_replace(module):
            run(module)
            module.TritonPythonModel = faulty(module.TritonPythonModel)

        spec.loader.exec_module = run_and_replace
        return spec


if PLAN:
    sys.meta_path.insert(0, Finder())
