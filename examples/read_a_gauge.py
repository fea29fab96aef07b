"""
Regression: read a gauge
========================

`CNNCodeRegressor` predicts numbers instead of classes. The images are drawings of a
gauge whose needle shows 0 to 100, on a photograph; the regressor learns to read it.
The direction of a line is something that earlier layers see and last layers forget: one
half-way through the backbone is chosen.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from sklearn.metrics import mean_absolute_error, r2_score

from sk_cnncodes import CNNCodeRegressor

rng = np.random.default_rng(0)
wall = Image.fromarray(load_sample_images().images[0])


def draw(value: float) -> Image.Image:
    x, y = rng.integers(wall.width - 116), rng.integers(wall.height - 116)
    image = wall.crop((x, y, x + 116, y + 116))
    pen = ImageDraw.Draw(image)
    centre = 58 + rng.integers(-4, 5, 2)
    pen.circle(tuple(centre.tolist()), 46, "ivory", "black", 2)
    angle = np.radians(225 - 2.7 * value)  # 0 is at the lower left, 100 at the right
    tip = centre + 38 * np.array([np.cos(angle), -np.sin(angle)])
    pen.line([*centre.tolist(), *tip.tolist()], "firebrick", 4)
    return image


values = rng.uniform(0, 100, 500)
images = [draw(value) for value in values]

# %%
model = CNNCodeRegressor().fit(images[:400], values[:400])
read = model.predict(images[400:])
best = model.best_params_
print(f"Chosen: layer {best['layer']}, norm {best['norm']}, head {best['head']}.")
print(f"R2 on 100 new images: {r2_score(values[400:], read):.3f}")
print(f"Mean error: {mean_absolute_error(values[400:], read):.1f} of 100")

# %%
_, axes = plt.subplots(1, 5, figsize=(10, 2.3), layout="constrained")
for ax, image, shown, value in zip(
    axes, images[400:], read, values[400:], strict=False
):
    ax.imshow(image)
    ax.set_title(f"read {shown:.0f}, truth {value:.0f}", fontsize=10)
    ax.axis("off")
plt.savefig("read_a_gauge.png", dpi=100)
