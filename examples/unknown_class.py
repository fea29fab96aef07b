"""
What the model does not know
============================

A classifier has an answer to every image, also to one of none of its classes. Two
checks say when a person should look. The probability of the answer is low where the
image may be one class or another. And the nearest image that was learnt from is far
where the image is like none of them: this check is the better one for what the model
has never seen. Here, it learns the digits 0 to 7, and then sees 8 and 9 too.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from sk_cnncodes import CNNCodeClassifier, CNNCodeTransformer

digits = load_digits()
images, new_images, labels, new_labels = train_test_split(
    digits.images / 16, digits.target, train_size=300, test_size=600, random_state=0
)
images, labels = images[labels < 8], labels[labels < 8]
known = new_labels < 8
model = CNNCodeClassifier(layers=[-1, -3], heads=["rbf", "lda"]).fit(images, labels)

# %%
# The first check. `cv_predictions_` are probabilities for images left out in training:
# 95% of them had a higher one than the threshold.
threshold = np.quantile(model.cv_predictions_.max(axis=1), 0.05)
probability = model.predict_proba(new_images).max(axis=1)
sure = probability >= threshold
print(f"Probability of at least {threshold:.3f}:")
print(f"  {sure[known].mean():.0%} of the new digits 0 to 7 pass,")
print(f"  {sure[~known].mean():.0%} of the digits 8 and 9 do.")

# %%
# The second check: the distance of codes, of layer -1, to the nearest image.
codes = CNNCodeTransformer(norm="power")
neighbours = NearestNeighbors(metric="cosine").fit(codes.fit_transform(images))
among_themselves = neighbours.kneighbors(n_neighbors=1)[0]
limit = np.quantile(among_themselves, 0.95)
distance = neighbours.kneighbors(codes.transform(new_images), 1)[0][:, 0]
near = distance <= limit
print(f"Distance of at most {limit:.3f}:")
print(f"  {near[known].mean():.0%} of the new digits 0 to 7 pass,")
print(f"  {near[~known].mean():.0%} of the digits 8 and 9 do.")

# %%
_, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for rows, name in ((known, "0 to 7"), (~known, "8 and 9, never seen before")):
    ax.scatter(distance[rows], probability[rows], 8, label=name)
ax.axvline(limit, color="black", linestyle="--", linewidth=1)
ax.axhline(threshold, color="black", linestyle="--", linewidth=1)
ax.set(xlabel="distance to the nearest image learnt from", ylabel="probability")
ax.legend(loc="lower left")
plt.savefig("unknown_class.png", dpi=100)
