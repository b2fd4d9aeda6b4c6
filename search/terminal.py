"""Printing to a terminal what may come from anywhere: the database, a study file."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from studies.text import printable


class SafeConsole(Console):
    """Shows text as it is: nothing in it is markup, an emoji's name, or a code for the terminal."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Those with codes of rich's own have no text that is not rich's.
            yield segment if segment.control else segment._replace(text=printable(segment.text))
