"""
What earlier layers are good for
================================

Last layers know things such as temples and flowers, and forget how sharp or noisy the
picture of them was. Earlier layers still see edges, grain and strokes. Hence the rule
for small data: images like those of the backbone want the last layer, and images
unlike them, or questions about the picture instead of the thing, want an earlier one.
Here, the same crops of two photographs are asked what they show and what was done to
them. The first question is so easy that all layers answer it; for the second one, an
earlier layer makes a tenth of the errors of the last one. The rule is no law:
handwritten digits are unlike photographs, and the last layer of this backbone suits
them as well as the middle ones.
"""

# %%
# Crops of scikit-learn's two photographs; a quarter of each kind stays as it was.
import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from sk_cnncodes import rank_codes

rng = np.random.default_rng(0)
photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]


def add_noise(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def compress(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=12)
    return Image.open(file).convert("RGB")


treatments = {
    "none": lambda image: image,
    "noise": add_noise,
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1.2)),
    "JPEG": compress,
}
crops, subjects, treated = [], [], []
for number in range(240):
    subject, treatment = number % 2, list(treatments)[number // 2 % 4]
    photograph = photographs[subject]
    x, y = rng.integers(photograph.width - 116), rng.integers(photograph.height - 116)
    crop = photograph.crop((x, y, x + 116, y + 116))
    crops.append(treatments[treatment](crop))
    subjects.append(["temple", "flower"][subject])
    treated.append(treatment)

# %%
# Leave-one-out accuracy of every layer for the three questions.
digits = load_digits()
questions = {
    "temple or flower?": (crops, subjects),
    "noise, blur, JPEG, none?": (crops, treated),
    "which digit?": (digits.images[:150] / 16, digits.target[:150]),
}
_, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for question, (images, answers) in questions.items():
    rows = rank_codes(images, answers, norms="power").rows
    score = {row.layer: 100 * row.score for row in rows}
    layers = sorted(score)
    ax.plot(layers, [score[layer] for layer in layers], marker="o", label=question)
    shown = "  ".join(f"{layer}: {score[layer]:5.1f}" for layer in (-1, -3, -6, -9))
    print(f"{question:25} {shown}   best layer: {rows[0].layer}")
ax.set(xlabel="layer (-1 is the last)", ylabel="leave-one-out accuracy, %")
ax.legend()
plt.savefig("earlier_layers.png", dpi=100)
