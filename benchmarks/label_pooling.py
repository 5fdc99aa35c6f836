"""`label_pool` on sparse maps against its definition, the dense map and torchvision's RoIAlign; both followed by softmax.

Every training step pools a target for every crop, so this is what ReLabel costs per step. The dense way writes and reads
B x C x H x W floats, 230 MB here, to get B x C of them.

On a CPU both run with one thread and with all threads. The sparse way is about twenty operations of well under a
millisecond, and each waits for its slowest thread: on a CPU with other load, the time with all threads is mostly waiting.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map.
"""

import torch
from torch import Tensor
from torchvision.ops import roi_align

from benchmarks.generated_maps import GRID, NUM_CLASSES, TOPK, generated_maps
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from relabel.labels.boxes import random_boxes
from relabel.labels.pooling import label_pool

BATCH = 256
ROUNDS = 40


def main() -> None:
    cpu = torch.device("cpu")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        compare(cpu)
    if torch.cuda.is_available():
        compare(torch.device("cuda"))


def compare(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = generated_maps(BATCH, generator).to(device)
    boxes = random_boxes(BATCH, generator).to(device)
    rows, columns = GRID
    in_cells = boxes * torch.tensor([columns, rows, columns, rows], device=device)
    indexed_boxes = torch.cat([torch.arange(BATCH, device=device).unsqueeze(1), in_cells], dim=1)  # (B, 5): image, box

    def sparse() -> Tensor:
        return label_pool(maps, boxes, NUM_CLASSES).softmax(1)

    def dense() -> Tensor:
        pooled: Tensor = roi_align(maps.dense(NUM_CLASSES), indexed_boxes, output_size=1, sampling_ratio=-1, aligned=True)
        return pooled.flatten(1).softmax(1)

    print(hardware(device))
    difference = float((sparse() - dense()).abs().max())
    sparse_s, dense_s = median_seconds(device, ROUNDS, sparse, dense)
    print(
        f"label pooling on {device}: B {BATCH}, k {TOPK}, C {NUM_CLASSES}, {rows}x{columns}; median of {ROUNDS}, interleaved"
    )
    print(f"  sparse label_pool + softmax         {1000 * sparse_s:8.2f} ms")
    print(f"  dense map + roi_align + softmax     {1000 * dense_s:8.2f} ms")
    print(f"  ratio                               {dense_s / sparse_s:8.1f}")
    print(f"  largest difference of a probability {difference:8.1e}")


if __name__ == "__main__":
    main()
