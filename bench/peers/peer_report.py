"""What bench_peers.py makes of its figures: statistics, the Markdown table, the SVG plot. Plain Python, no engine.

A report is a dict as it stands in the JSON: "rows" (one a form), "races" (what was raced, in words),
"not_run" (form: reason). A row has name, engine, dtype, kind ("xsr" or "peer"), version, settings, and, where measured:
  cosine {min, mean}   to xsr f32
  p1 {forward, backward}   retrieval on the pairs, shares in [0, 1]
  latency {p50_us, p10_us}, corpus_1, corpus_all {p50_s, p10_s, tokens_per_s}, text {p50_s, p10_s, sentences_per_s}
and in each race a "ratio": the form's time over that of the xsr form that "against" names, median over the rounds.
"""

import html
import math
import statistics

RACES = ("latency", "corpus_1", "corpus_all", "text")
EQUAL_P1 = 0.002  # two forms within this share of each other have the same quality (bf16's own budget)


def summary(sample):
    """Median and 10th percentile. The 10th percentile is what a busy neighbour disturbs least."""
    sample = sorted(sample)
    at = 0.1 * (len(sample) - 1)
    low = math.floor(at)
    high = min(low + 1, len(sample) - 1)
    return {"p50": statistics.median(sample), "p10": sample[low] + (at - low) * (sample[high] - sample[low])}


