"""Who sees what in BiGAN, VEEGAN and AVB: draws ``docs/images/joint_games.png``.

python docs/figures/joint_games.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

MODEL, GUIDE, CRITIC, VALUE = "#cfe3f5", "#fbe0c3", "#dcedd5", "white"
LEARNS, FLOWS = "#b2182b", "0.35"
MODEL_X, GUIDE_X, MIDDLE = 1.3, 4.7, 3.0  # columns
TOP, NET, CODE, CRITIC_Y, LOSS_Y = 7.6, 6.3, 5.0, 3.0, 1.35  # rows


def box(axis, x, y, text, color, width=1.9, height=0.72):
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=color,
            edgecolor="0.3",
            lw=1 if color != VALUE else 0.6,
        )
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axis, start, end, color=FLOWS):
    axis.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "lw": 1.5 if color == LEARNS else 1.0,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def panel(axis, title):
    axis.set(xlim=(-0.35, 6.35), ylim=(-0.4, 8.9), aspect="equal")
    axis.axis("off")
    axis.text(MIDDLE, 8.6, title, ha="center", va="center", fontsize=11, weight="bold")


def programs(axis, left, right, guide="guide"):
    """Draws both programs with what goes in and comes out."""
    for x, name, color, (above, below) in [
        (MODEL_X, "model", MODEL, left),
        (GUIDE_X, guide, GUIDE, right),
    ]:
        box(axis, x, TOP, above, VALUE)
        box(axis, x, NET, name, color)
        box(axis, x, CODE, below, VALUE)
        arrow(axis, (x, TOP - 0.36), (x, NET + 0.36))
        arrow(axis, (x, NET - 0.36), (x, CODE + 0.36))


def pairs(axis, left, right):
    """Draws the critic with the pairs that it sees."""
    box(axis, MIDDLE, CRITIC_Y, "critic", CRITIC)
    arrow(axis, (MODEL_X, CODE - 0.36), (MIDDLE - 0.6, CRITIC_Y + 0.36))
    arrow(axis, (GUIDE_X, CODE - 0.36), (MIDDLE + 0.6, CRITIC_Y + 0.36))
    axis.text(1.72, 3.82, left, ha="right", va="center", fontsize=9)
    axis.text(4.28, 3.82, right, ha="left", va="center", fontsize=9)


def loss(axis, text, x=MIDDLE, width=3.5):
    box(axis, x, LOSS_Y, text, "#f7f7f7", width=width, height=0.9)


def note(axis, text):
    axis.text(MIDDLE, -0.05, text, ha="center", va="center", fontsize=9)


def to_model(axis, *way):
    """Draws a loss's way back to the model, round the pairs."""
    points = [*way, (0.0, way[-1][1]), (0.0, NET)]
    axis.plot(*zip(*points, strict=True), color=LEARNS, lw=1.5, solid_capstyle="butt")
    arrow(axis, (0.0, NET), (MODEL_X - 0.95, NET), LEARNS)


def to_guide(axis, *way):
    """Draws a loss's way back to the guide."""
    points = [*way, (6.0, way[-1][1]), (6.0, NET)]
    axis.plot(*zip(*points, strict=True), color=LEARNS, lw=1.5, solid_capstyle="butt")
    arrow(axis, (6.0, NET), (GUIDE_X + 0.95, NET), LEARNS)


NOISE, DRAW, DATUM, CODED = r"$z \sim$ prior", r"draw $\tilde x$", "datum $x$", r"code $\hat z$"
FAKE, REAL = "$(\\tilde x, z)$\nfake", "$(x, \\hat z)$\nreal"


def bigan(axis):
    panel(axis, "BiGAN, ALI")
    programs(axis, (NOISE, DRAW), (DATUM, CODED))
    pairs(axis, FAKE, REAL)
    loss(axis, "adversarial loss,\nboth labels flipped")
    arrow(axis, (MIDDLE, CRITIC_Y - 0.36), (MIDDLE, LOSS_Y + 0.45))
    to_model(axis, (MIDDLE - 1.75, LOSS_Y))
    to_guide(axis, (MIDDLE + 1.75, LOSS_Y))
    note(axis, "one loss for model and guide")


def veegan(axis):
    panel(axis, "VEEGAN")
    programs(axis, (NOISE, DRAW), (DATUM, CODED), guide="guide\n(reconstructor)")
    pairs(axis, FAKE, REAL)
    loss(axis, "adversarial loss\nof the draw", 1.62, 2.1)
    loss(axis, "distance of $z$\nfrom guide$(\\tilde x)$", 4.38, 2.1)
    arrow(axis, (MIDDLE - 0.4, CRITIC_Y - 0.36), (1.9, LOSS_Y + 0.45))
    to_model(axis, (0.57, LOSS_Y))
    to_model(axis, (4.38, LOSS_Y - 0.45), (4.38, LOSS_Y - 0.75))
    to_guide(axis, (5.43, LOSS_Y))
    note(axis, "the guide learns from the distance alone")


def avb(axis):
    panel(axis, "AVB")
    box(axis, MODEL_X, CODE, NOISE, VALUE)
    box(axis, MODEL_X, NET, "model", MODEL)
    arrow(axis, (MODEL_X, NET - 0.36), (MODEL_X, CODE + 0.36))
    box(axis, GUIDE_X, TOP, "datum $x$, noise", VALUE)
    box(axis, GUIDE_X, NET, "guide", GUIDE)
    box(axis, GUIDE_X, CODE, CODED, VALUE)
    arrow(axis, (GUIDE_X, TOP - 0.36), (GUIDE_X, NET + 0.36))
    arrow(axis, (GUIDE_X, NET - 0.36), (GUIDE_X, CODE + 0.36))
    arrow(axis, (GUIDE_X - 0.95, CODE + 0.2), (MODEL_X + 0.95, NET - 0.2))
    axis.text(3.0, NET + 0.1, "scores $x$", ha="center", va="center", fontsize=9)
    pairs(axis, "$(x, z)$\nreal", "$(x, \\hat z)$\nfake")
    loss(axis, r"$-\log\, p(x \mid \hat z)$", 1.62, 2.1)
    loss(axis, "minus the score\nof $(x, \\hat z)$", 4.38, 2.1)
    arrow(axis, (MIDDLE + 0.4, CRITIC_Y - 0.36), (4.1, LOSS_Y + 0.45))
    to_model(axis, (0.57, LOSS_Y))
    to_guide(axis, (5.43, LOSS_Y))
    to_guide(axis, (1.62, LOSS_Y - 0.45), (1.62, LOSS_Y - 0.75))
    note(axis, r"best score: $\log\, p(z) / q(z \mid x)$")


def main():
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 5.4), layout="constrained")
    for axis, draw in zip(axes, (bigan, veegan, avb), strict=True):
        draw(axis)
    path = Path(__file__).parents[1] / "images" / "joint_games.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
