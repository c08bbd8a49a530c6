"""The command line as somebody uses it who has a cluster's kubeconfig."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import kind
from fakes.cluster import Cluster
from fakes.waiting import until


@dataclass(frozen=True)
class Terminal:
    """A shell with a cluster's kubeconfig and `variables`, in which `segserve` and kubectl are installed."""

    cluster: Cluster
    namespace: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, program: tuple[str, ...] = (sys.executable, "-m", "segserve_platform.cli"),
                 stdin: str = "") -> subprocess.CompletedProcess[str]:  # fmt: skip
        command = [*program, *map(str, arguments), "--namespace", self.namespace]
        return subprocess.run(command, env=self.environment, input=stdin, capture_output=True, text=True, check=False)

    def watch(self, *arguments: str, pattern: str, folder: Path) -> str:
        """Return what a command that has no end has printed, once that matches; `folder` keeps it."""
        command = [sys.executable, "-m", "segserve_platform.cli", *arguments, "--namespace", self.namespace]
        printed = folder / "printed"
        with printed.open("w") as output, subprocess.Popen(command, env=self.environment, stdout=output) as child:
            try:
                until(lambda: re.search(pattern, printed.read_text(), re.MULTILINE), f"{pattern!r} is printed")
            finally:
                child.terminate()
        return printed.read_text()

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SEGSERVE_")}
        tools = (str(kind.KUBECTL.parent), str(Path(sys.executable).parent), os.environ["PATH"])
        paths = os.pathsep.join(tools)
        # kubectl keeps a cache in the home.
        home = tempfile.gettempdir()
        own = {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": paths, "COLUMNS": "200", "HOME": home}
        return {**kept, **own, **self.variables}
