"""Networks in TorchScript that write a file of whoever opens them."""

from __future__ import annotations

import torch


class OnLoad(torch.nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.zeros(1)
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        # type: () -> Tuple[Tensor, bool]
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state):  # type: ignore[no-untyped-def]
        # type: (Tuple[Tensor, bool]) -> None
        written = torch.from_file("/tmp/segserve-pwned", True, 3, dtype=torch.uint8)
        written.copy_(torch.tensor([80, 87, 78], dtype=torch.uint8))
        self.w = written
        self.training = state[1]


class OnCall(torch.nn.Module):
    """Writes a file when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = torch.from_file("/tmp/segserve-pwned", True, 3, dtype=torch.uint8)
        return x + written.copy_(torch.tensor([80, 87, 78], dtype=torch.uint8))[0]
