"""Compiles every kernel into its cache: `python -m segserve_builder.kernels`, once after installation."""

from segserve_builder.kernels.build import compile_all

if __name__ == "__main__":
    compile_all()
