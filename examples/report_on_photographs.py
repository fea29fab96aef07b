"""
A report: see why a classifier errs
===================================

`report` shows on one page what a model makes of images that it was not fitted to: which
ones it gets wrong and what they resemble, suspect labels, how far its probabilities can
be trusted, a map of the codes. The images are pieces of scikit-learn's two photographs,
of four classes; some at the border of two parts are labelled as only one of them. With
your own images, it is `sk-cnncodes train photos -o model.joblib --report report.html`.
"""

# %%
# 40 pieces of each class; where their middles may lie, as rows and columns.
import numpy as np
from sklearn.datasets import load_sample_image

from sk_cnncodes import CNNCodeClassifier, report

side = 72
parts = {
    "sky": ("china.jpg", (36, 90), (36, 600)),
    "temple": ("china.jpg", (110, 300), (60, 580)),
    "petals": ("flower.jpg", (150, 330), (190, 450)),
    "leaves": ("flower.jpg", (40, 390), (40, 120)),
}
rng = np.random.default_rng(0)
pieces, labels = [], []
for label, (name, rows, columns) in parts.items():
    photograph = load_sample_image(name)
    for _ in range(40):
        top = max(0, rng.integers(*rows) - side // 2)
        left = max(0, rng.integers(*columns) - side // 2)
        pieces.append(photograph[top : top + side, left : left + side])
        labels.append(label)

# %%
# Every fourth piece is learnt from, the others are tested.
train = np.arange(len(pieces)) % 4 == 0
images, labels = np.array(pieces), np.array(labels)
model = CNNCodeClassifier().fit(images[train], labels[train])
wrong = int((model.predict(images[~train]) != labels[~train]).sum())
print(
    f"{train.sum()} pieces to learn from; of {sum(~train)} others, {wrong} are wrong."
)

# %%
# The page. In a notebook, `page` alone in a cell shows it.
page = report(
    model,
    images[~train],
    labels[~train],
    train_images=images[train],
    train_labels=labels[train],
    title="Parts of photographs",
)
path = page.save("report.html")
print(f"{path} has {len(page.html) / 1e6:.1f} MB; a part of it:")
