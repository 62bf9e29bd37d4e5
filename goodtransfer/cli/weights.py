"""``goodtransfer weights``: what a weight file holds, and the same in another library's names."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  goodtransfer weights list                                        the paper's released files
  goodtransfer weights list --download exemplar_v2
  goodtransfer weights inspect exemplar_v2
  goodtransfer weights inspect moco_v2_800ep_pretrain.pth.tar
  goodtransfer weights inspect a.safetensors b.ckpt R-50.pkl
  goodtransfer weights inspect timm:resnet50d@model.safetensors    a network that is no plain ResNet
  goodtransfer weights convert moco_v2_800ep_pretrain.pth.tar moco.safetensors
  goodtransfer weights convert moco.safetensors R-50.pkl --to detectron2
  goodtransfer weights convert model_final.pth trunk.pth --to torchvision --dialect detectron2

what is read (any prefix; official MoCo, the paper's files, lightly, solo-learn, bolts, VISSL):
  torchvision, timm, segmentation-models-pytorch, Hugging Face, detectron2, Detectron, and our own
  safetensors and Lightning checkpoints. Depth, stem and input convention are told from the names.
  Tensors and plain types only: a file that asks for code is refused.

what is written (--to), and how it is loaded there:
  safetensors  load_encoder("FILE")
  torchvision  model = resnet50(); model.fc = Identity(); model.load_state_dict(torch.load("FILE"))
               (with a classifier in the file: resnet50(num_classes=N), and nothing taken away)
  timm         timm.create_model("resnet50", num_classes=0, checkpoint_path="FILE")
  smp          smp.DeepLabV3("resnet50", encoder_weights=None).encoder.load_state_dict(...)
  detectron2   MODEL.WEIGHTS FILE.pkl, with INPUT.FORMAT, PIXEL_MEAN and STRIDE_IN_1X1 as printed
"""


FORMS = ("safetensors", "torchvision", "timm", "smp", "detectron2")


def main(argv: Sequence[str]) -> int:
    """Run a verb; 2 tells that a file is refused."""
    arguments = _parser().parse_args(argv)
    return int(arguments.verb(arguments))


def _list(arguments: argparse.Namespace) -> int:
    from goodtransfer.weights.released import RELEASED, address, cache, fetched, place

    for name in arguments.download or ():
        if name not in RELEASED:
            raise ValueError(
                f"Expected a released name among {', '.join(RELEASED)}, but got {name!r}."
            )
        print(fetched(name))
    if arguments.download:
        return 0
    width = max(map(len, RELEASED))
    for name, words in RELEASED.items():
        path = place(name)
        here = "here" if path and path.is_file() else ""
        row = f"{name:<{width}}  {here:<4}  {words}"
        print(f"{row}  {address(name)}" if arguments.urls else row)
    print(f"folder of downloads: {cache()}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from goodtransfer.weights import inspect

    refused = False
    for file in arguments.files:
        try:
            report = inspect(file, dialect=arguments.dialect)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            print(f"goodtransfer: error: {error}", file=sys.stderr)
            refused = True
            continue
        print(report)
        refused |= bool(report.fault)
    return 2 if refused else 0


def _convert(arguments: argparse.Namespace) -> int:
    from goodtransfer.weights import load_classifier, load_encoder, read_provenance, save_encoder
    from goodtransfer.weights.encoder import name_and_path

    source, to = arguments.source, arguments.to
    options = {"partial": arguments.partial, "dialect": arguments.dialect}
    encoder = load_encoder(source, **options)
    head = load_classifier(source, dialect=arguments.dialect)
    _, path = name_and_path(source)
    known = read_provenance(path) if path else None
    origin: dict[str, Any] = dict(known.origin) if known else {"converted": Path(source).name}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.no_head or to == "detectron2":  # which takes none
        head = None
    print(save_encoder(arguments.out, encoder, head=head, to=to, **origin))
    if to == "detectron2":
        print(_configuration(encoder))
    return 0


def _configuration(encoder: Any) -> str:
    """What detectron2's configuration has to say about these weights."""
    lines = [f"MODEL.RESNETS.STRIDE_IN_1X1 {encoder.name.endswith('-caffe')}", "INPUT.FORMAT RGB"]
    if encoder.normalization:
        mean, std = ([round(255 * v, 3) for v in values] for values in encoder.normalization)
        lines += [f"MODEL.PIXEL_MEAN {mean}", f"MODEL.PIXEL_STD {std}"]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "goodtransfer weights", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    released = verbs.add_parser(
        "list", help="the paper's released files, and which are here", epilog=EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    released.set_defaults(verb=_list)
    released.add_argument("--download", nargs="+", metavar="NAME", help="fetch these")
    released.add_argument("--urls", action="store_true", help="print where they come from, too")
    inspect = verbs.add_parser(
        "inspect", help="who wrote a file, its network, input convention, and what does not fit",
        epilog=EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    inspect.set_defaults(verb=_inspect)
    inspect.add_argument(
        "files", nargs="+", metavar="FILE", help="a weight file, NAME@FILE, a released name"
    )
    convert = verbs.add_parser(
        "convert", help="write the encoder in another library's names", epilog=EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    convert.set_defaults(verb=_convert)
    convert.add_argument("source", metavar="IN", help="a weight file, NAME@FILE, a released name")
    convert.add_argument("out", type=Path, metavar="OUT", help="ends in .safetensors, .pth or .pkl")
    convert.add_argument("--to", default="safetensors", choices=FORMS, metavar="FORM",
                         help=f"{', '.join(FORMS)} (default: safetensors)")  # fmt: skip
    convert.add_argument("--partial", action="store_true",
                         help="take a file that lacks names or has some left over")  # fmt: skip
    convert.add_argument("--no-head", action="store_true", help="leave out its classifier")
    for verb in (inspect, convert):
        verb.add_argument("--dialect", metavar="NAME",
                          help="whose names they are, where these do not tell: detectron2, "
                          "detectron2-caffe, moco-key, ...")  # fmt: skip
    return parser
