"""
Similar images and near duplicates
==================================

Codes of images that look alike are near each other. So the nearest codes of an image
are those of similar images; and where the distance is nearly zero, it is the same
photograph again: smaller, compressed or cropped. No labels are needed. Where two places
overlap, or show the same plain sky, they are nearly the same image, too; `audit` also
compares pixels, and tells those apart.
"""

# %%
# A collection: 60 places on scikit-learn's two photographs, and copies of ten of them.
import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.neighbors import NearestNeighbors

from sk_cnncodes import CNNCodeTransformer

rng = np.random.default_rng(0)
photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
collection, names = [], []
for number in range(60):
    photograph = photographs[number % 2]
    x, y = rng.integers(photograph.width - 140), rng.integers(photograph.height - 140)
    collection.append(photograph.crop((x, y, x + 140, y + 140)))
    names.append(f"image {number}")
for number in range(10):
    original = collection[number]
    file = io.BytesIO()
    original.save(file, "JPEG", quality=30)
    copies = {
        "smaller": original.resize((90, 90)),
        "compressed": Image.open(file).convert("RGB"),
        "cropped": original.crop((7, 7, 133, 133)),
    }
    name = list(copies)[number % 3]
    collection.append(copies[name])
    names.append(f"image {number}, {name}")

# %%
# Nearest neighbours of all images; the pairs with the least distance are the copies.
codes = CNNCodeTransformer(norm="power").fit_transform(collection)
neighbours = NearestNeighbors(n_neighbors=5, metric="cosine").fit(codes)
distances, nearest = neighbours.kneighbors()
order = [i for i in distances[:, 0].argsort() if i > nearest[i, 0]]
for i in order[:12]:
    print(f"{distances[i, 0]:.3f}  {names[i]:22} {names[nearest[i, 0]]}")

# %%
_, axes = plt.subplots(2, 6, figsize=(9, 3.4), layout="constrained")
for row, query in zip(axes, (12, 13), strict=True):
    shown = [query, *nearest[query]]
    for ax, i, distance in zip(row, shown, [0, *distances[query]], strict=True):
        ax.imshow(collection[i])
        ax.set_title("query" if i == query else f"{distance:.2f}", fontsize=10)
        ax.axis("off")
plt.savefig("similar_images.png", dpi=100)
