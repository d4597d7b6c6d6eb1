"""The device that one model leaves to the next."""

import gc


def free_device() -> None:
    """Return to the driver what models held that nobody refers to any more.

    PyTorch keeps freed memory for its own next tensors, and modules that refer to themselves stay until the collector
    comes by. An engine in another process, such as vLLM's, finds neither free.
    """
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU was used
