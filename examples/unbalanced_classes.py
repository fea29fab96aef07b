"""
Classes of very different sizes
===============================

If 300 of 310 images are of one class, a model that always says this class has 97%
accuracy and is of no use. Balanced accuracy is the mean, over the classes, of how many
of their images are found: that model has 50%. Here, 300 digits are not an 8 and 10 are.
With `class_weight="balanced"` the rare class counts as much as the other, and with
`scoring="balanced_accuracy"` layer and head are chosen for it.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, balanced_accuracy_score

from sk_cnncodes import CNNCodeClassifier, CodeCache

digits = load_digits()
rng = np.random.default_rng(0)
is_eight = digits.target == 8
order = rng.permutation(len(is_eight))
eights, others = order[is_eight[order]], order[~is_eight[order]]
held_in = np.concatenate([eights[:10], others[:300]])
held_out = np.concatenate([eights[10:], others[300:800]])
names = np.where(is_eight, "an 8", "no 8")
images = digits.images / 16

# %%
models = {
    "as it is": CNNCodeClassifier(cache=CodeCache()),
    "balanced": CNNCodeClassifier(
        class_weight="balanced", scoring="balanced_accuracy", cache=CodeCache()
    ),
}
_, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
print("           accuracy  balanced accuracy  eights found")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    model.set_params(layers=[-1, -3], heads=["logistic", "ridge"])
    model.fit(images[held_in], names[held_in])
    predicted, truth = model.predict(images[held_out]), names[held_out]
    print(
        f"{name:10} {np.mean(predicted == truth):8.1%} "
        f"{balanced_accuracy_score(truth, predicted):18.1%} "
        f"{np.mean(predicted[truth == 'an 8'] == 'an 8'):13.1%}"
    )
    ConfusionMatrixDisplay.from_predictions(truth, predicted, ax=ax, colorbar=False)
    ax.set_title(name)
plt.savefig("unbalanced_classes.png", dpi=100)
