"""Every notebook runs from top to bottom, small, and is kept without outputs, or with those of one run."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_as_it_was_written_or_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    run = any(cell.outputs for cell in code)
    for number, cell in enumerate(code, 1):
        if run:  # in order, and to the end
            assert cell.execution_count == number
            assert not [out for out in cell.outputs if out.get("name") == "stderr"]
        else:
            assert cell.execution_count is None
        assert "ename" not in str(cell.outputs)
        assert not cell.source.lstrip().startswith(("%", "!"))  # nothing is installed


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("GOODTRANSFER_NOTEBOOK", "tiny")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    # Lightning's advice, where SLURM is installed.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:The `srun` command is available")
    notebook = nbformat.read(path, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": work}})
    client.execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out.text for out in outputs if out.get("name") == "stderr"]  # nor any warning
    figures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert figures
    assert not list(work.iterdir())  # it leaves nothing behind
