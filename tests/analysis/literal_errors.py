"""Protocol 7 word for word, one class, one detection and one object at a time."""

from collections import namedtuple

Detection = namedtuple("Detection", "image label score box")
Object = namedtuple("Object", "image label box difficult")
Match = namedtuple("Match", "label overlap duplicate")

COR, LOC, SIM, OTH, BG = range(5)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return both / (areas[0] + areas[1] - both)


def clip(box, size):
    x1, y1, x2, y2 = (max(side, 1.0) for side in box)
    return (x1, y1, min(x2, size[0]), min(y2, size[1]))


def match(found, there, threshold):
    """7.1: the unclaimed object with the highest IoU that meets the threshold."""
    images = {}
    for number, thing in enumerate(there):
        images.setdefault(thing.image, []).append(number)
    claimed, matches = set(), []
    for detection in found:
        numbers = images.get(detection.image, [])
        overlaps = {n: iou(detection.box, there[n].box) for n in numbers}
        enough = [n for n in numbers if overlaps[n] >= threshold]
        free = [n for n in enough if n not in claimed]
        if free:
            best = max(free, key=lambda n: (overlaps[n], -n))
            claimed.add(best)
            matches.append(Match(0 if there[best].difficult else 1, overlaps[best], False))
        else:
            largest = max(overlaps.values(), default=0.0)
            matches.append(Match(-1, largest, bool(enough)))
    return matches


def errors_of(label, found, there, similar):
    """7.2 and 7.5 for the detections of a class, in order: strong labels, weak labels, two kinds."""
    classes = sorted({thing.label for thing in there} | {label})
    objects = {c: [thing for thing in there if thing.label == c] for c in classes}
    strong = [m.label for m in match(found, objects[label], 0.5)]
    weakly = {c: match(found, objects[c], 0.1) for c in classes}
    weak = [0 if m.duplicate else m.label for m in weakly[label]]
    trend, pie = [], []
    for place in range(len(found)):
        hit = {c: m[place].label >= 0 or m[place].duplicate for c, m in weakly.items()}
        others = [c for c in classes if c != label and hit[c]]
        if strong[place] >= 0:
            kinds = COR, COR
        elif hit[label]:
            kinds = LOC, LOC
        elif not others:
            kinds = BG, BG
        else:
            nearest = max(others, key=lambda c: (weakly[c][place].overlap, -c))
            kinds = (
                SIM if any(c in similar for c in others) else OTH,
                SIM if nearest in similar else OTH,
            )
        trend.append(kinds[0])
        pie.append(kinds[1])
    return strong, weak, trend, pie


def in_order(label, detections):
    """Rows of a class by falling score; equal ones keep their order."""
    rows = [row for row, d in enumerate(detections) if d.label == label]
    return sorted(rows, key=lambda row: -detections[row].score)


def trend_counts(kinds, tick, double_count):
    """7.4: walk down the list to the tick; None where the list ends before."""
    total, counts = 0, [0] * 5
    for kind in kinds:
        if total >= tick:
            break
        if kind:
            counts[kind] += 1
            total += 2 if double_count and kind == BG else 1
    return counts[1:] if total >= tick else None


def top_counts(kinds, number):
    return [kinds[:number].count(kind) for kind in range(5)]


def average_precision(outcomes, positives, interpolation):
    """Of outcomes 1, 0, -1 in order."""
    if positives == 0:
        return None
    curve, true, false = [], 0, 0
    for outcome in outcomes:
        true, false = true + (outcome == 1), false + (outcome == -1)
        if true + false:
            curve.append((true / positives, true / (true + false)))
    if interpolation == "area":
        area, reached = 0.0, 0.0
        for recall, _ in curve:
            area += (recall - reached) * max(p for r, p in curve if r >= recall)
            reached = recall
        return area
    points = [step * 0.1 for step in range(11)]  # so that 3 in 10 does not reach 3 * 0.1
    return sum(max((p for r, p in curve if r >= point), default=0.0) for point in points) / 11


def fixed(strong, weak, trend, types):
    """The outcomes where some types are fixed."""
    outcomes = list(weak if LOC in types else strong)
    for place, kind in enumerate(trend):
        if kind in types and kind != LOC:
            outcomes[place] = 0
    return outcomes


def copied(rows, weights):
    """Each row as often as its image was drawn; each copy in an image of its own."""
    return [
        row._replace(image=(row.image, copy)) for row in rows for copy in range(weights[row.image])
    ]


def as_rows(detections, truth):
    """What `diagnose` takes, as rows; boxes are clipped."""
    found = [
        Detection(int(image), int(label), float(score), tuple(map(float, box)))
        for image, label, score, box in zip(*detections, strict=True)
    ]
    if truth.sizes is not None:
        found = [d._replace(box=clip(d.box, truth.sizes[d.image])) for d in found]
    there = [
        Object(int(image), int(label), tuple(map(float, box)), bool(difficult))
        for image, label, box, difficult in zip(*truth.objects, strict=True)
    ]
    return found, there
