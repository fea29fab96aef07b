"""
Serve a model as ONNX
=====================

`to_onnx` writes backbone, layer, norm and head to one ONNX file, from pixels to
labels and probabilities. `OnnxClassifier` reads it with numpy, Pillow and ONNX
Runtime alone, without scikit-learn, and runs no code of the file, unlike joblib. Any
ONNX runtime in another language can serve it too. It needs `pip install
'sk-cnncodes[export]'` to write.
"""

# %%
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_cnncodes import CNNCodeClassifier, to_onnx

digits = load_digits()
images, new_images, labels, new_labels = train_test_split(
    (digits.images * 15).astype(np.uint8), digits.target, train_size=300, random_state=0
)
model = CNNCodeClassifier(layers=[-1], heads="logistic").fit(images, labels)
to_onnx(model.pipeline_, "digits.onnx")
print(f"digits.onnx: {Path('digits.onnx').stat().st_size / 1e6:.1f} MB")

# %%
# Another process, as on a server.
np.save("new_images.npy", new_images[:200])
program = """
import sys
import numpy as np
from sk_cnncodes import OnnxClassifier

classifier = OnnxClassifier("digits.onnx")
probabilities = classifier.predict_proba(list(np.load("new_images.npy")))
np.save("probabilities.npy", probabilities)
print("Classes:", *classifier.classes_)
print("scikit-learn was imported:", "sklearn" in sys.modules)
"""
subprocess.run([sys.executable, "-c", program], check=True)

# %%
served = np.load("probabilities.npy")
here = model.predict_proba(new_images[:200])
print(f"Accuracy there: {np.mean(served.argmax(axis=1) == new_labels[:200]):.1%}")
print(f"Probabilities agree within 1%: {bool((abs(served - here) < 0.01).all())}")
