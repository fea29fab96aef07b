"""
Codes as a column of a Hugging Face data set
============================================

`map` of the library datasets stores what it computed, and computes it anew only if the
data or the function change. `BatchEmbedder` is a function of its batches: it adds a
column `code`, and a column `error` for images that cannot be read. Cast the column of
images to `Image(decode=False)`: files are decoded here, and not before. `embed_to`
takes a data set too, also a streaming one, and writes the codes alone.
"""

# %%
# A data set of image files in memory; one of them is damaged.
import io

from datasets import Dataset, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sk_cnncodes import BatchEmbedder, CNNCodeTransformer


def png(pixels):
    file = io.BytesIO()
    PILImage.fromarray((pixels * 15).astype("uint8")).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


digits = load_digits()
images = [png(pixels) for pixels in digits.images[:300]]
images[7] = {"bytes": b"not an image", "path": None}
dataset = Dataset.from_dict({"image": images, "label": digits.target[:300]})
dataset = dataset.cast_column("image", Image(decode=False))

# %%
# Its images are left out of what is stored; the codes are enough for a classifier.
embed = BatchEmbedder(CNNCodeTransformer(), "image")
codes = dataset.map(embed, batched=True, batch_size=64, remove_columns=["image"])
print(codes.column_names, len(codes))
good = codes.filter(lambda row: row["error"] is None).with_format("numpy")
print("bad:", len(codes) - len(good))
classifier = LogisticRegression(C=0.01, max_iter=1000)
classifier.fit(good["code"][:200], good["label"][:200])
accuracy = classifier.score(good["code"][200:], good["label"][200:])
print(f"accuracy on {len(good) - 200} others: {accuracy:.1%}")
