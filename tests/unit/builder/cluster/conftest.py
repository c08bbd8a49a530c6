"""Tests of what needs the extra `cluster`; an environment without it leaves them to the others."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("kubernetes") else ["test_*.py"]
