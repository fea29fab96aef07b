"""Public names with their types, for type checkers and editors."""

from sk_cnncodes.backbones.backbone import Backbone as Backbone
from sk_cnncodes.backbones.catalogue import (
    CatalogueRow as CatalogueRow,
)
from sk_cnncodes.backbones.catalogue import (
    list_backbones as list_backbones,
)
from sk_cnncodes.backbones.loading import (
    download_backbone as download_backbone,
)
from sk_cnncodes.backbones.loading import (
    load_backbone as load_backbone,
)
from sk_cnncodes.base.exceptions import (
    BackboneError as BackboneError,
)
from sk_cnncodes.base.exceptions import (
    DeviceError as DeviceError,
)
from sk_cnncodes.base.exceptions import (
    DownloadError as DownloadError,
)
from sk_cnncodes.base.exceptions import (
    ExportError as ExportError,
)
from sk_cnncodes.base.exceptions import (
    ImageError as ImageError,
)
from sk_cnncodes.base.exceptions import (
    ImageNotFoundError as ImageNotFoundError,
)
from sk_cnncodes.base.exceptions import (
    LayerError as LayerError,
)
from sk_cnncodes.base.exceptions import (
    PreprocessingError as PreprocessingError,
)
from sk_cnncodes.base.exceptions import (
    SavedModelError as SavedModelError,
)
from sk_cnncodes.cache.cache_warning import (
    CacheWarning as CacheWarning,
)
from sk_cnncodes.cache.code_cache import (
    CacheInfo as CacheInfo,
)
from sk_cnncodes.cache.code_cache import (
    CodeCache as CodeCache,
)
from sk_cnncodes.codes.explanation import Explanation as Explanation
from sk_cnncodes.codes.streaming import CodeBatch as CodeBatch
from sk_cnncodes.codes.transformer import CNNCodeTransformer as CNNCodeTransformer
from sk_cnncodes.datasets.folders import (
    find_labelled_images as find_labelled_images,
)
from sk_cnncodes.datasets.labelled_images import (
    LabelledImages as LabelledImages,
)
from sk_cnncodes.datasets.labelled_images import (
    LeftOut as LeftOut,
)
from sk_cnncodes.datasets.labels import read_labels as read_labels
from sk_cnncodes.engines.quantisation import Calibration as Calibration
from sk_cnncodes.export.card_files import (
    read_model_card as read_model_card,
)
from sk_cnncodes.export.loading import (
    SKOPS_TRUSTED_TYPES as SKOPS_TRUSTED_TYPES,
)
from sk_cnncodes.export.loading import (
    load_model as load_model,
)
from sk_cnncodes.export.model_card import (
    ModelCard as ModelCard,
)
from sk_cnncodes.export.model_card import (
    OperatingPoint as OperatingPoint,
)
from sk_cnncodes.export.onnx_classifier import OnnxClassifier as OnnxClassifier
from sk_cnncodes.export.pipeline import to_onnx as to_onnx
from sk_cnncodes.export.saving import save_model as save_model
from sk_cnncodes.heads.code_estimators import (
    CNNCodeClassifier as CNNCodeClassifier,
)
from sk_cnncodes.heads.code_estimators import (
    CNNCodeRegressor as CNNCodeRegressor,
)
from sk_cnncodes.heads.grids import (
    code_union as code_union,
)
from sk_cnncodes.heads.grids import (
    layer_grid as layer_grid,
)
from sk_cnncodes.heads.kernel_ridge import (
    KernelRidgeClassifierCV as KernelRidgeClassifierCV,
)
from sk_cnncodes.heads.kernel_ridge import (
    KernelRidgeCV as KernelRidgeCV,
)
from sk_cnncodes.heads.presets import HEADS as HEADS
from sk_cnncodes.heads.selection import (
    code_search as code_search,
)
from sk_cnncodes.heads.selection import (
    score_table as score_table,
)
from sk_cnncodes.heads.selection import (
    verdict as verdict,
)
from sk_cnncodes.heads.shrinkage_lda import ShrinkageLDA as ShrinkageLDA
from sk_cnncodes.images.preprocessing import Preprocessing as Preprocessing
from sk_cnncodes.inspection.audit import audit as audit
from sk_cnncodes.inspection.audited import Audit as Audit
from sk_cnncodes.inspection.codes_map import (
    CodesMapDisplay as CodesMapDisplay,
)
from sk_cnncodes.inspection.findings import Bursts as Bursts
from sk_cnncodes.inspection.findings import ClassSize as ClassSize
from sk_cnncodes.inspection.findings import DuplicateImages as DuplicateImages
from sk_cnncodes.inspection.findings import Outlier as Outlier
from sk_cnncodes.inspection.findings import SuspectLabel as SuspectLabel
from sk_cnncodes.inspection.image_displays import (
    MistakesDisplay as MistakesDisplay,
)
from sk_cnncodes.inspection.image_displays import (
    NeighboursDisplay as NeighboursDisplay,
)
from sk_cnncodes.inspection.layer_displays import (
    LayerHeadDisplay as LayerHeadDisplay,
)
from sk_cnncodes.inspection.layer_displays import (
    LayerRankingDisplay as LayerRankingDisplay,
)
from sk_cnncodes.inspection.page.report import (
    HTMLReport as HTMLReport,
)
from sk_cnncodes.inspection.page.report import (
    report as report,
)
from sk_cnncodes.inspection.reliability import (
    ReliabilityDisplay as ReliabilityDisplay,
)
from sk_cnncodes.inspection.tuning_display import (
    FineTuningDisplay as FineTuningDisplay,
)
from sk_cnncodes.layers.layer import Layer as Layer
from sk_cnncodes.ranking.advice import (
    Advice as Advice,
)
from sk_cnncodes.ranking.advice import (
    Finding as Finding,
)
from sk_cnncodes.ranking.code_ranking import (
    CodeRanking as CodeRanking,
)
from sk_cnncodes.ranking.rank_codes import rank_codes as rank_codes
from sk_cnncodes.ranking.ranked_codes import (
    RankedCodes as RankedCodes,
)
from sk_cnncodes.scale.embed import (
    EmbedReport as EmbedReport,
)
from sk_cnncodes.scale.embed import (
    embed_to as embed_to,
)
from sk_cnncodes.scale.index import CodeIndex as CodeIndex
from sk_cnncodes.scale.ray import (
    BatchEmbedder as BatchEmbedder,
)
from sk_cnncodes.scale.stored_codes import (
    StoredCodes as StoredCodes,
)
from sk_cnncodes.scale.stored_codes import (
    open_codes as open_codes,
)
from sk_cnncodes.tuning.estimators import (
    FineTunedClassifier as FineTunedClassifier,
)
from sk_cnncodes.tuning.estimators import (
    FineTunedRegressor as FineTunedRegressor,
)

