"""What `owl-swin info` says of a data set: how it was understood, what it holds, what is wrong with it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from owl_swin.errors import MissingExtraError, OwlSwinError
from owl_swin.files import IMAGE_FORMS, make_folder_of, write_image

# Rows of the table of classes: the most and the least frequent ones.
TOP, RAREST = 10, 5
# Without --check, so many pictures of a set for alignment are read, at this side in pixels.
READ_PICTURES, PICTURE_PX = 2000, 128


def describe_data(
    path: str,
    kind: str,
    images: str,
    split: str,
    *,
    maps: Mapping[str, Any],
    check: bool,
    save: Path | None,
    samples: int,
) -> dict[str, Any]:
    """Reads the set, writes the contact sheet where ``save`` says so, and returns the summary. ``maps`` are what
    DataConfig needs to know of label maps."""
    from owl_swin.data.config import DETECT_KINDS, DataConfig
    from owl_swin.data.contact_sheet import sheet_of_pictures, sheet_of_scenes
    from owl_swin.data.pictures import load_pictures
    from owl_swin.data.scenes import load_scenes
    from owl_swin.data.summary import summarise_pictures, summarise_scenes

    if save is not None and save.suffix.lower() not in IMAGE_FORMS:
        raise OwlSwinError(f"{save}: the sheet's name must end in {', '.join(IMAGE_FORMS)}")
    if save is not None:
        make_folder_of(save)
    config = DataConfig(kind, path, images, split, size=PICTURE_PX, **maps)
    about: dict[str, Any] = {"path": path, "kind": kind}
    if kind in DETECT_KINDS:
        try:
            scenes = load_scenes(config, masks=True)
        except MissingExtraError:  # polygons; boxes can be counted without
            scenes = load_scenes(config)
        about |= {"for": "detection", **summarise_scenes(scenes, check=check)}
        sheet = sheet_of_scenes(scenes, samples) if save else None
    else:
        config = replace(config, size=64) if check else replace(config, max_pictures=READ_PICTURES)
        pictures = load_pictures(config)
        about |= {"for": "alignment", **summarise_pictures(pictures)}
        about["only_the_first"] = len(pictures.images) == READ_PICTURES and not check
        sheet = sheet_of_pictures(pictures, 2 * samples) if save else None
    if save is not None and sheet is not None:
        write_image(save, sheet, what="the sheet")
        about["sheet"] = str(save)
    return about


def data_lines(about: dict[str, Any]) -> list[str]:
    """The summary as text."""
    more = "; only so many were read, --check reads all" if about.get("only_the_first") else ""
    lines = [f"{about['path']}  (kind {about['kind']}, for {about['for']})", f"  pictures   {about['pictures']}{more}"]
    lines += _box_lines(about) if about["for"] == "detection" else _text_lines(about)
    counts = about.get("boxes_of_class") or about.get("pictures_of_class")
    if counts:
        lines += ["", "boxes a class" if "boxes" in about else "pictures a class", *_class_lines(counts)]
    if about.get("width_px"):
        lines += ["", "pictures", *_picture_lines(about)]
    broken = about["broken"]
    lines += ["", f"left out   {broken['count']}"]
    lines += [f"  {count:>7}  {reason}" for reason, count in broken["reasons"].items()]
    lines += [f"    e.g. {sentence}" for sentence in broken["first"][:3]]
    if "sheet" in about:
        lines += ["", f"sheet      {about['sheet']}"]
    return lines


def _box_lines(about: dict[str, Any]) -> list[str]:
    a_picture = about["boxes_a_picture"]
    lines = [
        f"  no boxes   {about['pictures_without_boxes']} pictures",
        f"  boxes      {about['boxes']}; a picture has {_number(a_picture['mean'])} on average, "
        f"at most {_number(a_picture['max'])}",
        f"  classes    {about['classes']}, {about['classes_without_boxes']} of them without a box, "
        f"{about['classes_with_synonyms']} with synonyms",
    ]
    if about["boxes_with_masks"] or about["areas"]:
        lines.append(
            f"  masks      {about['boxes_with_masks']} of the boxes have one; {about['areas']} areas without boxes"
        )
    negatives = about["verified_negatives_a_picture"]
    if negatives is None:
        lines.append("  negatives  every class that has no box in a picture")
    else:
        lines.append(
            f"  negatives  those that were looked for: {_number(negatives['mean'])} classes a picture on average"
        )
    if about["pictures_with_unknown_classes"]:
        lines.append(f"  unknown    {about['pictures_with_unknown_classes']} pictures may lack boxes of some class")
    if about["box_sizes"]:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in about["box_sizes"].items())
        percent = about["box_percent_of_picture"]
        lines += [
            f"  box sizes  {shares} (borders at 32x32 and 96x96 px)",
            f"  box area   {_number(percent['p50'])} % of the picture in the median; nine of ten from "
            f"{_number(percent['p5'])} to {_number(percent['p95'])} %",
        ]
    return lines


def _text_lines(about: dict[str, Any]) -> list[str]:
    if "captions" not in about:
        return [f"  classes    {about['classes']}, {about['classes_with_synonyms']} with synonyms"]
    words, own = about["words_a_caption"], about["captions_a_picture"]
    return [
        f"  captions   {about['captions']}, {about['different_captions']} different; {_number(own['mean'])} a picture",
        f"  words      {_number(words['median'])} a caption in the median, {_number(words['max'])} at most",
    ]


def _class_lines(counts: dict[str, int]) -> list[str]:
    rows = list(counts.items())
    if len(rows) > TOP + RAREST + 1:
        rows = [*rows[:TOP], ("…", -1), *rows[-RAREST:]]
    total = max(1, sum(counts.values()))
    return [f"  {'':>7}  {name}" if n < 0 else f"  {n:>7}  {100 * n / total:5.1f} %  {name[:60]}" for name, n in rows]


def _picture_lines(about: dict[str, Any]) -> list[str]:
    width, height, ratio = about["width_px"], about["height_px"], about["aspect_ratio"]
    shapes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in about["shapes"].items())
    frequent = ", ".join(f"{size} ({count})" for size, count in about["frequent_sizes"].items())
    lines = [
        f"  looked at  {about['pictures_looked_at']}",
        f"  width      {_number(width['min'])} to {_number(width['max'])} px, median {_number(width['median'])}",
        f"  height     {_number(height['min'])} to {_number(height['max'])} px, median {_number(height['median'])}",
        f"  sizes      {frequent}",
        f"  shapes     {shapes}; width to height {ratio['min']:.2f} to {ratio['max']:.2f}",
    ]
    if about["pictures_turned_by_exif"]:
        lines.append(f"  EXIF       {about['pictures_turned_by_exif']} are stored in another orientation")
    if about["pictures_not_of_stated_size"]:
        count = about["pictures_not_of_stated_size"]
        lines.append(f"  scaled     {count} have another size than the annotations state; boxes are scaled to them")
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or float(value).is_integer() else f"{value:.2g}"


def data_json(about: dict[str, Any]) -> str:
    """The summary as one JSON object."""
    return json.dumps(about, indent=2, ensure_ascii=False)
