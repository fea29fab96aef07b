"""
Train a classifier on codes that do not fit into memory
=======================================================

`transform_to` writes the codes of any number of images to a file, and a classifier
with `partial_fit` learns from it chunk by chunk. Memory holds one chunk at a time.

    python examples/train_in_chunks.py
    python examples/train_in_chunks.py --images FOLDER --backbone squeezenet.onnx

Without arguments it runs offline, on the bundled backbone and scikit-learn's
handwritten digits. FOLDER has one sub-folder of images for each class.
"""

# %%
# The images, a list of paths or an array, and one label for each.
import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sk_cnncodes import CNNCodeTransformer, find_labelled_images

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--images", type=Path, help="folder with one sub-folder per class")
parser.add_argument("--backbone", default="cnncodes-mini", help="name or ONNX file")
parser.add_argument("--layer", type=int, default=-1)
parser.add_argument("--chunk", type=int, default=200, help="rows in memory")
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

if args.images is None:
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
else:
    found = find_labelled_images(args.images)
    images, labels = found.paths, np.array(found.labels)

held_in, held_out, y_in, y_out = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)

# %%
# The codes go to files. With a path as `cache`, an interrupted run resumes where it
# stopped. `codes` is a memory map, so only the rows in use are read.
transformer = CNNCodeTransformer(
    args.backbone, layer=args.layer, norm="l2", cache="codes.sqlite3"
)
codes = transformer.transform_to("codes_in.npy", held_in)
print(f"{codes.shape[0]} codes of length {codes.shape[1]} in codes_in.npy.")

# %%
# One pass to fit the scaler, then several over the chunks in random order.
starts = np.arange(0, len(codes), args.chunk)
scaler = StandardScaler()
for start in starts:
    scaler.partial_fit(codes[start : start + args.chunk])

classifier = SGDClassifier(random_state=0, average=True)
classes = np.unique(y_in)
rng = np.random.default_rng(0)
for _ in range(args.epochs):
    for start in rng.permutation(starts):
        rows = slice(start, start + args.chunk)
        classifier.partial_fit(scaler.transform(codes[rows]), y_in[rows], classes)

# %%
# The held-out images are processed in the same way.
codes = transformer.transform_to("codes_out.npy", held_out)
accuracy = classifier.score(scaler.transform(codes), y_out)
print(f"Held-out accuracy: {100 * accuracy:.2f}%")
