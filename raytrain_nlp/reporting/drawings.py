"""The panels of one page as HTML: what moves, and below it the picture that shows where scripts are off."""

from __future__ import annotations

from raytrain_nlp.reporting import interactive
from raytrain_nlp.reporting.charts import Panel
from raytrain_nlp.reporting.figures import draw_panel
from raytrain_nlp.reporting.markup import esc, heading, still

_MOST = 1_850_000
"""Bytes of scripts, data and pictures: a page is to stay below two megabytes, and its texts take some."""
_SEEN = 'if (window.Bokeh) document.documentElement.classList.add("scripts")'


class Drawings:
    """All panels of a page.

    Args:
        stills: draw the pictures, which takes seconds; without Bokeh they are drawn anyway.
    """

    def __init__(self, panels: list[Panel], stills: bool = True):
        self._live: dict[str, list[str]] = {}
        self.head = self.script = ""
        """What goes into the page's head, and to the end of its body."""
        if panels and interactive.available():
            self._live, self.script = interactive.charts_html(panels)
            self.head = f"<script>{interactive.library()}</script><script>{_SEEN}</script>"
        self.pictures = {panel.name: draw_panel(panel) for panel in panels} if stills or not self._live else {}
        """PNG by the name of the panel."""
        self._inside = self._fitting(_MOST - len(self.head) - len(self.script))

    def _fitting(self, room: int) -> set[str]:
        """The pictures there is room for in a page that has others to show; all, where it has not."""
        inside = set()
        for name, png in self.pictures.items():
            room -= len(png) * 4 // 3  # in base64
            if room > 0 or not self._live:
                inside.add(name)
        return inside

    def html(self, panel: Panel) -> str:
        """A panel with its heading and caption."""
        moving = f'<div class="charts live">{"".join(self._live[panel.name])}</div>' if self._live else ""
        return heading(panel.title, panel.says) + moving + self._still(panel)

    def _still(self, panel: Panel) -> str:
        if panel.name in self._inside:
            return f'<figure class="still">{still(self.pictures[panel.name], panel.title)}</figure>'
        where = f"beside this page (-{panel.name}.png)" if panel.name in self.pictures else "written by `report` alone"
        return f"<noscript><p>Scripts are off: the picture of it is {esc(where)}.</p></noscript>"
