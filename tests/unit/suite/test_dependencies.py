"""What the product imports is declared: a package that only comes along with another may leave with it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

pytestmark = pytest.mark.same

ROOT = Path(__file__).parents[3]
SOURCES = [ROOT / "client/src", ROOT / "model_repo_builder/src", ROOT / "operator/src"]
BUILDER = ROOT / "model_repo_builder/src/segserve_builder"
OWN = {path.name for source in SOURCES for path in source.iterdir()}

# Extras that are no part of the product.
DEVELOPMENT = ("dev", "docs", "test-")
# Triton brings it along, for the Python models that it runs.
GIVEN_BY_TRITON = {"triton_python_backend_utils"}
# Type checkers have it in their own stubs; nothing imports it at run time.
OF_TYPE_CHECKERS = {"typing_extensions"}
# What each lock installs for: programs, and what others import to run them.
PROGRAMS = {
    # The operator, its worker, the gateways' sidecar, the services of copies with a worker each, and the page.
    "operator": (
        "segserve_operator.main",
        "segserve_operator.adapters.outbound.__main__",
        "segserve_operator.adapters.outbound.child",
        "segserve_operator.gateway_sync.__main__",
        "segserve_builder.capture.__main__",
        "segserve_builder.capture.worker",
        "segserve_builder.comparator.__main__",
        "segserve_builder.comparator.worker",
        "segserve_platform.cli.app",
        "segserve_platform.platforms.cluster.platform",
        "segserve_ui.app",
        "segserve_ui.server",
    ),
    # Beside Triton, and in its Python steps.
    "server": (
        "segserve_builder.cluster.agent",
        "segserve_builder.cluster.triton",
        "segserve_builder.kernels.__main__",
        *(f"segserve_builder.stages.{path.stem}" for path in sorted((BUILDER / "stages").glob("[!_]*.py"))),
        *(f"segserve_builder.steps.{path.stem}" for path in sorted((BUILDER / "steps").glob("[!_]*.py"))),
    ),
    "local": (
        "segserve_platform.cli.app",
        "segserve_platform.cli.init.trial_process",
        "segserve_operator.local_platform.__main__",
        "segserve_builder.agent.__main__",
    ),
}
# They write files of the repository.
OF_DEVELOPMENT = {"segserve_operator.api.crd", "segserve_operator.api.reference"}
# What no program of a lock has.
HIDDEN = {"operator": {"numba", "onnx", "pytest"}, "server": {"kopf", "envoy", "pytest"}, "local": {"kopf", "pytest"}}
# Functions import these where they are there, or say what to install; Envoy's program is on a machine alone.
OPTIONAL = {
    "envoy.py: envoy",
    *("telemetry.py: opentelemetry", "telemetry.py: opentelemetry.trace"),
    *("base.py: pandas", "base.py: supervision", "objects.py: supervision"),
}
IMPORTING = """
import importlib, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(name)
hidden = set(sys.argv[1].split())
sys.meta_path.insert(0, Hidden())
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*(module.__file__ for name, module in sorted(sys.modules.items()) if name.startswith("segserve")))
"""
# Several distributions share this namespace.
NAMESPACES = {"google": {"google.protobuf": "protobuf"}, "opentelemetry": {"opentelemetry": "opentelemetry-api"}}


def imported() -> dict[str, set[str]]:
    """Return the distributions that the sources import, with the files that do."""
    distributions = packages_distributions()
    files: defaultdict[str, set[str]] = defaultdict(set)
    for source in SOURCES:
        for path in source.rglob("*.py"):
            for module in modules_of(ast.parse(path.read_text())):
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in OWN | GIVEN_BY_TRITON | OF_TYPE_CHECKERS:
                    continue
                if top in NAMESPACES:
                    names = [name for package, name in NAMESPACES[top].items() if module.startswith(package)]
                else:
                    names = distributions[top]
                files[names[0] if len(names) == 1 else top].add(str(path.relative_to(ROOT)))
    return files


def modules_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"]]
    for extra, packages in extras.items():
        if not extra.startswith(DEVELOPMENT):
            requirements += packages
    return {normalised(re.split(r"[\[<>=~!; ]", requirement)[0]) for requirement in requirements}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_of_a_declared_dependency() -> None:
    undeclared = {name: sorted(files) for name, files in imported().items() if normalised(name) not in declared()}

    assert len(imported()) > 30
    assert undeclared == {}


def test_every_version_of_a_dependency_is_in_the_constraints() -> None:
    pinned = {normalised(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}

    assert declared() - pinned - {"segserve"} == set()


def test_every_program_is_of_a_lock() -> None:
    programs = {
        ".".join(path.relative_to(source).with_suffix("").parts)
        for source in SOURCES
        for path in source.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }

    assert programs - OF_DEVELOPMENT - {name for names in PROGRAMS.values() for name in names} == set()


@pytest.mark.parametrize("lock", PROGRAMS)
def test_a_lock_has_what_its_programs_import(lock: str) -> None:
    text = (ROOT / f"images/{lock}.lock").read_text()
    locked = {normalised(name) for name in re.findall(r"^(\S+)==", text, re.M)}
    hidden = [
        module
        for module, names in packages_distributions().items()
        if module not in OWN and not locked & {normalised(name) for name in names}
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, " ".join(hidden), *PROGRAMS[lock]], capture_output=True, text=True
    )

    assert HIDDEN[lock] <= set(hidden)
    assert done.returncode == 0, done.stderr
    # Functions import on their own.
    files = [path for path in done.stdout.split() if Path(path).suffix == ".py"]
    missing = {
        f"{Path(path).name}: {module}"
        for path in files
        for module in modules_of(ast.parse(Path(path).read_text()))
        if module.partition(".")[0] in hidden
    }
    assert len(files) > 100
    assert missing - OPTIONAL == set()


def test_programs_beside_the_product_import_what_it_has() -> None:
    """Neither mypy nor a quick test covers all programs of `examples` and `bench`."""
    missing = []
    for path in [*ROOT.glob("examples/**/*.py"), *ROOT.glob("bench/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OWN:
                names = [alias.name for alias in node.names]
                module = __import__(node.module, fromlist=names)  # also modules of a package
                missing += [f"{path.name}: {node.module}.{name}" for name in names if not hasattr(module, name)]

    assert missing == []


def test_what_the_demo_installs_has_digests_and_the_versions_of_the_constraints() -> None:
    text = (ROOT / "images/local.lock").read_text()
    locked = {normalised(name): version for name, version in re.findall(r"^(\S+)==(\S+) \\$", text, re.M)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalised(name): version for name, _, version in (line.partition("==") for line in lines)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {normalised(re.split(r"[\[<>=~!; ]", each)[0]) for each in extras["local"]} - {"segserve"}

    assert needed <= locked.keys()
    assert {name: version for name, version in locked.items() if pinned.get(name, version) != version} == {}
    assert text.count("==") == len(locked)


def test_actions_of_workflows_are_pinned_by_commit() -> None:
    used = re.findall(r"uses: (\S+)", "".join(path.read_text() for path in (ROOT / ".github").rglob("*.yml")))

    assert len(used) > 20
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []
