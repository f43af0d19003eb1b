"""Figures inside a page: an SVG file without anything but shapes, its names made its own.

Files of one drawing program share names (`clip1`, `axes_1`); two of them in one page would
take each other's clips and markers.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
SHAPES = frozenset({
    "svg", "g", "defs", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text",
    "tspan", "use", "clipPath", "image", "linearGradient", "radialGradient", "stop", "pattern",
    "mask", "symbol", "marker",
})  # fmt: skip
"""Elements that are kept; scripts, styles, links, metadata and foreign content are not."""
POINTS_TO_PIXELS = 4 / 3
PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*")


def inline(drawing: str, name: str, title: str, caption: str) -> str:
    """An SVG file as an element of an HTML page.

    Args:
        drawing: The file.
        name: Put before every name inside; unique on the page.
        title: Read out first, and shown by browsers.
        caption: Read out next.

    Raises:
        ValueError: the file is no SVG.
    """
    try:
        root = ET.fromstring(drawing)  # noqa: S314 - files of this harness; expat bounds expansion
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError("it is no SVG")
    made = _copy(root, name)
    width = _pixels(root.get("width"))
    for size in ("width", "height"):
        made.attrib.pop(size, None)
    made.set("role", "img")
    made.set("aria-labelledby", f"{name}---title {name}---caption")
    if width:
        made.set("style", f"--width:{width}px")
    for tag, text in (("desc", caption), ("title", title)):
        said = ET.Element(tag, {"id": f"{name}---{'title' if tag == 'title' else 'caption'}"})
        said.text = text
        made.insert(0, said)
    return ET.tostring(made, encoding="unicode", short_empty_elements=False)


def _copy(element: ET.Element, name: str) -> ET.Element:
    """The element, its kept attributes and its kept children, without namespaces (HTML has none)."""
    made = ET.Element(_local(element.tag))
    for key, value in element.attrib.items():
        attribute = _attribute(key, value, name)
        if attribute is not None:
            made.set(*attribute)
    made.text = _text(element.text, made.tag)
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) in SHAPES:
            copied = _copy(child, name)
            copied.tail = _text(child.tail, made.tag)
            made.append(copied)
    return made


def _text(text: str | None, tag: str) -> str | None:
    """Text is kept where it is drawn; elsewhere it is the indentation of a file."""
    return text if tag in {"text", "tspan"} else None


def _attribute(key: str, value: str, name: str) -> tuple[str, str] | None:
    """An attribute as HTML has it, names inside made unique; None for what may not stay."""
    local = _local(key)
    if local == "href":
        if value.startswith("#"):
            return "href", f"#{name}--{value[1:]}"
        return ("href", value) if PICTURE.fullmatch(value) else None
    if key.startswith("{") or local.lower().startswith("on") or local == "xmlns":
        return None
    if local == "id":
        return "id", f"{name}--{value}"
    own = re.sub(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)", rf"url(#{name}--\1)", value)
    outside = re.search(r"url\((?!#)|expression|@import|javascript:", own, re.IGNORECASE)
    return None if outside else (local, own)


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _pixels(size: str | None) -> int | None:
    """`504pt` in pixels of a page."""
    found = re.fullmatch(r"([\d.]+)(pt|px)?", size or "")
    if not found:
        return None
    return round(float(found[1]) * (POINTS_TO_PIXELS if found[2] == "pt" else 1))
