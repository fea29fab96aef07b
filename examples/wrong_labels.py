"""
Find mislabelled images
=======================

People make mistakes when they label. `audit` predicts each image by models that have
not seen it, and looks at its neighbours; where both disagree with its label, the label
is suspect. It also finds copies, images under two labels and outliers. Here, 25 of 500
digits are given a wrong label, and `audit` is asked for the 25 most suspect ones.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from sk_cnncodes import audit

digits = load_digits()
rng = np.random.default_rng(0)
rows = rng.permutation(len(digits.target))[:500]
images, truth = digits.images[rows] / 16, digits.target[rows]
labels = truth.copy()
wrong = rng.permutation(500)[:25]
labels[wrong] = (truth[wrong] + rng.integers(1, 10, 25)) % 10

# %%
suspects = audit(images, labels).suspects[:25]
found = [each for each in suspects if each.image in wrong]
corrected = sum(each.suggested == truth[each.image] for each in found)
print(f"{len(found)} of the {len(suspects)} most suspect labels are wrong ones,")
print(f"and {corrected} suggestions are the true label.")

# %%
_, axes = plt.subplots(1, 8, figsize=(10, 1.9), layout="constrained")
for ax, each in zip(axes, suspects, strict=False):
    ax.imshow(images[each.image], cmap="gray_r")
    ax.set_title(f"label {each.label}\nsuggested {each.suggested}", fontsize=10)
    ax.axis("off")
plt.savefig("wrong_labels.png", dpi=100)
