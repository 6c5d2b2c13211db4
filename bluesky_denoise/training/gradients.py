"""Gradients of a loss; on a GPU as a recorded graph, since a small network is all launches."""

from collections.abc import Callable, Hashable
from dataclasses import fields

import torch
from torch import Tensor, nn

from bluesky_denoise.training.recipes import TensorBatch

__all__ = ["Gradients"]

WARM_UP = 3
"""Batches that are computed before one is recorded, as torch asks for."""


class Gradients:
    """Compute the loss of a batch, and leave its gradients in the parameters.

    A step of our network is thousands of small kernels, and to launch them takes longer than
    they do. Where there is a GPU they are recorded once for each shape and stage
    of the training, and then started all together.

    Parameters
    ----------
    loss : (batch, step) -> mean loss, a scalar
    parameters : those that are trained
    record : whether to record graphs; the parameters must be on a GPU then, and ``loss`` must
        neither wait for it nor depend on anything but the batch within a stage

    References
    ----------
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(
        self,
        loss: Callable[[TensorBatch, int], Tensor],
        parameters: list[nn.Parameter],
        *,
        record: bool,
    ) -> None:
        self._loss, self._parameters, self._record = loss, parameters, record
        self._recorded: dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if record else None

    def __call__(self, batch: TensorBatch, step: int, stage: Hashable = None) -> Tensor:
        """Return the loss; steps of one ``stage`` have the same."""
        if not self._record:
            for parameter in self._parameters:
                parameter.grad = None
            return self._backward(batch, step)
        key = stage, batch.counts.shape
        if key not in self._recorded:
            self._recorded[key] = self._recording(batch, step)
        return self._recorded[key].replay(batch)

    def _backward(self, batch: TensorBatch, step: int) -> Tensor:
        loss = self._loss(batch, step)
        loss.backward()
        return loss.detach()

    def _recording(self, batch: TensorBatch, step: int) -> "_Recorded":
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._backward(batch, step)
        torch.cuda.current_stream().wait_stream(beside)
        # From now on all graphs add to the same gradients, which each clears first.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            torch._foreach_zero_(gradients)
            loss = self._backward(batch, step)
        return _Recorded(graph, batch, loss)


class _Recorded:
    """A graph, the batch that it reads and the loss that it writes."""

    def __init__(self, graph: "torch.cuda.CUDAGraph", batch: TensorBatch, loss: Tensor) -> None:
        self._graph, self._batch, self._loss = graph, batch, loss

    def replay(self, batch: TensorBatch) -> Tensor:
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name))
        self._graph.replay()
        return self._loss
