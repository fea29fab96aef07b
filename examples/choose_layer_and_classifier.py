"""
Choose backbone, layer and classifier by cross-validation, and save the winner
===============================================================================

Images become CNN codes; a grid search finds the backbone, layer and scikit-learn
classifier that suit them best; the fitted pipeline is saved with joblib, and a new
process loads it and predicts.

    python examples/choose_layer_and_classifier.py
    python examples/choose_layer_and_classifier.py --images FOLDER \\
        --backbone squeezenet.onnx --backbone mobilenet.onnx

Without arguments it runs offline, on the bundled backbone and scikit-learn's
handwritten digits. FOLDER has one sub-folder of images for each class; the command
`sk-cnncodes train FOLDER -o classifier.joblib` does the same with it, and more.
"""

# %%
# The images, a list of paths or an array, and one label for each.
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_cnncodes import code_search, find_labelled_images, score_table, verdict

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--images", type=Path, help="folder with one sub-folder per class")
parser.add_argument(
    "--backbone", action="append", help="name or ONNX file; repeatable", default=None
)
parser.add_argument("--layers", type=int, nargs="+", default=[-1, -2, -4])
parser.add_argument("--output", type=Path, default=Path("classifier.joblib"))
args = parser.parse_args()

if args.images is None:
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
else:
    found = find_labelled_images(args.images)
    images, labels = found.paths, found.labels

held_in, held_out, y_in, y_out = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)
print(f"{len(images)} images of {len(set(labels))} classes; {len(held_out)} held out.")

# %%
# A `GridSearchCV` over a pipeline of `CNNCodeTransformer` and a head. Codes of unit
# length, after signed square roots, suit all heads: a linear SVM, logistic regression,
# nearest neighbours, shrinkage LDA, and ridge without and with an RBF kernel. A
# backbone sees each image once for all layers, heads and folds.
search = code_search(args.backbone or ["cnncodes-mini"], args.layers)
search.fit(held_in, y_in)
best = search.best_estimator_

# %%
# Mean accuracy over the folds, by layer and head.
print("\nMean accuracy in 5-fold cross-validation, in %:\n")
print(score_table(search))
print(f"\n{verdict(search)}")
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
    sys.exit("The predictions of the new process differ from those of this one.")
