"""The first sheet of a workbook in Office Open XML, as far as a plain table needs it (ECMA-376, part 1, 18.3)."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows below the header that are not empty: the text of each filled cell by its column's name.

    Numbers are as the file writes them: 213.0.
    """
    with zipfile.ZipFile(path) as workbook:
        strings = ["".join(text.itertext()) for text in ElementTree.fromstring(workbook.read(STRINGS))]
        sheet = ElementTree.fromstring(workbook.read(SHEET))
    found = (filled(row, strings) for row in sheet.iter(f"{MAIN}row"))
    header = next(found)
    yield from ({header[column]: text for column, text in cells.items()} for cells in found if cells)


def filled(row: ElementTree.Element, strings: list[str]) -> dict[str, str]:
    """The texts of a row's cells by their columns' letters, those of B7 by B."""
    cells = {}
    for cell in row.iter(f"{MAIN}c"):
        if value := cell.findtext(f"{MAIN}v"):
            column = re.sub(r"\d+", "", cell.attrib["r"])
            cells[column] = strings[int(value)] if cell.get("t") == "s" else value
    return cells
