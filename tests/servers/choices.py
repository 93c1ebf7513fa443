"""A backbone that was chosen."""

from services.contracts.backbones import BackboneName
from services.contracts.jobs import BackboneChoice, LeftOutBackbone, ProbedBackbone, WeightsUri

CHOICE = BackboneChoice(
    candidates=[
        ProbedBackbone(
            backbone=BackboneName.REKINDLE_TINY,
            weights="bundled",
            image_size=32,
            feature_dim=128,
            multiply_adds=12_000_000,
            accuracy=0.94,
            standard_error=0.0123,
            loss=0.25,
            accuracy_difference=-0.01,
            loss_difference=0.05,
            chosen=True,
        ),
        ProbedBackbone(
            backbone=BackboneName.RESNET50,
            weights=WeightsUri(uri="s3://mine/resnet.h5", sha256="0" * 64),
            image_size=224,
            feature_dim=2048,
            multiply_adds=3_860_000_000,
            accuracy=0.95,
            standard_error=0.0111,
            loss=0.2,
            accuracy_difference=0,
            loss_difference=0,
            chosen=False,
        ),
    ],
    left_out=[
        LeftOutBackbone(
            backbone=BackboneName.MOBILENET_V2, weights="imagenet", image_size=224, message="there is no network"
        )
    ],
    image_count=400,
    class_count=3,
    fold_count=5,
    reason="rekindle_tiny at 32 px is the cheapest of 2",
)
