"""Makes `python -m segserve_platform.cli` the same as `segserve`."""

from segserve_platform.cli.app import main

main()
