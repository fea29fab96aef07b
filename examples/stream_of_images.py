"""
A stream of images
==================

A camera writes a file, and its label must be known at once. `sk-cnncodes predict
MODEL -` reads paths from standard input and writes a row as soon as each comes, in a
process that stays: here, this script is the camera. `--top 2` adds the two best
guesses, and `--reject 0.95` says "unknown" below the probability above which 95% of the
predictions were right in training. `--watch FOLDER` waits for files instead.
"""

# %%
# Train on digits, and save the model with its card, which knows the thresholds.
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_cnncodes import CNNCodeClassifier, ModelCard, save_model

digits = load_digits()
images, new_images, labels, new_labels = train_test_split(
    (digits.images * 15).astype(np.uint8), digits.target, train_size=300, random_state=0
)
model = CNNCodeClassifier(layers=[-1], heads="logistic").fit(images, labels)
card = ModelCard.from_estimator(model, labels)
save_model(model.pipeline_, "digits.joblib", card=card)

# %%
# Each row comes before the next image is taken.
command = [sys.executable, "-m", "sk_cnncodes", "predict", "digits.joblib", "-"]
command += ["--top", "2", "--reject", "0.95"]
with subprocess.Popen(
    command,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
) as process:
    for number in range(4):
        path = f"digit_{number}.png"
        Image.fromarray(new_images[number]).save(path)
        process.stdin.write(path + "\n")
        process.stdin.flush()
        if number == 0:
            print(process.stdout.readline(), end="")  # the header
        row = process.stdout.readline().strip()
        print(f"{row}   (truth: {new_labels[number]})")
    process.stdin.close()
