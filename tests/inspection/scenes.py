"""Drawn scenes that differ from each other, and photographs of them in bursts."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter


def scene(seed: int, size: int = 160) -> Image.Image:
    """Random shapes on a textured ground."""
    rng = np.random.default_rng([seed, 7])
    ground = rng.integers(0, 256, (10, 10, 3), np.uint8)
    image = Image.fromarray(ground).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        corners = rng.integers(0, size, (rng.integers(3, 6), 2))
        draw.polygon([tuple(map(int, corner)) for corner in corners], _color(rng))
        x, y, side = rng.integers(0, size - 20), rng.integers(0, size - 20), 40
        draw.ellipse(
            [int(x), int(y), int(x + rng.integers(8, side)), int(y + side)], _color(rng)
        )
    return image.filter(ImageFilter.GaussianBlur(1))


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def burst(image: Image.Image, count: int, seed: int = 0) -> list[Image.Image]:
    """Photographs of a scene: other crops, other light, noise."""
    rng = np.random.default_rng([seed, 8])
    found = []
    for _ in range(count):
        share = rng.uniform(0.86, 0.97)
        width, height = (round(share * side) for side in image.size)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        part = image.crop((left, top, left + width, top + height))
        part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.85, 1.15))
        noise = rng.normal(0, 4, (height, width, 3))
        pixels = np.clip(np.asarray(part) + noise, 0, 255).astype(np.uint8)
        found.append(Image.fromarray(pixels))
    return found


def arrays(images: list[Image.Image]) -> list[np.ndarray]:
    """Their pixels."""
    return [np.asarray(image) for image in images]
