"""
Several labels for an image
===========================

An image can have several labels at once: here, which of three shapes lie on a
photograph, none to all of them. The labels are a table of zeros and ones with a row for
each image and a column for each label; the rest is as with classes.
"""

# %%
# Shapes of any colour and place, drawn on crops of scikit-learn's photographs.
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from sklearn.metrics import average_precision_score

from sk_cnncodes import CNNCodeClassifier

rng = np.random.default_rng(0)
photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
names = ["circle", "square", "triangle"]


def draw(present: np.ndarray) -> Image.Image:
    photograph = photographs[rng.integers(2)]
    x, y = rng.integers(photograph.width - 116), rng.integers(photograph.height - 116)
    image = photograph.crop((x, y, x + 116, y + 116))
    pen = ImageDraw.Draw(image)
    for name in np.array(names)[present == 1]:
        x, y, radius, turned = rng.integers([28, 28, 20, 0], [88, 88, 28, 360]).tolist()
        color = tuple(rng.integers(0, 256, 3).tolist())
        if name == "circle":
            pen.circle((x, y), radius, color)
        else:
            sides = 4 if name == "square" else 3
            pen.regular_polygon((x, y, radius), sides, turned, color)
    return image


labels = rng.integers(0, 2, (500, 3))
images = [draw(present) for present in labels]

# %%
model = CNNCodeClassifier().fit(images[:400], labels[:400])
predicted = model.predict(images[400:])
scores = model.pipeline_.decision_function(images[400:])
truth = labels[400:]
print("label     in images  right  average precision")
for i, name in enumerate(names):
    right = (predicted[:, i] == truth[:, i]).mean()
    precision = average_precision_score(truth[:, i], scores[:, i])
    print(f"{name:9} {truth[:, i].mean():8.0%} {right:8.0%} {precision:12.2f}")
print(
    f"All three right: {(predicted == truth).all(axis=1).mean():.0%} of 100 new images"
)

# %%
_, axes = plt.subplots(1, 6, figsize=(10, 2), layout="constrained")
for ax, image, found in zip(axes, images[400:], predicted, strict=False):
    ax.imshow(image)
    ax.set_title("\n".join(np.array(names)[found == 1]) or "none", fontsize=9)
    ax.axis("off")
plt.savefig("several_labels.png", dpi=100)
