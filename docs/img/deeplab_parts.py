"""Draw how the parts are joined: ``msc.png``, ``aspp-v3.png``, ``decoder.png``.

The numbers in the boxes are those of networks that are built here, so a change of the code changes the drawing.
Run from the repository: ``python docs/img/deeplab_parts.py``.
"""  # noqa: INP001 - a script beside its pictures

from __future__ import annotations

import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, Box, Sheet

from pipeline.network.aspp import ImagePooling
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.spec import NetworkSpec

MSC = NetworkSpec(
    architecture="deeplabv1", backbone="vgg16", output_stride=8, n_classes=21, image_pooling="off",
    head_kernel=3, atrous_rates=(12,), head_channels=1024, side_channels=128,
)  # fmt: skip
V3 = NetworkSpec(architecture="deeplabv3", backbone="resnet101", n_classes=21, multi_grid=(1, 2, 4), separable=False)
V3_PLUS = NetworkSpec(architecture="deeplabv3plus", backbone="xception65", n_classes=21)


def main() -> None:
    """Draw all."""
    draw_msc(_built(MSC))
    draw_aspp(_built(V3))
    draw_decoder(_built(V3_PLUS))


def _built(spec: NetworkSpec) -> DeepLab:
    with torch.device("meta"):
        return build_network(spec)


def draw_msc(network: DeepLab) -> None:
    """Draw the branches of v1's MSc: the image and four pooling layers, joined with fc7 before the scores."""
    head, backbone = network.head, network.backbone
    assert head is not None
    sheet = Sheet(800, 330)
    names = ("image", "pool1", "pool2", "pool3", "pool4")
    x = [62 + 104 * index for index in range(6)]
    sources = [
        sheet.box(
            Box(x=x[index], y=35, width=86, height=42, text=f"{name}\n{channels} ch, stride {stride}", colour=BLUE), size=9.5
        )
        for index, (name, (channels, stride)) in enumerate(zip(names, backbone.side_channels, strict=True))
    ]
    last = sheet.box(Box(x=x[5], y=35, width=86, height=42, text="pool5\n512 ch, stride 8"), size=9.5)
    for before, after in zip([*sources], [*sources[1:], last], strict=True):
        sheet.arrow(before.right, after.left)
    joined = Box(x=x[5] + 98, y=262, width=110, height=42, text="concatenate", colour=GREY)
    main = head.branches[0]
    fc6 = sheet.box(
        Box(x=x[5], y=110, width=86, height=42, text=f"fc6 3 x 3\nrate {main.fc6.dilation[0]}, {main.fc6.out_channels}"), size=10
    )
    fc7 = sheet.box(Box(x=x[5], y=180, width=86, height=36, text=f"fc7 1 x 1\n{main.fc7.out_channels}"), size=10)
    sheet.arrow(last.bottom, fc6.top)
    sheet.arrow(fc6.bottom, fc7.top)
    for source, side in zip(sources, head.side, strict=True):
        stride, n_out = side.gather.stride[0], side.mix.out_channels
        gather = sheet.box(
            Box(x=source.x, y=110, width=86, height=42, text=f"3 x 3, stride {stride}\n{n_out}", colour=ORANGE), size=10
        )
        mix = sheet.box(Box(x=source.x, y=180, width=86, height=36, text=f"1 x 1\n{n_out}", colour=ORANGE), size=10)
        sheet.arrow(source.bottom, gather.top)
        sheet.arrow(gather.bottom, mix.top)
        sheet.line([mix.bottom, (mix.x, joined.y)], line=1.2)
    sheet.line([fc7.bottom, (fc7.x, joined.y)], line=1.2)
    sheet.arrow((x[0], joined.y), joined.left)
    sheet.box(joined, size=12)
    sheet.text((joined.x, joined.y + 30), f"{main.fc8.in_channels} channels", size=11, anchor="ma")
    scores = sheet.box(
        Box(x=joined.x + 20, y=180, width=90, height=36, text=f"fc8 1 x 1\n{main.fc8.out_channels} classes", colour=GREEN),
        size=10.5,
    )
    sheet.arrow((scores.x, joined.top[1]), scores.bottom)
    logits = sheet.box(Box(x=scores.x, y=35, width=90, height=42, text="logits at\nevery pixel", colour=GREEN), size=10.5)
    sheet.arrow(scores.top, logits.bottom)
    sheet.text((scores.x - 6, 110), f"bilinear,\nx {network.spec.score_stride}", size=11, anchor="rm")
    sheet.text((20, 300), "Where they are joined, all have stride 8. Orange: the layers that MSc adds.", size=12)
    sheet.save("msc.png")


