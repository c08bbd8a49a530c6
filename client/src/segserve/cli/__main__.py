"""Makes `python -m segserve.cli` the same as `segserve`."""

from segserve.cli.app import main

main()
