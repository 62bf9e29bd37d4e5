"""Fixtures of the whole suite: one thread, a quiet trainer, and the shared photos and numbers."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny operations on two threads are slower, and CI shares its cores


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Listings of folders are kept for this run alone, also by the processes it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOODTRANSFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos, weights and official numbers beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the photos and numbers in {SHARED}, which are not there")
    return SHARED


@pytest.fixture
def trainer_options(tmp_path):
    """Keyword arguments for a Trainer that logs and prints nothing."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
