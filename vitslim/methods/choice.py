"""What an analysis recommended for an option of a method, beside what was used."""

from vitslim.shapes import Result

OptionValue = list[int] | list[list[int]]


class Choice(Result):
    """An option that an analysis decides where it is left open: one entry of choices.json.

    Attributes:
        option: of the method's config.
        recommended: its value by the analysis of the dense model; None without one, or where it has nothing to say.
        used: its value as the plan has it.
        reason: why this one is used, a sentence without its full stop.
    """

    method: str
    option: str
    recommended: OptionValue | None
    used: OptionValue
    reason: str
