"""The drawings of appendix E."""

from shared.drawings import Drawing


def two_paths() -> Drawing:
    """A frozen matrix, and beside it the way through two thin ones."""
    d = Drawing(
        720,
        190,
        "An input x goes two ways: through the frozen matrix W, and through the thin "
        "matrices A and B, which learn. The two results are added to the output y.",
    )
    x = d.box(20, 62, "x", shape="(B, T, in)", width=90)
    W = d.box(240, 15, "W, frozen", shape="(in, out)", color="blue", width=220)
    A = d.box(200, 120, "A", shape="(in, r)", color="orange", width=90)
    B = d.box(410, 120, "B", shape="(r, out)", color="orange", width=90)
    plus = d.box(545, 70, "+", width=40, height=36)
    y = d.box(620, 62, "y", shape="(B, T, out)", width=90)
    d.arrow(x.top, W.left, bend="down")
    d.arrow(x.bottom, A.left, bend="down")
    d.arrow(A, B, label="r numbers", shape="(B, T, r)")
    d.arrow(W.right, plus.top, bend="across")
    d.arrow(B.right, plus.bottom, bend="across")
    d.arrow(plus, y)
    return d


def merged() -> Drawing:
    """What training has put into A and B moves into W."""
    d = Drawing(
        720,
        145,
        "The product of A and B has the shape of W. Added to W it makes one matrix, "
        "which is used like any other.",
    )
    grid = [[1.0] * 7 for _ in range(5)]
    for x, y, cells, name, color in (
        (30, 20, grid, "W", "blue"),
        (285, 20, [[1.0]] * 5, "A", "orange"),
        (320, 54, [[1.0] * 7], "B", "orange"),
        (565, 20, grid, "the new W", "green"),
    ):
        d.matrix(x, y, cells, cell=17, shape=name, color=color, show=False)
    d.text(217, 62, "+  alpha / r  times", 16)
    d.arrow((455, 62), (550, 62), label="merge")
    return d