def ratio(times, base):
    """Median over the rounds of a form's time over the base's time of the same round."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


def base_of(row, rows, race):
    """The xsr form that a row is held against in a race: of its type and without table; else xsr f32; else None."""
    for dtype in (row["dtype"], "f32"):
        for x in rows:
            if x["kind"] == "xsr" and x["dtype"] == dtype and not x.get("table") and race in x:
                return x
    return None


def wins(rows):
    """(peer, race, ratio) wherever a peer is faster than the xsr form it is held against."""
    return [
        (row["name"], race, row[race]["ratio"])
        for race in RACES
        for row in rows
        if row["kind"] == "peer" and race in row and row[race]["ratio"] < 1
    ]


def mean_p1(row):
    return (row["p1"]["forward"] + row["p1"]["backward"]) / 2


def headlines(rows, race="text"):
    """For each xsr form: how many times as fast as the fastest peer whose P@1 is not below its own, and as
    sentence-transformers."""
    lines = []
    for x in rows:
        if x["kind"] != "xsr" or race not in x or "p1" not in x:
            continue
        raced = [r for r in rows if r["kind"] == "peer" and race in r and "p1" in r]
        parts = []
        for r in raced:
            if r["engine"] == "sentence-transformers":
                parts.append(f"{r[race]['p50_s'] / x[race]['p50_s']:.2f}× {r['name']}")
        equal = [r for r in raced if mean_p1(r) >= mean_p1(x) - EQUAL_P1]
        if equal:
            r = min(equal, key=lambda r: r[race]["p50_s"])
            parts.append(f"{r[race]['p50_s'] / x[race]['p50_s']:.2f}× the fastest peer at equal P@1 ({r['name']})")
        if parts:
            lines.append(f"{x['name']}: " + ", ".join(parts))
    return lines


def cell(row, race, text):
    """A figure with the ratio behind it; bold where a peer wins."""
    if race not in row:
        return "–"
    if row["kind"] == "xsr":
        return text
    r = row[race]["ratio"]
    filled = f"{text} ({r:.2f}×)"
    return f"**{filled}**" if r < 1 else filled


def markdown(report):
    rows = report["rows"]
    pairs = report["pairs"]
    lines = [
        report["heading"],
        "",
        "| engine | type | cosine to xsr f32, least | P@1 " + pairs["forward"] + " / " + pairs["backward"]
        + f" | {report['tokens']} tokens, 1 core, µs | corpus, 1 core, tokens/s | corpus, {report['cores']} cores, tokens/s"
        + f" | text → .npy, {report['cores']} cores, sentences/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cosine = f"{row['cosine']['min']:.7f}" if "cosine" in row else "–"
        p1 = f"{100 * row['p1']['forward']:.1f} / {100 * row['p1']['backward']:.1f}" if "p1" in row else "–"
        lines.append(
            f"| {row['name']} {row['version']} | {row['dtype']} | {cosine} | {p1} | "
            + " | ".join(
                [
                    cell(row, "latency", f"{row['latency']['p50_us']:.0f}" if "latency" in row else ""),
                    cell(row, "corpus_1", f"{row['corpus_1']['tokens_per_s']:,.0f}" if "corpus_1" in row else ""),
                    cell(row, "corpus_all", f"{row['corpus_all']['tokens_per_s']:,.0f}" if "corpus_all" in row else ""),
                    cell(row, "text", f"{row['text']['sentences_per_s']:,.0f}" if "text" in row else ""),
                ]
            )
            + " |"
        )
    lines += [
        "",
        "Medians. In brackets: the peer's time over that of xsr in the same type (of xsr f32 where there is none), the median",
        "over rounds by turns; bold below 1, where the peer wins.",
    ]
    lines += [""] + [f"- {race}: {words}" for race, words in report["races"].items()]
    won = wins(rows)
    lines += ["", "Peers that win: " + (", ".join(f"{n} ({race}, {r:.2f}×)" for n, race, r in won) if won else "none") + "."]
    lines += ["", *(f"- text → .npy, {line}" for line in headlines(rows))] if headlines(rows) else []
    if report["not_run"]:
        lines += ["", "Not run:", "", *(f"- {name}: {reason}" for name, reason in report["not_run"].items())]
    return "\n".join(lines) + "\n"


COLORS = {
    "xsr": "#c0392b",
    "PyTorch": "#e67e22",
    "sentence-transformers": "#8e6c3a",
    "ONNX Runtime": "#2471a3",
    "CTranslate2": "#1e8449",
    "OpenVINO": "#7d3c98",
}
MARKS = {"f32": "circle", "bf16x3": "diamond", "bf16": "square", "int8": "triangle"}


def mark(shape, x, y, color):
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"/>'
    corners = {
        "square": ((-5, -5), (5, -5), (5, 5), (-5, 5)),
        "diamond": ((0, -6.5), (6.5, 0), (0, 6.5), (-6.5, 0)),
        "triangle": ((0, -6), (6, 5), (-6, 5)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{color}"/>'


def spread(wanted, gap, low, high):
    """Places for labels, in the order given (ascending), as near to the wanted ones as a least distance allows."""
    places = []
    for w in wanted:
        places.append(max(w, places[-1] + gap) if places else max(w, low))
    for i in reversed(range(len(places))):
        limit = high if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit)
    return places


def svg(report, race):
    """Speed (sentences/s, logarithmic) against P@1 of every form that has both; labels stand in a column at the right."""
    points = [
        (100 * mean_p1(row), row[race]["sentences_per_s"], row)
        for row in report["rows"]
        if "p1" in row and race in row
    ]
    width, left, right, top, bottom = 860, 80, 560, 50, max(430, 60 + 18 * len(points))
    if not points:
        raise ValueError("no form has both a speed and a P@1")
    # Forms of one quality should look so: the axis spans a point at least.
    middle = (min(p[0] for p in points) + max(p[0] for p in points)) / 2
    half = max(0.5, 0.6 * (max(p[0] for p in points) - min(p[0] for p in points)))
    x_low, x_high = middle - half, middle + half
    y_low = min(p[1] for p in points) / 1.25
    y_high = max(p[1] for p in points) * 1.25

    def x_of(value):
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def y_of(value):
        return bottom - math.log(value / y_low) / math.log(y_high / y_low) * (bottom - top)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 60}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{bottom + 60}" fill="white"/>',
        f'<text x="{left}" y="24" font-size="15">{html.escape(report["plot_title"])}</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#444"/>',
    ]
    decade = 10.0 ** math.floor(math.log10(y_low))
    ticks = [decade * 10**k * m for k in range(8) for m in (1, 2, 5)]
    for tick in ticks:
        if y_low <= tick <= y_high:
            y = y_of(tick)
            out.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.0f}</text>')
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if (x_high - x_low) / s <= 12)
    for k in range(math.ceil(x_low / step - 1e-9), math.floor(x_high / step + 1e-9) + 1):
        x = x_of(k * step)
        out.append(f'<path d="M{x:.1f} {bottom}v5" stroke="#444"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{k * step:.1f}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle">P@1, mean of both directions, %</text>')
    out.append(
        f'<text transform="translate(18 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">sentences/s</text>'
    )
    points.sort(key=lambda p: -p[1])
    labels = spread([y_of(p[1]) for p in points], 17, top, bottom)
    for (quality, speed, row), label_y in zip(points, labels):
        x, y = x_of(quality), y_of(speed)
        color = COLORS[row["engine"]]
        out.append(f'<path d="M{x:.1f} {y:.1f}L{right + 14} {label_y:.1f}" stroke="{color}" stroke-opacity="0.35"/>')
        out.append(mark(MARKS[row["dtype"]], x, y, color))
        weight = ' font-weight="bold"' if row["kind"] == "xsr" else ""
        out.append(
            f'<text x="{right + 18}" y="{label_y + 4:.1f}" fill="{color}"{weight}>{html.escape(row["name"])}'
            f" – {speed:,.0f}/s</text>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"
