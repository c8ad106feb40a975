"""The levels of our 4-bit weights, their error beside that of other code books, and golden values: all in NumPy.

    quantised_levels.py [SAFETENSORS]   fits the levels, checks that ours are those, prints the table of decision 7;
                                        with a model's file (torch environment) a column for its weights
    quantised_levels.py --golden        writes golden/quantised.json
    quantised_levels.py --check         computes it again and compares

A second opinion, written from the same description as the Rust code; NF4 is the table of arXiv 2305.14314, appendix E.
"""

import json
import sys
from pathlib import Path

import numpy as np

BLOCK = 32
GOLDEN = Path(__file__).with_name("golden") / "quantised.json"
# crates/model/src/quantised/encode.rs
LEVELS = np.array([-127, -98, -77, -60, -46, -33, -21, -10, 0, 11, 23, 35, 49, 65, 84, 109], np.float64)
FACTORS = (0.84, 0.89, 0.94, 0.99, 1.04)
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)  # llama.cpp
INT4, INT8 = np.arange(-7.0, 8.0), np.arange(-127.0, 128.0)


def bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def nearest(levels, x):
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def coded(levels, blocks, scales):
    return nearest(levels, blocks / np.where(scales == 0, 1, scales)[:, None]) * scales[:, None]


def largest(blocks):
    return blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)]


def absmax(levels, blocks, rounding=bf16):
    """The scale makes the largest weight of a block exact."""
    return coded(levels, blocks, rounding(np.abs(blocks).max(1) / np.abs(levels).max()))


def signed(levels, blocks):
    """The same, with the largest weight at the outermost level, on either side."""
    return coded(levels, blocks, bf16(largest(blocks) / levels[np.abs(levels).argmax()]))


def searched(levels, blocks):
    """The best of some scales, and of those that fit their codes by least squares: what we do."""
    base = bf16(largest(blocks) / levels[np.abs(levels).argmax()])
    best, least = base, np.full(len(blocks), np.inf)
    for factor in FACTORS:
        codes = nearest(levels, blocks / np.where(base == 0, 1, base * factor)[:, None])
        fitted = (codes * blocks).sum(1) / np.maximum((codes * codes).sum(1), 1e-30)
        for scale in (bf16(base * factor), bf16(fitted)):
            error = ((codes * scale[:, None] - blocks) ** 2).sum(1)
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return coded(levels, blocks, best)


def made_up():
    """Normal numbers; some columns and single ones larger; Student's t with 5 degrees of freedom."""
    random = np.random.default_rng(5)
    normal = random.normal(0, 0.02, (1024, 1024))
    outliers = random.normal(0, 0.02, (1024, 1024))
    outliers[:, random.choice(1024, 4, False)] *= 10
    outliers[random.random(outliers.shape) < 1e-3] *= 6
    return {"normal": [normal], "outliers": [outliers], "t5": [random.standard_t(5, (1024, 1024)) * 0.015]}


def fit(samples):
    """Lloyd's algorithm: scales by search, then each level where its weights have their mean."""
    levels = np.where(IQ4_NL == 1, 0, IQ4_NL) / 127
    blocks = np.concatenate([sample.reshape(-1, BLOCK)[::8] for sample in samples])
    blocks = blocks / np.sqrt((blocks**2).mean(1, keepdims=True))
    for _ in range(12):
        base = largest(blocks) / levels[np.abs(levels).argmax()]
        least = np.full(len(blocks), np.inf)
        scales = base
        for factor in np.linspace(0.8, 1.1, 11):
            error = ((coded(levels, blocks, base * factor) - blocks) ** 2).sum(1)
            scales, least = np.where(error < least, base * factor, scales), np.minimum(error, least)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, blocks / scales[:, None])
        scales = np.broadcast_to(scales[:, None], blocks.shape)
        for code in set(range(16)) - {8}:  # zero stays zero
            mine = codes == code
            levels[code] = (scales[mine] * blocks[mine]).sum() / (scales[mine] ** 2).sum()
        levels = levels / np.abs(levels).max()
    return levels * 127


def relative_rms(way, block, matrices):
    squares = [(((way(b) - b) ** 2).sum(), (b**2).sum()) for b in (m.reshape(-1, block) for m in matrices)]
    return 100 * np.sqrt(sum(error for error, _ in squares) / sum(weight for _, weight in squares))


def table(data):
    full = lambda scales: scales.astype(np.float32).astype(np.float64)
    ways = {
        "int4, absmax": lambda b: absmax(INT4, b),
        "int4, searched": lambda b: searched(np.arange(-8.0, 8.0), b),
        "NF4, absmax, f32": lambda b: absmax(NF4, b, full),
        "NF4, absmax": lambda b: absmax(NF4, b),
        "NF4, searched": lambda b: searched(NF4, b),
        "IQ4_NL, signed": lambda b: signed(IQ4_NL, b),
        "IQ4_NL, searched": lambda b: searched(IQ4_NL, b),
        "ours, signed": lambda b: signed(LEVELS, b),
        "ours, searched": lambda b: searched(LEVELS, b),
        "int8, f32": lambda b: absmax(INT8, b, full),
        "int8": lambda b: absmax(INT8, b),
    }
    print("| relative RMS error, % | block |", " | ".join(data), "|")
    for name, way in ways.items():
        for block in (32, 64):
            errors = [f"{relative_rms(way, block, matrices):.3f}" for matrices in data.values()]
            print(f"| {name} | {block} |", " | ".join(errors), "|")


def golden():
    """Three rows of two and a bit blocks, with an outlier and a block of zeros."""
    random = np.random.default_rng(7)
    weights = random.normal(0, 0.02, (3, 76)).astype(np.float32)
    weights[0, 40], weights[1, 32:64] = 0.9, 0
    blocks = np.pad(weights, ((0, 0), (0, 20))).astype(np.float64).reshape(-1, BLOCK)

    def rows(dense):
        return dense.reshape(3, 96)[:, :76].astype(np.float32).ravel().tolist()

    four, eight = rows(searched(LEVELS, blocks)), rows(absmax(INT8, blocks))
    return {"shape": [3, 76], "weights": weights.ravel().tolist(), "four": four, "eight": eight}


def main():
    arguments = sys.argv[1:]
    if arguments == ["--golden"]:
        GOLDEN.write_text(json.dumps(golden()) + "\n")
    elif arguments == ["--check"]:
        if json.loads(GOLDEN.read_text()) != golden():
            sys.exit(f"quantised_levels.py: {GOLDEN} differs from what is computed now")
    else:
        data = made_up()
        fitted = fit(data["normal"] + data["t5"])
        print("fitted levels:", fitted.round(1).tolist())
        if np.abs(fitted - LEVELS).max() > 0.6:
            sys.exit("quantised_levels.py: the levels of encode.rs are not the fitted ones")
        for path in arguments:
            from safetensors.numpy import load_file

            matrices = [m.astype(np.float64) for n, m in load_file(path).items() if n.endswith("_proj.weight")]
            data[Path(path).parent.name] = [m for m in matrices if m.shape[1] % 64 == 0]
        table(data)


main()
