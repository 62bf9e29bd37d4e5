"""DeepLab-v3 on any encoder: the network of the Cityscapes columns, nn only (protocol 4.1).

The decoder is segmentation-models-pytorch's at mmsegmentation's widths. It differs from
mmsegmentation's in how it ends: the five branches are joined by a 1 x 1 convolution and dropout of
single values, and a 3 x 3 follows; there one 3 x 3 joins them, and dropout, of whole channels, comes
before the classifier. New layers start as PyTorch has them, mmsegmentation's by He's rule and its
classifiers from N(0, 0.01).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from goodtransfer.encoders import Encoder
from goodtransfer.losses import full_precision
from goodtransfer.transfer.checks import check_encoder

STRIDE = 8
RATES = (12, 24, 36)


class DeepLabV3(nn.Module):
    """Dilated trunk → atrous spatial pyramid → classifier; beside it an auxiliary head on stage 4.

    Args:
        encoder: used as it is and fine-tuned whole, with maps no coarser than stride 8.
        num_classes: C.
        channels: of each branch of the pyramid, and after it.
        dropout: in both heads.
        aux_channels: of the auxiliary head; 0 leaves it out, and with it the need of a stage 4.

    Raises:
        ValueError: for an encoder that lacks a stage, or cannot be brought to stride 8, naming it.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        channels: int = 512,
        dropout: float = 0.1,
        aux_channels: int = 256,
    ) -> None:
        super().__init__()
        check_encoder(encoder, (4, 5) if aux_channels else (5,), "segmentation")
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder

        self.encoder = encoder.dilated(STRIDE)
        self.decoder = DeepLabV3Decoder(
            in_channels=self.encoder.channels[5],
            out_channels=channels,
            atrous_rates=RATES,
            aspp_separable=False,
            aspp_dropout=dropout,
        )
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.auxiliary: FCNHead | None = None
        if aux_channels:
            self.auxiliary = FCNHead(self.encoder.channels[4], aux_channels, num_classes, dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """RGB (N, 3, H, W) to logits (N, C, H, W), fp32; in training mode the auxiliary ones, too."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        auxiliary = self.auxiliary if self.training else None
        maps = self.encoder(images, stages=(5,) if auxiliary is None else (4, 5))
        logits = _upsampled(self.classifier(self.decoder([maps[5]])), size)
        return logits, None if auxiliary is None else _upsampled(auxiliary(maps[4]), size)


class FCNHead(nn.Sequential):
    """A 3 x 3 convolution with its norm, and a classifier."""

    def __init__(self, channels: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),  # of whole channels, as mmsegmentation's heads
            nn.Conv2d(hidden, num_classes, kernel_size=1),
        )


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """To the size of the image; smp's own head would align corners, mmsegmentation's does not."""
    return F.interpolate(full_precision(logits), size, mode="bilinear", align_corners=False)
