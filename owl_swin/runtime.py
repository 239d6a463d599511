"""Where a model runs."""

import torch

from owl_swin.errors import ConfigError


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is an accelerator where there is one, else the CPU. Never a silent fallback."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen
