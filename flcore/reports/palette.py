"""Colours of figures and reports. They differ for people with colour blindness, after Okabe and Ito (2008)."""

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072b2", "#d55e00", "#00805c", "#a8578b", "#4a9fd0", "#7a7f87"
INK, FAINT = "#22262c", "#d9dce1"

SERIES = (BLUE, ORANGE, GREEN, PURPLE, "#8a6d00", SKY, "#5b4b9a", GREY)
"""Colours of lines and of stacked parts, in order."""
