"""
Choose backbone, layer and classifier by cross-validation, and save the winner
===============================================================================

Images become CNN codes; a grid search finds out which backbone, which of its
layers and which scikit-learn classifier suit them best; the fitted pipeline is
saved with joblib, and a new process loads it and predicts.

    python examples/choose_layer_and_classifier.py
    python examples/choose_layer_and_classifier.py --images FOLDER \\
        --backbone squeezenet.onnx --backbone mobilenet.onnx

Without arguments it runs offline, on the bundled backbone and scikit-learn's
handwritten digits. FOLDER has one sub-folder of images for each class.
"""

# %%
# The images: a list of paths, or an array, and a label for each.
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from sk_cnncodes import CNNCodeTransformer, layer_grid

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--images", type=Path, help="folder with a sub-folder a class")
parser.add_argument(
    "--backbone", action="append", help="name or ONNX file; repeatable", default=None
)
parser.add_argument("--layers", type=int, nargs="+", default=[-1, -2, -4])
parser.add_argument("--output", type=Path, default=Path("classifier.joblib"))
args = parser.parse_args()
backbones = args.backbone or ["cnncodes-mini"]

if args.images is None:
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
else:
    suffixes = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    files = sorted(args.images.glob("*/*"))
    images = [str(f) for f in files if f.suffix.lower() in suffixes]
    labels = np.array([Path(f).parent.name for f in images])
    if not images:
        sys.exit(f"{args.images}: found no images in its sub-folders.")

held_in, held_out, y_in, y_out = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)
print(f"{len(images)} images of {len(set(labels))} classes; {len(held_out)} held out.")

# %%
# The pipeline and the grid. Codes of unit length suit all three heads. With
# `layer_grid`, a backbone sees each image once for all layers, heads and folds.
heads = {
    "linear SVM": LinearSVC(C=10),
    "logistic regression": LogisticRegression(C=10, max_iter=1000),
    "5 nearest neighbours": KNeighborsClassifier(5),
}
pipeline = Pipeline(
    [("codes", CNNCodeTransformer(norm="l2")), ("head", heads["linear SVM"])]
)
grid = layer_grid(args.layers, step="codes") | {
    "codes__backbone": backbones,
    "head": list(heads.values()),
}
folds = StratifiedKFold(5, shuffle=True, random_state=0)
search = GridSearchCV(pipeline, grid, cv=folds, error_score="raise")
search.fit(held_in, y_in)
best = search.best_estimator_

# %%
# Mean accuracy over the folds, by layer and head.
score_of = {
    (p["codes__backbone"], p["codes__layer"], type(p["head"])): score
    for p, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    )
}
width = max(len(Path(b).name) for b in backbones)
print("\nMean accuracy in 5-fold cross-validation, in %:\n")
print(f"{'backbone':<{width}}  layer", *(f"{name:>22}" for name in heads))
for backbone in backbones:
    for layer in args.layers:
        scores = (score_of[backbone, layer, type(head)] for head in heads.values())
        cells = (f"{100 * score:22.2f}" for score in scores)
        print(f"{Path(backbone).name:<{width}}  {layer:5}", *cells)

chosen = search.best_params_
head = next(n for n, h in heads.items() if type(h) is type(chosen["head"]))
print(
    f"\nChosen: {Path(chosen['codes__backbone']).name}, "
    f"layer {chosen['codes__layer']}, {head}: "
    f"{100 * search.best_score_:.2f}% in cross-validation."
)
print(f"Held-out accuracy: {100 * best.score(held_out, y_out):.2f}%")

# %%
# Save the pipeline; a new process loads it and predicts the same.
joblib.dump(best, args.output)
size = args.output.stat().st_size / 1e6
print(f"\nSaved {args.output} ({size:.2f} MB).")
program = """
import sys, joblib
classifier, images = joblib.load(sys.argv[1]), joblib.load(sys.argv[2])
joblib.dump(classifier.predict(images), sys.argv[3])
"""
with tempfile.TemporaryDirectory() as folder:
    given, predicted = Path(folder, "images.joblib"), Path(folder, "labels.joblib")
    joblib.dump(held_out[:20], given)
    subprocess.run(
        [sys.executable, "-c", program, args.output, given, predicted], check=True
    )
    there = joblib.load(predicted)
same = bool((there == best.predict(held_out[:20])).all())
print(
    f"A new process loaded it and predicts {there[:5]} for the first five held-out "
    f"images; truth: {np.asarray(y_out[:5])}."
)
if not same:
    sys.exit("The new process predicted otherwise than this one.")
