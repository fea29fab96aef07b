"""
Groups: what belongs together
=============================

Ten photographs of one bird in one minute are nearly the same photograph. If nine of
them are learnt from, the tenth says little about other birds. Name what belongs
together as `groups`, and no group is on both sides of any split. Scikit-learn's digits
have the same trap: 13 people wrote them, one after the other, some 138 digits each.
Here, those of the first six are learnt from, and those of the last five are the future.
"""

# %%
# Who wrote which digit is not recorded; 13 equal parts of the file come close.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from sk_cnncodes import CNNCodeClassifier, CodeCache

digits = load_digits()
images, labels = digits.images / 16, digits.target
writers = np.arange(len(images)) * 13 // len(images)
known, new = writers < 6, writers >= 8

# %%
# The same model with and without groups; the cache keeps the codes for the second one.
model = CNNCodeClassifier(layers=[-1], norms="l2", heads="ridge", cache=CodeCache())
estimates, truths = [], []
for name, groups in (("without groups", None), ("with groups", writers[known])):
    model.fit(images[known], labels[known], groups=groups)
    estimates.append(100 * (1 - model.best_score_))
    truths.append(100 * (1 - model.score(images[new], labels[new])))
    print(
        f"{name:14}: {estimates[-1]:.1f}% errors in cross-validation, "
        f"{truths[-1]:.1f}% for new writers"
    )

# %%
_, ax = plt.subplots(figsize=(7, 2), layout="constrained")
places = np.arange(2)
ax.barh(places - 0.2, estimates, 0.35, label="cross-validation says")
ax.barh(places + 0.2, truths, 0.35, label="new writers")
ax.set_yticks(places, ["without groups", "with groups"])
ax.invert_yaxis()
ax.set_xlabel("errors, %")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.savefig("groups.png", dpi=100)
