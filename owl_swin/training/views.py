"""Random views of pictures, as tensors: which part of a picture is shown, and in what colours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.frame import normalise


def random_theta(chances: Tensor) -> Tensor:
    """Which part of a picture each of n views shows, as ``affine_grid`` takes it [n, 2, 3], by uniform numbers [n, 5]:
    30 to 100 % of the area, sides 3:4 to 4:3, half of them mirrored."""
    side = (0.3 + 0.7 * chances[:, 0]).sqrt()
    aspect = (0.28 * chances[:, 1] - 0.14).exp()
    scale_x, scale_y = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    flip = torch.where(chances[:, 2] < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(chances), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale_x * flip, scale_y
    theta[:, 0, 2] = (1 - scale_x) * (2 * chances[:, 3] - 1)
    theta[:, 1, 2] = (1 - scale_y) * (2 * chances[:, 4] - 1)
    return theta


def random_views(images: Tensor, theta: Tensor, size: int, chances: Tensor) -> Tensor:
    """The parts ``theta`` of uint8 [n, 3, S, S], colours changed by uniform numbers [n, 3]: normalised pixels
    [n, 3, size, size]."""
    finer = max(1, images.shape[-1] // size)  # shrinking by sampling alone would leave pixels out
    grid = F.affine_grid(theta, [len(images), 3, finer * size, finer * size], align_corners=False)
    views = F.grid_sample(
        images.float().div_(255), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return normalise(jitter_colours(F.avg_pool2d(views, finer), chances))


def jitter_colours(views: Tensor, chances: Tensor) -> Tensor:
    """Saturation, contrast and brightness of pixels [n, 3, H, W] in [0, 1] changed by uniform numbers [n, 3]."""
    saturation, contrast, brightness = chances.to(views)[:, :, None, None, None].unbind(1)
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * (0.6 + 0.8 * saturation)
    mean = grey.mean((2, 3), keepdim=True)
    views = mean + (views - mean) * (0.6 + 0.8 * contrast)
    return (views * (0.7 + 0.6 * brightness)).clamp_(0, 1)