def draw_aspp(network: DeepLab) -> None:
    """Draw the ASPP of v3."""
    aspp = network.aspp
    assert aspp is not None
    sheet = Sheet(800, 330)
    features = sheet.box(
        Box(
            x=80,
            y=165,
            width=110,
            height=56,
            text=f"features\n{network.backbone.high_level_channels} ch, stride {network.spec.output_stride}",
        ),
        size=11,
    )
    joined = Box(x=490, y=165, width=44, height=280, text="con-\ncat-\nenate", colour=GREY)
    colours = (INK, GREEN, BLUE, ORANGE, PURPLE)
    for index, (branch, colour) in enumerate(zip(aspp.branches, colours, strict=True)):
        y = 41 + 62 * index
        box = sheet.box(Box(x=310, y=y, width=210, height=44, text=_branch_text(branch), colour=colour), size=11)
        sheet.arrow(features.right, (165, features.y), (165, y), box.left)
        sheet.arrow(box.right, (joined.left[0], y))
    sheet.box(joined, size=11)
    project = aspp.project.conv
    projected = sheet.box(
        Box(x=600, y=165, width=100, height=60, text=f"1 x 1\n{project.in_channels} to {project.out_channels}\nBatchNorm, ReLU"),
        size=10.5,
    )
    scores = sheet.box(
        Box(
            x=735,
            y=165,
            width=90,
            height=60,
            text=f"1 x 1\n{network.classifier.out_channels} classes\nthen x {network.spec.score_stride}",
            colour=GREEN,
        ),
        size=10.5,
    )
    sheet.arrow(joined.right, projected.left)
    sheet.arrow(projected.right, scores.left)
    sheet.save("aspp-v3.png")


def _branch_text(branch: torch.nn.Module) -> str:
    if isinstance(branch, ImagePooling):
        return f"mean over the window, 1 x 1, {branch.project.conv.out_channels}\nBatchNorm, ReLU, spread over all cells"
    conv = branch.conv
    size = f"{conv.kernel_size[0]} x {conv.kernel_size[1]}" + (f", rate {conv.dilation[0]}" if conv.kernel_size[0] > 1 else "")
    return f"{size}, {conv.out_channels}\nBatchNorm, ReLU"


def draw_decoder(network: DeepLab) -> None:
    """Draw v3+: encoder above, decoder below."""
    spec, decoder, backbone = network.spec, network.decoder, network.backbone
    assert decoder is not None
    sheet = Sheet(800, 270)
    image = sheet.box(Box(x=62, y=60, width=84, height=44, text="image", colour=GREY), size=12)
    early = sheet.box(Box(x=200, y=60, width=110, height=44, text="backbone\nup to stride 4"), size=11)
    late = sheet.box(Box(x=360, y=60, width=124, height=44, text=f"backbone, atrous\nup to stride {spec.output_stride}"), size=11)
    context = sheet.box(
        Box(x=530, y=60, width=130, height=44, text=f"ASPP\n{spec.aspp_channels} ch, stride {spec.output_stride}", colour=ORANGE),
        size=11,
    )
    for before, after in ((image, early), (early, late), (late, context)):
        sheet.arrow(before.right, after.left)
    n_low, n_reduced = backbone.low_level_channels, spec.low_level_channels
    reduce = sheet.box(Box(x=200, y=200, width=110, height=48, text=f"1 x 1\n{n_low} to {n_reduced}", colour=RED), size=11)
    sheet.arrow(early.bottom, reduce.top)
    sheet.text((208, 126), "low-level\nfeatures", size=11, anchor="lm")
    joined = sheet.box(
        Box(x=360, y=200, width=124, height=48, text=f"concatenate\n{n_reduced} + {spec.aspp_channels}", colour=GREY), size=11
    )
    sheet.arrow(reduce.right, joined.left)
    factor = spec.output_stride // network.spec.score_stride
    sheet.arrow(context.bottom, (context.x, 130), (joined.x, 130), joined.top)
    sheet.text((445, 136), f"bilinear, x {factor}", size=11, anchor="ma")
    n_refine = len(decoder.refine)
    refine = sheet.box(
        Box(x=530, y=200, width=130, height=48, text=f"{n_refine} times 3 x 3\n{spec.decoder_channels} ch, stride 4", colour=RED),
        size=11,
    )
    scores = sheet.box(Box(x=690, y=200, width=110, height=48, text=f"1 x 1\n{spec.n_classes} classes", colour=GREEN), size=11)
    logits = sheet.box(Box(x=690, y=60, width=110, height=44, text="logits at\nevery pixel", colour=GREEN), size=11)
    sheet.arrow(joined.right, refine.left)
    sheet.arrow(refine.right, scores.left)
    sheet.arrow(scores.top, logits.bottom)
    sheet.text((698, 130), f"bilinear, x {network.spec.score_stride}", size=11, anchor="lm")
    sheet.text((20, 12), "encoder", size=13)
    sheet.text((20, 200), "decoder", size=13, anchor="lm")
    sheet.save("decoder.png")


if __name__ == "__main__":
    main()
