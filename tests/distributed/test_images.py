"""Boxes and pixels on two gloo processes equal those on one, evaluation and sample images included."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    import polytask as pt
    from polytask.models.encoders import FPN

    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    image = torch.rand(10, 3, 16, 16, generator=g)
    boxes = torch.zeros(10, 3, 5)
    boxes[:, :, 0] = -1
    for row in range(10):
        for place in range(row % 4):
            low = torch.randint(0, 8, (2,), generator=g)
            boxes[row, place] = torch.tensor([row % 2, *low, *(low + 6)])
    boxes[4] = float("nan")
    mask = torch.randint(-1, 3, (10, 16, 16), generator=g).to(torch.int8)
    mask[7] = -1
    torch.manual_seed(1)
    encoder = FPN({"name": "convnet", "channels": [4, 4], "norm": "group"}, channels=8, norm="group")
    tasks = [pt.tasks.detection("boxes", 2, size=[16, 16]), pt.tasks.segmentation("parts", 3, dice=0.5)]
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks)
    data = {"image": image, "boxes": boxes, "parts": mask}
    pt.fit(
        model, data, data, epochs=2, batch_size=8, optimizer="sgd", lr=0.02, device="cpu", select="last",
        out=sys.argv[1], progress=False,
    )
    """
)


def run(folder, processes):
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    for first, second in zip(one["tasks"], two["tasks"], strict=True):
        assert first["scores"]["validation"] == pytest.approx(second["scores"]["validation"], abs=1e-4, nan_ok=True)
        assert len(second["figures"]["pictures"]) > 1
    for first, second in zip(one["epochs"], two["epochs"], strict=True):
        for task in ("boxes", "parts"):
            assert first[f"loss.{task}"] == pytest.approx(second[f"loss.{task}"], abs=1e-5)
    # Sample images are of the rows that the main process has: every second one.
    images = {picture["image"] for picture in one["tasks"][0]["figures"]["pictures"]}
    assert images & {picture["image"] for picture in two["tasks"][0]["figures"]["pictures"]}
    shown = {picture["image"]: picture["boxes"] for picture in one["tasks"][0]["figures"]["pictures"]}
    for picture in two["tasks"][0]["figures"]["pictures"]:
        if picture["image"] in shown:
            assert picture["boxes"]["true"] == shown[picture["image"]]["true"]
