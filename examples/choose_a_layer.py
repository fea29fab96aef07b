"""
Choose a layer
==============

A backbone can be cut at many layers: -1 is the last before its own classifier, -2 the
block before that, and so on towards the image. `rank_codes` passes each image through
the backbone once and scores all layers: each image is classified by a ridge classifier
of all other images. A formula gives exactly what refitting would, so that it takes
seconds. The recommended layer is the cheapest that chance cannot tell from the best.
"""

# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sk_cnncodes import CNNCodeTransformer, rank_codes

digits = load_digits()
held_in, held_out, y_in, y_out = train_test_split(
    digits.images / 16, digits.target, train_size=300, test_size=400, random_state=0
)
ranking = rank_codes(held_in, y_in, norms="power")

# %%
# `print(ranking)` shows a table; here are the columns that matter most.
print("layer  accuracy    of the network")
for row in ranking.rows:
    mark = "*" if row.recommended else "=" if row.indistinguishable else " "
    print(
        f"{row.layer:>5} {100 * row.score:5.1f}% +- {100 * row.error:.1f} "
        f"{100 * row.compute_share:10.0f}%  {mark}"
    )
print("=: chance can explain the difference from the best; *: the cheapest of these")

# %%
# The recommended codes in an ordinary scikit-learn pipeline, on other digits.
row = ranking.recommended
codes = CNNCodeTransformer(row.backbone, layer=row.layer, norm=row.norm)
model = make_pipeline(codes, SVC(C=10)).fit(held_in, y_in)
accuracy = model.score(held_out, y_out)
print(f"An SVM on layer {row.layer} has {100 * accuracy:.1f}% on 400 new digits.")

# %%
ranking.plot()
plt.gcf().set_size_inches(7, 4)
plt.savefig("choose_a_layer.png", dpi=100, bbox_inches="tight")
