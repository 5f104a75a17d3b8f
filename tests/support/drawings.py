"""What tests read off figures."""

from matplotlib.patches import Rectangle


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rims_of(figure):
    return [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]


def labels_of(ticks):
    return [tick.get_text() for tick in ticks]
