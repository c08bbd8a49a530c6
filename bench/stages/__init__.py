"""Stages beside named peers: `python -m bench.stages` measures them in turns, in one process."""