__all__ = [
    "HEADS",
    "SKOPS_TRUSTED_TYPES",
    "Advice",
    "Audit",
    "Backbone",
    "BackboneError",
    "BatchEmbedder",
    "Bursts",
    "CNNCodeClassifier",
    "CNNCodeRegressor",
    "CNNCodeTransformer",
    "CacheInfo",
    "CacheWarning",
    "Calibration",
    "CatalogueRow",
    "ClassSize",
    "CodeBatch",
    "CodeCache",
    "CodeIndex",
    "CodeRanking",
    "CodesMapDisplay",
    "DeviceError",
    "DownloadError",
    "DuplicateImages",
    "EmbedReport",
    "Explanation",
    "ExportError",
    "Finding",
    "FineTunedClassifier",
    "FineTunedRegressor",
    "FineTuningDisplay",
    "HTMLReport",
    "ImageError",
    "ImageNotFoundError",
    "KernelRidgeCV",
    "KernelRidgeClassifierCV",
    "LabelledImages",
    "Layer",
    "LayerError",
    "LayerHeadDisplay",
    "LayerRankingDisplay",
    "LeftOut",
    "MistakesDisplay",
    "ModelCard",
    "NeighboursDisplay",
    "OnnxClassifier",
    "OperatingPoint",
    "Outlier",
    "Preprocessing",
    "PreprocessingError",
    "RankedCodes",
    "ReliabilityDisplay",
    "SavedModelError",
    "ShrinkageLDA",
    "StoredCodes",
    "SuspectLabel",
    "audit",
    "code_search",
    "code_union",
    "download_backbone",
    "embed_to",
    "find_labelled_images",
    "layer_grid",
    "list_backbones",
    "load_backbone",
    "load_model",
    "open_codes",
    "rank_codes",
    "read_labels",
    "read_model_card",
    "report",
    "save_model",
    "score_table",
    "to_onnx",
    "verdict",
]
__version__: str
