"""The tables of Zheng et al. (IEEE Access, 2024, doi 10.1109/ACCESS.2024.0429000), with ours beside them."""

NETWORKS = {  # Table 2
    "Lite": {"parameters": 16e6, "flops": 1.1e9, "iou": 0.796},
    "Small": {"parameters": 36e6, "flops": 1.2e9, "iou": 0.826},
    "Medium": {"parameters": 173e6, "flops": 5e9, "iou": 0.935},
    "Moderate": {"parameters": 179e6, "flops": 5.1e9, "iou": 0.953},
}
ABLATION = {  # Table 1: mean relative error, which the paper does not define
    "as it is": 0.085,
    "without patch embedding": 0.093,
    "without S2-MLP blocks": 0.386,
    "plain FFN": 0.148,
}
UNITS = (("parameters", 1e6, "M"), ("flops", 1e9, "G"))
# Tables 3 and 4, IoU; thresholds of MED-SEM chosen per sample with the truth in view. Whether the wires stand
# or lie is not said.
STRUCTURES = {  # series -> method -> name -> IoU
    "nanocube": {
        "MED-SEM as reported in the paper": {"1": 0.0595, "2": 0.165, "3": 0.206, "4": 0.204},
        "3D U-Net of the paper": {"1": 0.833, "2": 0.952, "3": 0.8, "4": 0.465},
        "network of the paper": {"1": 0.902, "2": 1.0, "3": 1.0, "4": 1.0},
    },
    "nanowire": {
        "MED-SEM as reported in the paper": {"2": 0.095, "4": 0.324, "6": 0.508, "8": 0.641, "10": 0.872},
        "3D U-Net of the paper": {"2": 0.788, "4": 0.777, "6": 0.879, "8": 0.94, "10": 0.9},
        "network of the paper": {"2": 0.92, "4": 0.984, "6": 0.974, "8": 0.995, "10": 0.918},
    },
}


def tables(results: dict) -> list[dict]:
    """What is reported, as rows of text and numbers."""
    about, found = results["circumstances"], results["methods"]
    dose = f"{about['electrons_per_pixel']:,} electrons per pixel and energy"
    first = next(iter(found.values()))
    ranked = sorted(found, key=lambda title: -found[title]["iou"])
    made = [
        {
            "title": f"All methods on the {about['test_specimens']} random specimens of {about['data_set']}",
            "note": f"Mean IoU of Cu, {dose}. The threshold was chosen on validation specimens. Oracle: the "
            "best of .5, .6, .7, .8, .9 per specimen with the truth in view, as the paper treats MED-SEM; "
            "below the IoU where the chosen threshold is lower than all of these. Time: one volume alone, "
            f"{', '.join(dict.fromkeys(method['on'] for method in found.values()))}.",
            "header": ["method", "IoU", "standard error", "oracle", "threshold", "seconds per volume"],
            "rows": [
                [title]
                + [found[title][k] for k in ("iou", "standard_error", "iou_oracle", "threshold")]
                + [found[title]["seconds_per_volume"]]
                for title in ranked
            ],
        }
    ]
    for series, title in (
        ("nanocube", "Table 3: Cu cube of 5 nm in Si, by position"),
        ("nanowire", "Table 4: upright wire, by radius of the Cu core in nm"),
        ("nanowire_lying", "Lying wire, by radius of the Cu core in nm"),
    ):
        names = list(first[series])
        rows = [[t] + [found[t][series][n]["fixed"] for n in names] for t in ranked]
        rows += [[f"{t}, oracle"] + [found[t][series][n]["oracle"] for n in names] for t in ranked]
        rows += [[t] + [iou[n] for n in names] for t, iou in STRUCTURES.get(series, {}).items()]
        note = f"IoU of Cu; ours at {dose}, the dose of the paper is not given."
        if series == "nanowire":
            note += " An upright wire tests no depth, and whether the paper's stand is not said."
        made.append({"title": title, "note": note, "header": ["method", *names], "rows": rows})
    for key, title, note in (
        ("by_family", "By family", ""),
        ("out_of_family", "Shapes out of the families", ""),
        ("by_depth", "By depth", "Pooled over the specimens, planes in nm below the top. "),
    ):
        values = {t: found[t][key] for t in ranked}
        if key == "by_depth":
            values = {t: {f"{z + 0.5:g}": v[z] for z in range(0, len(v), 2)} for t, v in values.items()}
        names = list(values[ranked[0]])
        rows = [[t] + [values[t][n] for n in names] for t in ranked]
        note = f"{note}IoU of Cu, {dose}, threshold chosen on validation specimens."
        made.append({"title": title, "note": note, "header": ["method", *names], "rows": rows})
    parts = [_parts(results["ablation"])] if results["ablation"] else []
    return [*made, *parts, _sizes(results["networks"], first["iou"])]


def markdown(results: dict) -> str:
    """The tables as text."""

    def cell(value):
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = []
    for table in results["tables"]:
        lines += [f"## {table['title']}", "", table["note"], ""]
        for row in (table["header"], ["---"] * len(table["header"]), *table["rows"]):
            lines.append("| " + " | ".join(map(cell, row)) + " |")
        lines.append("")
    lines += ["## Methods", ""]
    lines += [f"- **{title}**: {found['about']}." for title, found in results["methods"].items()]
    return "\n".join(lines)


def _parts(ablation):
    """Table 1; `ablation` as `benchmarks.ablation --of=paper` writes it."""
    rows = [
        [name, error, ablation["mre"].get(name), ablation["rows"].get(name, {"all": {}})["all"].get("iou")]
        for name, error in ABLATION.items()
    ]
    return {
        "title": "Table 1: parts of the network of the paper",
        "note": "Mean relative error, which the paper does not define, beside ours (Frobenius norm of the "
        "one-hot difference) and the IoU of Cu. Ours: a network of two narrow stages, trained briefly.",
        "header": ["network", "paper, MRE", "ours, MRE", "ours, IoU"],
        "rows": rows,
    }


def _sizes(networks, iou):
    """Table 2."""
    rows = []
    for title, size in sorted(networks.items(), key=lambda item: item[1]["parameters"]):
        paper = NETWORKS.get(title, {})
        rows.append(
            [title, f"{size['parameters'] / 1e6:.1f} M", f"{size['macs'] / 1e9:.2f} G"]
            + [f"{paper[k] / unit:g} {name}" if paper else None for k, unit, name in UNITS]
            + [paper.get("iou")]
        )
    return {
        "title": "Table 2: networks",
        "note": "The paper counts operations by a formula that adds those of normalisation. Its IoU is that "
        f"of its own test set; `compact` has {iou:.3f} on ours.",
        "header": ["network", "parameters", "multiply-adds", "paper: parameters", "operations", "IoU"],
        "rows": rows,
    }
