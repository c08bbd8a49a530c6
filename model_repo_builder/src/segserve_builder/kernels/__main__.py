"""Compiles kernels into their cache, all unless modules are named: `python -m segserve_builder.kernels [MODULE...]`."""

import argparse

from segserve_builder.kernels.build import compile_modules

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m segserve_builder.kernels", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="Modules of kernels. Default: all.")
    parser.add_argument("--report", action="store_true", help="Print a line with how many are compiled after each.")
    arguments = parser.parse_args()
    if arguments.report:
        compile_modules(arguments.modules or None, lambda done, total: print(f"{done}/{total}", flush=True))
    else:
        compile_modules(arguments.modules or None)
