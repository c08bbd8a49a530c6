"""The models of Triton's Python backend, thin shims around the steps."""
