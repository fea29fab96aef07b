"""
A first classifier
==================

A pretrained network, the backbone, has learnt to see from many images. Its activations
for an image, the CNN code, describe that image well enough for a small classifier to
learn from a few hundred examples. `CNNCodeClassifier` does all of this: it compares the
layers of the backbone and several classifiers, keeps the best combination, and
calibrates it, so that of the images to which it gives 80%, about 80% are right.
"""

# %%
# Scikit-learn's handwritten digits: 300 to learn from, 300 others to check.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_cnncodes import CNNCodeClassifier

digits = load_digits()
held_in, held_out, y_in, y_out = train_test_split(
    digits.images / 16, digits.target, train_size=300, test_size=300, random_state=0
)

# %%
# These are the three lines. Instead of arrays, images can be a list of paths.
model = CNNCodeClassifier()
model.fit(held_in, y_in)
print(f"Accuracy on new digits: {100 * model.score(held_out, y_out):.1f}%")

# %%
# What it chose, and how good it thought to be without seeing the new digits.
best = model.best_params_
print(f"Chosen: layer {best['layer']}, norm {best['norm']}, head {best['head']}.")
print(f"Cross-validation had said {100 * model.best_score_:.1f}%.")

# %%
# The new digits that it is least sure of, with its two best guesses.
probabilities = model.predict_proba(held_out)
least_sure = probabilities.max(axis=1).argsort()[:8]
_, axes = plt.subplots(1, 8, figsize=(10, 1.9), layout="constrained")
for ax, i in zip(axes, least_sure, strict=True):
    ax.imshow(held_out[i], cmap="gray_r")
    best_two = probabilities[i].argsort()[::-1][:2]
    ax.set_title("\n".join(f"{k}: {probabilities[i, k]:.0%}" for k in best_two))
    ax.set_xlabel(f"truth: {y_out[i]}")
    ax.set_xticks([])
    ax.set_yticks([])
plt.savefig("first_classifier.png", dpi=100)
