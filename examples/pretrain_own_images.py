"""Pretrain a backbone on a folder of images and read it out, in a plain Lightning script.

    python examples/pretrain_own_images.py ROOT          # ROOT/{train,val}/CLASS/*.jpg

Swap `ExemplarMoCo` for `MoCoV2`, and nothing else changes; `SupervisedCE` has no queue, so it takes
neither `queue_size` nor `momentum`.
"""

import sys

import pytorch_lightning as pl

from goodtransfer import (
    ExemplarMoCo,
    ImageNetDataModule,
    LinearProbe,
    OnlineProbe,
    load_encoder,
    save_encoder,
)


def main(root: str) -> None:
    method = ExemplarMoCo("resnet18", queue_size=512, momentum=0.99)
    data = ImageNetDataModule(root, batch_size=64, size=64, num_workers=1)
    pl.Trainer(max_epochs=20, callbacks=[OnlineProbe()]).fit(method, data)
    save_encoder("encoder.safetensors", method.encoder, method=type(method).__name__, data=root)

    probe = LinearProbe(load_encoder("encoder.safetensors"))
    readout = ImageNetDataModule(root, batch_size=64, size=64, selection=0.1, num_workers=1)
    trainer = pl.Trainer(max_epochs=20, check_val_every_n_epoch=20)
    trainer.fit(probe, readout)
    trainer.test(probe, readout)


if __name__ == "__main__":
    main(sys.argv[1])
