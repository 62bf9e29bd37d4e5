"""The pictures of Figures 1 and 7 draw the numbers, and nothing is cut off."""

import numpy as np
import pytest
from PIL import Image

import goodtransfer.analysis.error_figures as figures
from goodtransfer.analysis.error_figures import draw_shares, draw_trend
from goodtransfer.analysis.error_measures import Measures


def test_figures_are_written_for_any_models_and_panels(tmp_path):
    rng = np.random.default_rng(0)

    def measures(scale):
        trend, shares = rng.dirichlet(np.ones(4), (2, 5)), rng.dirichlet(np.ones(5), 2)
        return Measures(*(scale * v for v in (trend, shares, np.ones((2, 1)), np.ones((2, 4)))))

    models = {f"a model with a long name, {i}": measures(100) for i in range(2)}
    models["nothing"] = measures(np.nan)
    panels = {"mean": [0, 1], "a": [0], "b": [1]}
    for name, draw in (("trend", draw_trend), ("shares", draw_shares)):
        path = tmp_path / "new" / f"{name}.png"
        draw(models, panels, path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 600
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all()  # nothing is cut off
        assert (pixels < 255).any(-1).mean() > 0.02


def test_figures_draw_the_numbers(tmp_path, monkeypatch):
    """Heights of the areas and angles of the wedges, as matplotlib was told them."""
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    rng = np.random.default_rng(0)
    parts = rng.dirichlet(np.ones(4), (2, 5)) * 100
    pies = rng.dirichlet(np.ones(5), 2) * 100
    parts[1, 3:] = np.nan
    models = {"one": Measures(parts, pies, np.zeros((2, 1)), np.zeros((2, 4)))}
    draw_trend(models, {"b": [1], "both": [0, 1]}, tmp_path)
    draw_shares(models, {"both": [0, 1]}, tmp_path)

    b, both = drawn[0].axes
    assert b.get_title() == "b"
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in b.collections]
    assert tops == pytest.approx(np.cumsum(parts[1, :3], 1).max(0))
    assert max(area.get_paths()[0].vertices[:, 0].max() for area in b.collections) == 2.2
    assert [text.get_text() for text in both.texts] == ["of 2, 2, 2, 1, 1 classes"]
    heights = both.collections[0].get_paths()[0].vertices
    assert heights[heights[:, 0] == 1, 1].max() == pytest.approx(parts[:, 1, 0].mean())
    wedges = drawn[1].axes[0].patches
    assert not b.texts
    assert all("of" not in text.get_text() for text in drawn[1].axes[0].texts)
    angles = [abs(w.theta2 - w.theta1) / 3.6 for w in wedges]
    assert angles == pytest.approx(pies.mean(0), abs=1e-3)


def test_a_class_with_false_positives_for_one_tick_alone_is_seen(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    parts = np.full((1, 5, 4), np.nan)
    parts[0, 0] = 40, 30, 20, 10
    one = Measures(parts, np.full((1, 5), np.nan), np.zeros((1, 1)), np.zeros((1, 4)))
    draw_trend({"one": one}, {"a": [0]}, tmp_path)
    (axes,) = drawn[0].axes
    corners = [area.get_paths()[0].get_extents() for area in axes.collections]
    assert [c.height for c in corners] == pytest.approx([40, 30, 20, 10])
    assert min(c.width for c in corners) > 0.1
    assert not axes.texts
