"""
Images on a Spark cluster
=========================

`predict_batch_udf` of Spark is made for networks: each of its Python workers calls
`make_predict` once, and what that returns with every batch. A bad image gets a row of
NaN and its error; it does not end the job. The network travels with the function, since
`store_backbone=True` makes a fitted transformer all one needs.
"""

# %%
# What the workers do needs no Spark. One thread each: Spark has a worker for each core.
import os
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from sk_cnncodes import CNNCodeTransformer

transformer = CNNCodeTransformer(
    n_jobs=1, cache=None, on_error="nan", store_backbone=True
).fit(load_digits().images[:1] / 16)


def make_predict():
    def predict(files):
        (batch,) = transformer.iter_codes(list(files), batch=len(files))
        errors = ["" if error is None else str(error) for error in batch.errors]
        return [
            {"code": code, "error": error}
            for code, error in zip(batch.codes, errors, strict=True)
        ]

    return predict


# %%
# Image files in a folder, and their codes in Parquet.
def main():
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

    Path("digits").mkdir()
    for number, digit in enumerate(load_digits().images[:100]):
        Image.fromarray((digit * 15).astype("uint8")).save(f"digits/{number:03}.png")
    Path("digits/007.png").write_bytes(b"not an image")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    row = StructType.fromDDL("code array<float>, error string")
    embed = predict_batch_udf(make_predict, return_type=row, batch_size=32)
    images = spark.read.format("binaryFile").load("digits")
    codes = images.select("path", embed("content").alias("embedded"))
    codes.select("path", "embedded.*").write.parquet("codes")

    stored = spark.read.parquet("codes")
    print(stored.count(), "codes of length", len(stored.first()["code"]))
    for row in stored.where("error != ''").collect():
        print(Path(row["path"]).name, "is bad:", row["error"].split(": ")[1])
    spark.stop()


if __name__ == "__main__":
    main()
