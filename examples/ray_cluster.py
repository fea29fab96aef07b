"""
Images on a Ray cluster
=======================

Ray runs the same Python on one machine or on many. `embed_to(..., engine="ray")`
divides a folder, a table or archives among the cores or GPUs of a cluster, does again
what a lost machine was at, and goes on where an earlier call was interrupted; the
script that calls it lists no image. For a pipeline of your own with Ray Data,
`BatchEmbedder` is a class for `map_batches`: each actor opens the network once, and
keeps to its share of the machine. Here, the cluster is this machine with two cores;
`ray.init(address="auto")` is the cluster that a script was submitted to.
"""

# %%
# A folder of images; one of them is damaged.
import os
from pathlib import Path

import ray
from PIL import Image
from sklearn.datasets import load_digits

from sk_cnncodes import BatchEmbedder, CNNCodeTransformer, embed_to, open_codes

Path("digits").mkdir()
for number, digit in enumerate(load_digits().images[:200]):
    Image.fromarray((digit * 15).astype("uint8")).save(f"digits/{number:03}.png")
Path("digits/007.png").write_bytes(b"not an image")

# %%
# Shards of codes: with tens of millions of images, name a table of their addresses.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no reports to Ray's makers
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
report = embed_to(CNNCodeTransformer(), "codes", "digits", shard_rows=50, engine="ray")
print(f"{report.n_shards} shards, {report.n_images} images, {report.n_bad} bad")
codes = open_codes("codes")
print("codes", codes.shape, "of", codes.keys[0], "to", codes.keys[-1])

# %%
# The same codes as a step of Ray Data.
rows = ray.data.from_items(
    [{"path": str(p)} for p in Path("digits").absolute().iterdir()]
)
embedded = rows.map_batches(
    BatchEmbedder,
    fn_constructor_args=[CNNCodeTransformer(), "path"],
    compute=ray.data.ActorPoolStrategy(size=2),
    num_cpus=1,
).materialize()
print("columns", embedded.columns())
for row in embedded.take_all():
    if row["error"]:
        print(Path(row["path"]).name, "is bad:", row["error"].split(".")[0])
ray.shutdown()
