"""The table of layouts: a new one is a module and a row here."""

from core.data.layouts.arena import ARENA
from core.data.layouts.chosen_rejected import CHOSEN_REJECTED, REWARDBENCH
from core.data.layouts.graded import GRADED
from core.data.layouts.judgebench import JUDGEBENCH
from core.data.layouts.layout import Layout
from core.data.layouts.lmsys import LMSYS, WSDM
from core.data.layouts.pandalm import PANDALM
from core.data.layouts.scored import NESTED, SCORED
from core.data.layouts.shp import SHP

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *(LMSYS, WSDM, ARENA, CHOSEN_REJECTED, REWARDBENCH, GRADED, PANDALM, JUDGEBENCH, SHP, SCORED, NESTED),
    )
}
