"""The networks for the embedded digit scenes, shared by the demo and by the tables of results."""

from pathlib import Path

ARCH = "resnet10t"
THIN = {"stem_width": 8, "channels": (16, 32, 64, 96), "zero_init_last": False}
STUDENT_ARGS = [f"--model-kwargs={key}={value}".replace(" ", "") for key, value in THIN.items()]
ANNOTATOR_MODEL_ARGS = [*STUDENT_ARGS, "--model-kwargs=output_stride=8"]  # 64 pixels -> an 8x8 map
ANNOTATE_ARGS = [*ANNOTATOR_MODEL_ARGS, "--num-classes=10", "--input-size=64", "--topk=3"]

REPOSITORY = Path(__file__).resolve().parents[2]
