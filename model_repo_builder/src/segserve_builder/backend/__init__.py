"""The thin shims between Triton's Python backend and the steps' own code."""
