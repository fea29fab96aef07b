"""
A few images of each class
==========================

With one to ten images of each class, the head (the classifier on the codes) matters as
much as the network. `HEADS` has those of this library with settings that suit codes.
Each is fitted here to a few digits of each class, five times with others drawn, and
checked on 800 digits. The codes are computed once.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from sk_cnncodes import HEADS, CNNCodeTransformer

digits = load_digits()
codes = CNNCodeTransformer(layer=-3, norm="power").fit_transform(digits.images / 16)
labels = digits.target
pool, test = np.arange(997), np.arange(997, 1797)
shots = [1, 3, 5, 10]
names = ["knn", "svm", "logistic", "ridge", "rbf", "lda"]


def draw(count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of `count` images of each class."""
    return np.concatenate(
        [rng.choice(pool[labels[pool] == k], count, replace=False) for k in range(10)]
    )


# %%
# Mean accuracy over the five draws. Such small classifiers are faster with one thread.
threadpool_limits(1)
print(f"{'images of each class':22}" + "".join(f"{count:>7}" for count in shots))
for name in names:
    title, head = HEADS[name]
    means = []
    for count in shots:
        if name == "lda" and count == 1:  # the spread within a class is not known
            means.append(np.nan)
            continue
        rng = np.random.default_rng(0)  # the same images for all heads
        scores = []
        for _ in range(5):
            rows = draw(count, rng)
            fitted = clone(head).fit(codes[rows], labels[rows])
            scores.append(fitted.score(codes[test], labels[test]))
        means.append(100 * np.mean(scores))
    cells = [f"{'-' if np.isnan(mean) else format(mean, '.1f'):>7}" for mean in means]
    print(f"{title:22}" + "".join(cells))
    plt.plot(shots, means, marker="o", label=title)

# %%
plt.gcf().set_size_inches(6, 3.6)
plt.xscale("log")
plt.xticks(shots, shots)
plt.minorticks_off()
plt.xlabel("images of each class")
plt.ylabel("accuracy, %")
plt.legend()
plt.savefig("few_images.png", dpi=100, bbox_inches="tight")
