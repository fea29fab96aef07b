"""CNN codes for scikit-learn: images -> activations of pretrained networks.

Only the names in `__all__` are public. Sub-packages import only from those before them
in this list: base, graphs, images, engines, layers, backbones, codes, heads, tuning,
export, inspection, cli.
"""

from __future__ import annotations

import importlib
import os

# The module that defines each public name. Names are imported on first use, so that
# `OnnxClassifier` works without scikit-learn and onnx. Type checkers and editors read
# __init__.pyi instead.
_MODULE_OF = {
    "Advice": "ranking.advice",
    "Audit": "inspection.audited",
    "Backbone": "backbones.backbone",
    "BackboneError": "base.exceptions",
    "BatchEmbedder": "scale.ray",
    "Bursts": "inspection.findings",
    "CNNCodeClassifier": "heads.code_estimators",
    "CNNCodeRegressor": "heads.code_estimators",
    "CNNCodeTransformer": "codes.transformer",
    "CacheInfo": "cache.code_cache",
    "CacheWarning": "cache.cache_warning",
    "Calibration": "engines.quantisation",
    "CatalogueRow": "backbones.catalogue",
    "ClassSize": "inspection.findings",
    "CodeBatch": "codes.streaming",
    "CodeCache": "cache.code_cache",
    "CodeIndex": "scale.index",
    "CodeRanking": "ranking.code_ranking",
    "CodesMapDisplay": "inspection.codes_map",
    "DeviceError": "base.exceptions",
    "DownloadError": "base.exceptions",
    "DuplicateImages": "inspection.findings",
    "EmbedReport": "scale.embed",
    "Explanation": "codes.explanation",
    "ExportError": "base.exceptions",
    "FineTunedClassifier": "tuning.estimators",
    "FineTunedRegressor": "tuning.estimators",
    "FineTuningDisplay": "inspection.tuning_display",
    "Finding": "ranking.advice",
    "HEADS": "heads.presets",
    "HTMLReport": "inspection.page.report",
    "ImageError": "base.exceptions",
    "ImageNotFoundError": "base.exceptions",
    "KernelRidgeCV": "heads.kernel_ridge",
    "KernelRidgeClassifierCV": "heads.kernel_ridge",
    "LabelledImages": "datasets.labelled_images",
    "Layer": "layers.layer",
    "LayerError": "base.exceptions",
    "LayerHeadDisplay": "inspection.layer_displays",
    "LayerRankingDisplay": "inspection.layer_displays",
    "LeftOut": "datasets.labelled_images",
    "MistakesDisplay": "inspection.image_displays",
    "ModelCard": "export.model_card",
    "NeighboursDisplay": "inspection.image_displays",
    "OnnxClassifier": "export.onnx_classifier",
    "OperatingPoint": "export.model_card",
    "Outlier": "inspection.findings",
    "Preprocessing": "images.preprocessing",
    "PreprocessingError": "base.exceptions",
    "RankedCodes": "ranking.ranked_codes",
    "ReliabilityDisplay": "inspection.reliability",
    "SKOPS_TRUSTED_TYPES": "export.loading",
    "SavedModelError": "base.exceptions",
    "ShrinkageLDA": "heads.shrinkage_lda",
    "StoredCodes": "scale.stored_codes",
    "SuspectLabel": "inspection.findings",
    "audit": "inspection.audit",
    "code_search": "heads.selection",
    "code_union": "heads.grids",
    "download_backbone": "backbones.loading",
    "embed_to": "scale.embed",
    "find_labelled_images": "datasets.folders",
    "layer_grid": "heads.grids",
    "list_backbones": "backbones.catalogue",
    "load_backbone": "backbones.loading",
    "load_model": "export.loading",
    "open_codes": "scale.stored_codes",
    "rank_codes": "ranking.rank_codes",
    "read_labels": "datasets.labels",
    "read_model_card": "export.card_files",
    "report": "inspection.page.report",
    "save_model": "export.saving",
    "score_table": "heads.selection",
    "to_onnx": "export.pipeline",
    "verdict": "heads.selection",
}
__all__ = sorted(_MODULE_OF)

if os.environ.get("SK_CNNCODES_LOG"):  # the import of logging takes longer than this
    from sk_cnncodes.base.logs import configure_logging

    configure_logging()


def __getattr__(name: str) -> object:
    where = "_version" if name == "__version__" else _MODULE_OF.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{where}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
