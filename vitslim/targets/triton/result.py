"""What is known of a model repository that was written."""

from pathlib import Path

from vitslim.shapes import Result


class TritonRepository(Result):
    """What was written.

    Args:
        repository: what ``--model-repository`` of the server is given.
        name: of the model in it.
        backend: Triton's name of it.
        max_batch_size: 0 where the file has a fixed batch, which Triton then does not manage.
        preferred_batch_sizes: what the dynamic batcher tries to reach; empty: as many as wait.
        instances: copies of the model per device.
        files: relative to ``repository``.
        plugin: the plugin library lies in the repository; ``None`` where the engine needs none.
        command: how the server is started.
        notes: what the server must have.
    """

    repository: Path
    name: str
    backend: str
    max_batch_size: int
    preferred_batch_sizes: list[int]
    instances: int
    files: list[str]
    plugin: bool | None
    command: str
    notes: list[str]
